//! The project's tasks: `cargo xtask TASK`. Every task first sets the machine up for itself.

mod build;
mod build_ebpf;
mod command;
mod fuzz;
mod image;
mod kind;
#[cfg(test)]
mod links;
mod lint;
mod paths;
mod semantics;
mod setup;
mod show;
mod test;
#[cfg(test)]
mod text;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::setup::setup;

/// Tasks of the project. Each installs what is missing first and says what it does.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", after_help = AFTER_HELP)]
enum Task {
    /// Show the product at work between two nodes in network namespaces
    Demo {
        /// Keep them and print commands to try
        #[arg(long)]
        hold: bool,
    },
    /// Build, check and test everything; the last line holds the counts
    Test(test::Options),
    /// Search for inputs that break a promise; needs no root
    Fuzz(fuzz::Options),
    /// Measure and print the table; JSON goes to target/bench.json
    #[command(disable_help_flag = true)]
    Bench {
        /// Options of the benchmark; --help lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Build target/bpf/lb.o, and target/release/lb-agent with the programs inside
    Build {
        /// Only the programs
        #[arg(long)]
        bpf_only: bool,
    },
    /// Build target/image/lb-agent.tar: a container image with the static agent and nothing else
    Image {
        /// A static agent that is built already
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
    },
    /// A kind cluster without kube-proxy, the agent from deploy/ in it
    #[command(subcommand)]
    Kind(kind::Task),
    /// Check format, lints for both targets, documentation, citations and dependencies
    Lint,
    /// Write below each line of docs/reference/semantics.md what shows it
    Semantics {
        /// Write nothing; fail where it is not up to date or a line has no test
        #[arg(long)]
        check: bool,
    },
    /// Only install what is missing
    Setup,
}

const AFTER_HELP: &str = "\
demo, test and bench need root and leave nothing behind. Tools built here are kept in
$XDG_CACHE_HOME/lb-ebpf or ~/.cache/lb-ebpf.";

fn main() -> ExitCode {
    match task(Task::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn task(task: Task) -> Result<ExitCode> {
    match task {
        Task::Demo { hold } => show::demo(hold)?,
        Task::Test(options) => return test::test(&options),
        Task::Fuzz(options) => return fuzz::fuzz(&options),
        Task::Bench { options } => show::bench(&options)?,
        Task::Build { bpf_only: true } => {
            build_ebpf::build(&setup(setup::BUILD)?, &["lb", "table"])?
        }
        Task::Build { bpf_only: false } => build::build(&setup(setup::BUILD)?)?,
        Task::Image { agent: None } => drop(image::image(&setup(setup::BUILD)?)?),
        Task::Image { agent: Some(agent) } => drop(image::image_of(&agent)?),
        Task::Kind(task) => return kind::kind(&task),
        Task::Lint => lint::lint(&setup(setup::LINT)?)?,
        Task::Semantics { check } => semantics::semantics(check)?,
        Task::Setup => {
            setup(setup::ALL)?;
            eprintln!("everything is installed");
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_option_belongs_to_its_task() {
        Task::command().debug_assert();
        let is_known = |text: &str| Task::try_parse_from(text.split(' ')).is_ok();
        assert!(is_known("xtask test --fast node_port --miri"));
        assert!(is_known("xtask bench --json file --quick"));
        assert!(is_known("xtask fuzz pipeline --seconds 5"));
        assert!(!is_known("xtask fuzz --seconds 0"));
        assert!(!is_known("xtask tset"));
        assert!(!is_known("xtask build --relase"));
        assert!(!is_known("xtask test one two"));
        assert!(!is_known("xtask kind up --e2e"));
        assert!(!is_known("xtask kind test --focus x"));
    }
}
