//! A kind cluster without kube-proxy: `cargo xtask kind up|test|down`.
//!
//! kind's own node image is pulled where that works; else tests/kind/node-image.sh makes one of packages and Go
//! modules, and the pod network is laid here: a veth and a route a pod, a route a node.

mod cluster;
mod e2e;
mod engine;
mod proof;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use self::{cluster::Cluster, engine::Engine};

/// What comes after `cargo xtask kind`.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Up(cluster::Options),
    Test(Test),
    Down { all: bool },
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Test {
    /// Upstream's end-to-end tests, too.
    e2e: Option<e2e::Options>,
    /// No traffic of our own.
    only_e2e: bool,
    /// A machine that cannot run a container engine or such a cluster counts as skipped, not as failed.
    may_skip: bool,
    cluster: cluster::Options,
}

/// Runs `cargo xtask kind ARGUMENTS`.
pub(crate) fn kind(arguments: &[String]) -> Result<ExitCode> {
    match parse(arguments)? {
        Task::Up(options) => {
            Cluster::up(Engine::up()?, &options)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Test(options) => test(&options),
        Task::Down { all } => {
            if let Some(engine) = Engine::running()? {
                cluster::down(&engine)?;
                if all {
                    engine.down()?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn test(options: &Test) -> Result<ExitCode> {
    let mut report = Report::default();
    // What has nothing to do with the agent: the container engine and the cluster.
    let provisioned = Engine::up()
        .context("no container engine")
        .and_then(|engine| Cluster::provision(engine, &options.cluster).context("no cluster"));
    let cluster = match provisioned {
        Ok(cluster) => cluster,
        Err(error) if options.may_skip => {
            report.skip("kind", &format!("{error:#}"));
            return report.end();
        }
        Err(error) => return Err(error),
    };
    cluster.serve(&options.cluster)?;
    if !options.only_e2e {
        proof::run(&cluster, &mut report)?;
    }
    if let Some(e2e) = &options.e2e {
        match e2e::programs(&cluster) {
            Ok(programs) => e2e::run(&cluster, e2e, &programs, &mut report)?,
            Err(error) if options.may_skip => {
                report.skip("upstream's specs", &format!("{error:#}"));
            }
            Err(error) => return Err(error),
        }
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
        let is_proof = self.passed > 0 || self.skipped > 0;
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

fn parse(arguments: &[String]) -> Result<Task> {
    let (task, options) = arguments
        .split_first()
        .map(|(task, options)| (task.as_str(), options))
        .unwrap_or_default();
    let mut options = options.iter().map(String::as_str);
    let mut up = cluster::Options::default();
    let mut test = Test::default();
    let mut all = false;
    while let Some(option) = options.next() {
        let mut value = || {
            let value = options.next().map(str::to_owned);
            value.ok_or_else(|| anyhow::anyhow!("`{option}` takes a value"))
        };
        let e2e = test.e2e.get_or_insert_default();
        match (task, option) {
            ("up", "--node-image") => up.node_image = Some(value()?),
            ("up", "--kube-proxy") => up.kube_proxy = Some(value()?),
            ("up" | "test", "--image") => up.image = Some(value()?.into()),
            ("test", "--e2e") => e2e.is_wanted = true,
            ("test", "--only-e2e") => {
                e2e.is_wanted = true;
                test.only_e2e = true;
            }
            ("test", "--all") => e2e.focus = Some(e2e::NETWORK.to_owned()),
            ("test", "--focus") => e2e.focus = Some(value()?),
            ("test", "--may-skip") => test.may_skip = true,
            ("up" | "test", "--workers") => up.workers = Some(value()?.parse()?),
            ("up" | "test", "--node-image-minutes") => {
                up.node_image_minutes = Some(value()?.parse()?);
            }
            ("down", "--all") => all = true,
            _ => bail!("`kind {task}` knows no `{option}`; see `cargo xtask help`"),
        }
    }
    match &test.e2e {
        Some(e2e) if !e2e.is_wanted && e2e.focus.is_some() => {
            bail!("`--focus` and `--all` choose among upstream's tests; add --e2e");
        }
        Some(e2e) if !e2e.is_wanted => test.e2e = None,
        _ => {}
    }
    match task {
        "up" => Ok(Task::Up(up)),
        "test" => Ok(Task::Test(Test {
            cluster: up,
            ..test
        })),
        "down" => Ok(Task::Down { all }),
        _ => bail!("write `cargo xtask kind up`, `test` or `down`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Task> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        parse(&words)
    }

    #[test]
    fn options_belong_to_their_task() {
        assert_eq!(parsed("down --all").unwrap(), Task::Down { all: true });
        assert_eq!(parsed("test").unwrap(), Task::Test(Test::default()));
        assert!(parsed("up --all").is_err());
        assert!(parsed("test --focus x").is_err());
        assert!(parsed("test --e2e --focus").is_err());
        assert!(parsed("").is_err());
    }

    #[test]
    fn focus_of_upstream_tests_is_kept() {
        let Task::Test(test) = parsed("test --e2e --focus DNS").unwrap() else {
            panic!("no test");
        };
        assert_eq!(test.e2e.unwrap().focus.as_deref(), Some("DNS"));
    }
}
