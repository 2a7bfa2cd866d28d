//! A kind cluster without kube-proxy: `cargo xtask kind up|test|down`.
//!
//! kind's own node image is pulled where that works; else tests/kind/node-image.sh makes one of packages and Go
//! modules, and the pod network is laid here: a veth and a route a pod, a route a node.

mod cluster;
mod e2e;
mod engine;
mod proof;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use self::{cluster::Cluster, engine::Engine};

/// What comes after `cargo xtask kind`.
#[derive(clap::Subcommand)]
pub(crate) enum Task {
    /// Make the cluster, or bring the agent of the one that is there up to date
    Up(cluster::Wanted),
    /// Send traffic of our own through the cluster, made where it is not there
    Test(Test),
    /// Delete the cluster
    Down {
        /// The Docker daemon that `up` started, too
        #[arg(long)]
        all: bool,
    },
}

#[derive(clap::Args)]
pub(crate) struct Test {
    #[command(flatten)]
    e2e: e2e::Choice,
    #[command(flatten)]
    cluster: cluster::Wanted,
}

/// Runs `cargo xtask kind TASK`.
pub(crate) fn kind(task: &Task) -> Result<ExitCode> {
    match task {
        Task::Up(options) => {
            Cluster::up(Engine::up()?, options)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Test(options) => test(options),
        Task::Down { all } => {
            if let Some(engine) = Engine::running()? {
                cluster::down(&engine)?;
                if *all {
                    engine.down()?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn test(options: &Test) -> Result<ExitCode> {
    let mut report = Report::default();
    let engine = Engine::up().context("no container engine")?;
    let cluster = Cluster::provision(engine, &options.cluster).context("no cluster")?;
    cluster.serve(&options.cluster)?;
    if !options.e2e.only_e2e {
        proof::run(&cluster, &mut report)?;
    }
    if options.e2e.e2e || options.e2e.only_e2e {
        let programs = e2e::programs(&cluster).context("no specs of upstream")?;
        e2e::run(&cluster, &options.e2e, &programs, &mut report)?;
    }
    report.end()
}

/// What was checked, one line each, and the counts.
#[derive(Default)]
struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    fn check(&mut self, name: &str, result: Result<String>) {
        match result {
            Ok(seen) => {
                self.passed += 1;
                say(&format!("ok       {name}: {seen}"));
            }
            Err(error) => {
                self.failed += 1;
                say(&format!("FAILED   {name}: {error:#}"));
            }
        }
    }

    fn skip(&mut self, name: &str, reason: &str) {
        self.skipped += 1;
        say(&format!("SKIPPED: {name}: {reason}"));
    }

    fn end(&self) -> Result<ExitCode> {
        say(&format!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        ));
        let is_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
        let is_proof = self.passed > 0 && (self.skipped == 0 || !is_ci);
        Ok(match self.failed == 0 && is_proof {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

#[expect(clippy::print_stdout, reason = "the report of a task")]
fn say(line: &str) {
    println!("{line}");
}
