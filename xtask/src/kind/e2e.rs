//! Upstream's end-to-end tests, held against what they come to with kube-proxy.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::cluster::{Cluster, file, make};
use super::engine::folder;
use super::{Report, say};
use crate::command;

/// All that concerns us.
const NETWORK: &str = r"\[sig-network\]";
/// What every conformant cluster has to pass.
const CONFORMANCE: &str = r"\[sig-network\] Services.*\[Conformance\]";
/// What asks for another kind of cluster, or for hours.
const SKIP: &str = r"\[Serial\]|\[Slow\]|\[Disruptive\]|\[Flaky\]|\[Feature:.+\]";
/// Specs at a time.
const PARALLEL: usize = 4;

/// Which of upstream's specs run.
#[derive(clap::Args)]
pub(crate) struct Choice {
    /// Upstream's Conformance specs of Services, too
    #[arg(long, group = "upstream")]
    pub(super) e2e: bool,
    /// Upstream's specs without our own traffic
    #[arg(long, group = "upstream")]
    pub(super) only_e2e: bool,
    /// All specs of [sig-network]
    #[arg(long, requires = "upstream", conflicts_with = "focus")]
    all: bool,
    /// The specs of this regular expression
    #[arg(long, requires = "upstream", value_name = "REGEX")]
    focus: Option<String>,
}

impl Choice {
    /// A regular expression of names.
    fn specs(&self) -> &str {
        match &self.focus {
            Some(focus) => focus,
            None if self.all => NETWORK,
            None => CONFORMANCE,
        }
    }
}

/// What a spec came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// Runs the specs; one that passes with kube-proxy and not here is a failure, and so is one without a baseline.
pub(super) fn run(
    cluster: &Cluster,
    options: &Choice,
    (ginkgo, tests): &(PathBuf, PathBuf),
    report: &mut Report,
) -> Result<()> {
    let results = cluster.engine.folder.join("e2e");
    if results.exists() {
        fs::remove_dir_all(&results)?;
    }
    fs::create_dir_all(&results)?;
    let log = File::create(results.join("log"))?;
    let focus = options.specs();
    say(&format!(
        "upstream's specs {focus}; log in {}",
        results.display()
    ));
    let status = cluster
        .engine
        .inside(ginkgo)
        .arg(format!("--procs={PARALLEL}"))
        .args(["--no-color", "--timeout=3h"])
        .arg(format!("--focus={focus}"))
        .arg(format!("--skip={SKIP}"))
        .arg(tests)
        .args(["--", "--provider=skeleton", "--disable-log-dump"])
        .arg(format!("--num-nodes={}", cluster.workers().count()))
        .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
        .arg(format!("--report-dir={}", results.display()))
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("cannot start ginkgo")?;
    let seen = outcomes(&results)?;
    ensure!(
        !seen.is_empty(),
        "no spec ran ({status}); see {}",
        results.join("log").display()
    );
    let is_failed = seen.values().any(|outcome| *outcome == Outcome::Failed);
    if !status.success() && !is_failed {
        // Interrupted, or something beside the specs failed.
        let log = results.join("log");
        let error = anyhow::anyhow!("ginkgo ended with {status}; see {}", log.display());
        report.check("the run of upstream's specs", Err(error));
    }
    let path = file("baseline.tsv");
    let baseline = baseline(
        &fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?,
    );
    for (name, outcome) in &seen {
        let wanted = baseline.get(name).copied();
        match outcome {
            Outcome::Skipped => report.skip(name, "the spec skips itself on this cluster"),
            Outcome::Passed => report.check(name, Ok("passed".to_owned())),
            Outcome::Failed if wanted == Some(Outcome::Failed) => {
                report.skip(name, "it fails with kube-proxy, too");
            }
            Outcome::Failed => report.check(
                name,
                Err(anyhow::anyhow!("it failed; with kube-proxy: {wanted:?}")),
            ),
        }
    }
    Ok(())
}

/// ginkgo and e2e.test: as the node image's script builds them, else from PATH.
pub(super) fn programs(cluster: &Cluster) -> Result<(PathBuf, PathBuf)> {
    let bin = folder()?.join("bin");
    let both = [bin.join("ginkgo"), bin.join("e2e.test")];
    if !both.iter().all(|path| path.exists()) {
        if command::exists("ginkgo") && command::exists("e2e.test") {
            let path = command::read(command::program("sh").args(["-c", "command -v e2e.test"]))?;
            return Ok(("ginkgo".into(), path.trim().into()));
        }
        make(&cluster.engine, "programs", None)?;
    }
    let [ginkgo, tests] = both;
    Ok((ginkgo, tests))
}

/// The specs of all reports that ran, or that skipped themselves with a reason.
fn outcomes(folder: &Path) -> Result<BTreeMap<String, Outcome>> {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "xml") {
            let text = fs::read_to_string(&path)?;
            seen.extend(cases(&text).with_context(|| format!("{}", path.display()))?);
        }
    }
    Ok(seen)
}

/// Test cases of a JUnit report. A spec outside the focus is `skipped` with nothing that says why.
fn cases(text: &str) -> Result<Vec<(String, Outcome)>> {
    let mut cases = Vec::new();
    for case in text.split("<testcase ").skip(1) {
        let (tag, body) = case.split_once('>').context("a test case without an end")?;
        let name = unescape(attribute(tag, "name").context("a test case without a name")?);
        let Some(name) = name.strip_prefix("[It] ") else {
            continue; // what runs before and after all specs
        };
        // Labels stand at the end, beside those that the name itself holds.
        let name = spec(name);
        let outcome = match attribute(tag, "status") {
            Some("passed") => Outcome::Passed,
            Some("skipped") if !body.contains("<skipped message=\"skipped - ") => continue,
            Some("skipped") => Outcome::Skipped,
            Some("pending") => continue,
            Some(_) => Outcome::Failed,
            None => bail!("`{name}` has no status"),
        };
        cases.push((name, outcome));
    }
    Ok(cases)
}

/// A spec's name without the list of labels that ginkgo appends.
fn spec(name: &str) -> String {
    let labels = name
        .rfind(" [")
        .filter(|at| name[*at..].contains("sig-network") && name[*at..].contains(','));
    name[..labels.unwrap_or(name.len())].trim_end().to_owned()
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let start = tag.find(&format!("{name}=\""))? + name.len() + 2;
    tag[start..].split('"').next()
}

fn unescape(text: &str) -> String {
    [
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&amp;", "&"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (code, sign)| {
        text.replace(code, sign)
    })
}

/// `RESULT TAB NAME` a line.
fn baseline(text: &str) -> BTreeMap<String, Outcome> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (outcome, name) = line.split_once('\t')?;
            let outcome = match outcome {
                "passed" => Outcome::Passed,
                "skipped" => Outcome::Skipped,
                _ => Outcome::Failed,
            };
            Some((name.to_owned(), outcome))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_yields_what_ran_and_what_skipped_itself() {
        let report = r#"<testsuites><testsuite>
            <testcase name="[ReportBeforeSuite]" classname="x" status="passed" time="0"></testcase>
            <testcase name="[It] [sig-network] A &#34;b&#34; &amp; c [Conformance] [sig-network, Conformance]" status="passed" time="1"></testcase>
            <testcase name="[It] [sig-network] D" status="failed" time="1"><failure message="x"/></testcase>
            <testcase name="[It] [sig-network] E" status="skipped" time="1"><skipped message="skipped - no zones"></skipped></testcase>
            <testcase name="[It] [sig-node] F" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
            <testcase name="[It] [sig-network] G" status="timedout" time="1"></testcase>
            </testsuite></testsuites>"#;
        assert_eq!(
            cases(report).unwrap(),
            [
                (
                    "[sig-network] A \"b\" & c [Conformance]".to_owned(),
                    Outcome::Passed
                ),
                ("[sig-network] D".to_owned(), Outcome::Failed),
                ("[sig-network] E".to_owned(), Outcome::Skipped),
                ("[sig-network] G".to_owned(), Outcome::Failed),
            ]
        );
    }

    #[test]
    fn baseline_of_this_project_knows_the_conformance_of_services() {
        let text = fs::read_to_string(file("baseline.tsv")).unwrap();
        let baseline = baseline(&text);
        let wanted = baseline
            .iter()
            .filter(|(name, outcome)| {
                name.starts_with("[sig-network] Services")
                    && name.ends_with("[Conformance]")
                    && **outcome == Outcome::Passed
            })
            .count();
        assert_eq!(wanted, 15);
    }
}
