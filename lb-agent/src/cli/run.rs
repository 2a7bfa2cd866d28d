//! `lb-agent run`: the checked flags → the agent, or one of the steps that end at once.

use std::time::Instant;

use anyhow::Result;
use clap::Command;

use super::cleanup;
use crate::{agent, config::RunArgs, telemetry::log};

/// Runs the agent until a signal ends it. `command` is the whole command line.
pub(super) fn run(args: &RunArgs, command: &Command) -> Result<()> {
    let started = Instant::now();
    log::init(args.log_format)?;
    let config = args.validate()?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(path) = &args.write_config_to {
        return Ok(config.write_to(path)?);
    }
    if args.cleanup {
        return cleanup::cleanup(&config.bpffs);
    }
    if args.init_only {
        return agent::init_only(&config);
    }
    agent::run(args, config, flags(command), started)
}

/// Flags of `run` with their values, defaults included.
fn flags(command: &Command) -> Vec<(String, String)> {
    let matches = command.clone().try_get_matches_from(std::env::args_os());
    let matches = matches.ok();
    let run = matches
        .as_ref()
        .and_then(|matches| matches.subcommand_matches("run"));
    let value = |id: &str| {
        let values = run?.try_get_raw(id).ok()??;
        let values = values.map(|value| value.to_string_lossy().into_owned());
        Some(values.collect::<Vec<_>>().join(","))
    };
    let args = command
        .find_subcommand("run")
        .into_iter()
        .flat_map(Command::get_arguments);
    let mut flags: Vec<(String, String)> = args
        .filter_map(|arg| {
            let id = arg.get_id().as_str();
            Some((arg.get_long()?.to_owned(), value(id).unwrap_or_default()))
        })
        .collect();
    flags.sort();
    flags
}
