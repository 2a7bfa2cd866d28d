//! The command line: one command a file.

pub mod backends;
pub mod cleanup;
pub mod flows;
pub mod interfaces;
pub mod run;
pub mod services;
pub mod status;
pub mod table;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use self::table::Output;
use crate::{
    bpf::maps::{Maps, pin_dir},
    config::{DEFAULT_BPFFS, RunArgs},
    telemetry::state::{Names, Running, State, StateFile},
};

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

/// Where the pins are.
#[derive(Args, Clone, Debug)]
pub struct Pins {
    /// Mount of the bpf filesystem that the agent uses
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
}

/// How to answer.
#[derive(Args, Clone, Debug)]
pub struct Query {
    #[command(flatten)]
    pins: Pins,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// A question about some Services.
#[derive(Args, Clone, Debug)]
pub struct Filtered {
    #[command(flatten)]
    query: Query,
    /// Only Services of this namespace
    #[arg(short, long, value_name = "NS")]
    pub namespace: Option<String>,
}

/// What every command reads: the pinned maps, and the state file beside them.
#[derive(Debug)]
pub struct View {
    /// The maps.
    pub maps: Maps,
    /// What the agent wrote; `None`: no file, or none that can be read.
    pub state: Option<State>,
    /// Names of service ports.
    pub names: Names,
    /// Whether the agent runs.
    pub running: Running,
    /// How to answer.
    pub output: Output,
}

impl Query {
    /// Opens everything. Without pinned maps there is nothing to show; without a state file only names are missing.
    pub fn open(&self) -> Result<View> {
        let maps = Maps::open_pinned(&pin_dir(&self.pins.bpffs))?;
        let file = StateFile::of(&self.pins.bpffs);
        let state = file.read().unwrap_or_else(|error| {
            eprintln!("lb-agent: {:#}", anyhow::Error::from(error));
            None
        });
        Ok(View {
            maps,
            names: Names::new(state.as_ref()),
            state,
            running: file.running(),
            output: self.output,
        })
    }
}

impl View {
    /// Says on standard error that ids stand for names.
    fn explain_ids(&self) {
        if self.state.is_none() {
            eprintln!(
                "names of Services are not known: the agent's state file is missing; ids are shown, an agent that runs writes it"
            );
        }
    }
}

impl Filtered {
    fn open(&self) -> Result<View> {
        let view = self.query.open()?;
        if self.namespace.is_some() && view.state.is_none() {
            anyhow::bail!(
                "names of Services are not known: the agent's state file is missing; leave --namespace out"
            );
        }
        view.explain_ids();
        Ok(view)
    }
}

impl Cli {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        match &self.command {
            Command::Run(args) => run::run(args),
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
