//! Parses arguments, runs the command, prints the chain of causes of an error.

use std::process::ExitCode;

use clap::Parser as _;
use lb_agent::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lb-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
