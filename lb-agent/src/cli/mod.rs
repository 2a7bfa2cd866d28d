//! The command line: one command a file.

mod backends;
mod cleanup;
mod flows;
mod interfaces;
mod query;
mod run;
mod services;
mod status;
mod table;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};

use self::query::{Filtered, Pins, Query};
use crate::config::RunArgs;

/// A Kubernetes Service load balancer in eBPF.
#[derive(Parser, Debug)]
#[command(name = "lb-agent", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve the Services of this node until a signal ends the agent; the dataplane stays attached
    #[command(args_override_self = true)]
    Run(Box<RunArgs>),
    /// Show what is attached, how full the maps are, what was dropped, and what is wrong
    Status(Query),
    /// Show the frontends of every Service with backends, policies and traffic
    Services(Filtered),
    /// Show the backends of every Service
    Backends(Filtered),
    /// Show translated connections, both directions as one
    Flows(flows::Args),
    /// Show the interfaces that are served and what is attached to them
    Interfaces(Query),
    /// Detach and unpin everything, also of an agent that does not run
    Cleanup(Pins),
}

impl Cli {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        match &self.command {
            Command::Run(args) => run::run(args, &Cli::command()),
            Command::Status(query) => status::status(&query.open()?),
            Command::Services(filtered) => {
                services::services(&filtered.open()?, filtered.namespace.as_deref())
            }
            Command::Backends(filtered) => {
                backends::backends(&filtered.open()?, filtered.namespace.as_deref())
            }
            Command::Flows(args) => flows::flows(args),
            Command::Interfaces(query) => interfaces::interfaces(&query.open()?),
            Command::Cleanup(pins) => cleanup::cleanup(&pins.bpffs),
        }
    }
}
