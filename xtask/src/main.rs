//! The project's tasks: `cargo xtask TASK`.

mod build_ebpf;
mod command;
mod elf;
mod paths;
mod setup;

use anyhow::{Result, bail};
use std::process::ExitCode;

fn main() -> ExitCode {
    match task() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn task() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("build") => {
            let tools = setup::setup(setup::Scope::Build)?;
            build_ebpf::build(&tools)?;
            if arguments.iter().any(|a| a == "--bpf-only") {
                return Ok(());
            }
            command::run(command::cargo().args(["build", "--release", "-p", "lb-agent"]))
        }
        _ => bail!("unknown"),
    }
}
