//! The project's tasks: `cargo xtask TASK`. Every task first sets the machine up for itself.

mod build;
mod build_ebpf;
mod command;
#[cfg(test)]
mod deploy;
mod elf;
mod image;
mod kind;
mod lint;
mod paths;
mod semantics;
mod setup;
mod show;
mod test;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::setup::{Scope, setup};

const HELP: &str = "\
Tasks of the project. Each installs what is missing first and says what it does.

Usage: cargo xtask TASK [OPTIONS]

  demo [--hold]               show the product at work between two nodes in network namespaces
                              --hold  keep them and print commands to try
  test [FILTER] [OPTIONS]     build, check and test everything; the last line holds the counts
                              FILTER  only tests whose name contains it, without the checks
                              --fast  without the checks (format, lints, documentation)
                              --miri  also the shared logic under Miri (nightly toolchain)
  bench [--quick] [--json FILE]
                              measure and print the table; JSON goes to target/bench.json or FILE
                              --control-plane  instead: beside kube-proxy at a real API server with 10,000 Services
                                               (--services N), ten minutes
  build [--bpf-only]          target/bpf/*.o, and target/release/lb-agent with the programs inside
                              --bpf-only  only the programs
  image                       target/image/lb-agent.tar: a container image with the static agent and nothing else
                              --agent FILE  a static agent that is built already
  kind up|test|down [OPTIONS] a kind cluster of three nodes without kube-proxy, the agent from deploy/ in it
                              up, test  --image FILE  of `cargo xtask image`, instead of making it
                                    --workers N  of a new cluster, two unless told otherwise
                                    --node-image-minutes N  give up making a node image after this time
                              up    --node-image NAME; --kube-proxy MODE  kube-proxy instead, to compare with
                              test  traffic of our own; --e2e  upstream's Conformance specs of Services, too
                                    --all, --focus REGEX  all of [sig-network], those of REGEX
                                    --only-e2e  without our own traffic
                                    --may-skip  where no container engine or cluster starts say so and succeed
                              down  --all  the Docker daemon that `up` started, too
  lint                        format, clippy for both targets, documentation, `semantics --check`, dependencies
  semantics [--check]         docs/semantics.md: the tests of every line of tests/semantics.tsv
                              --check  write nothing; fail where it is not up to date or a line has no test
  setup                       only install what is missing
  help                        this text

demo, test and bench need root and leave nothing behind. Tools built here are kept in
$XDG_CACHE_HOME/lb-ebpf or ~/.cache/lb-ebpf.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match task(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn task(arguments: &[String]) -> Result<ExitCode> {
    let Some((task, options)) = arguments.split_first() else {
        return help();
    };
    match task.as_str() {
        "demo" | "bench" => show::become_program(&setup(Scope::Run)?, task, options)?,
        "test" => return test::test(&test_options(options)?),
        "build" => match options {
            [] => build::build(&setup(Scope::Build)?)?,
            [option] if option == "--bpf-only" => build_ebpf::build(&setup(Scope::Build)?)?,
            [option, ..] => bail!("`build` knows no `{option}`; see `cargo xtask help`"),
        },
        "image" => match options {
            [] => image::image(&setup(Scope::Build)?).map(drop)?,
            [option, agent] if option == "--agent" => {
                image::image_of(agent.as_ref()).map(drop)?;
            }
            [option, ..] => bail!("`image` knows no such `{option}`; see `cargo xtask help`"),
        },
        "kind" => return kind::kind(options),
        "lint" => {
            no_options(task, options)?;
            lint::lint(&setup(Scope::Build)?)?;
        }
        "semantics" => match options {
            [] => semantics::semantics(false)?,
            [option] if option == "--check" => semantics::semantics(true)?,
            [option, ..] => bail!("`semantics` knows no `{option}`; see `cargo xtask help`"),
        },
        "setup" => {
            no_options(task, options)?;
            setup(Scope::Run)?;
            crate::setup::control_plane()?;
            eprintln!("everything is installed");
        }
        "help" | "--help" | "-h" => return help(),
        _ => bail!("there is no task `{task}`; see `cargo xtask help`"),
    }
    Ok(ExitCode::SUCCESS)
}

fn help() -> Result<ExitCode> {
    std::io::stdout().write_all(HELP.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn no_options(task: &str, options: &[String]) -> Result<()> {
    if let Some(option) = options.first() {
        bail!("`{task}` takes no options, but got `{option}`");
    }
    Ok(())
}

fn test_options(arguments: &[String]) -> Result<test::Options> {
    let mut options = test::Options::default();
    for argument in arguments {
        match argument.as_str() {
            "--fast" => options.is_fast = true,
            "--miri" => options.is_miri = true,
            option if option.starts_with('-') => {
                bail!("`test` knows no `{option}`; see `cargo xtask help`")
            }
            _ if options.filter.is_some() => {
                bail!("`test` takes one filter, but got also `{argument}`")
            }
            filter => options.filter = Some(filter.to_owned()),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn unknown_task_or_option_is_an_error() {
        assert!(task(&words("tset")).is_err());
        assert!(task(&words("build --relase")).is_err());
        assert!(test_options(&words("--slow")).is_err());
        assert!(test_options(&words("one two")).is_err());
    }

    #[test]
    fn options_of_test_are_read_in_any_order() {
        let options = test_options(&words("--fast node_port --miri")).unwrap();
        assert!(options.is_fast && options.is_miri);
        assert_eq!(options.filter.as_deref(), Some("node_port"));
    }
}
