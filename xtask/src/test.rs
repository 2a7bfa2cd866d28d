//! Every check and test of the workspace → one line of counts.
//!
//! A test that cannot run on this machine is reported as ignored, with what is missing; it is counted as skipped, not as
//! passed.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::setup::{self, Tools, setup};
use crate::{build_ebpf, command, lint, paths};

/// What `cargo xtask test` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only tests whose name contains this, without the checks
    filter: Option<String>,
    /// Without the checks (format, lints, documentation)
    #[arg(long)]
    fast: bool,
    /// Also the shared logic under Miri (nightly toolchain)
    #[arg(long)]
    miri: bool,
}

/// Sets up, builds, checks and tests. Whatever happens, its last line of output is
/// `N passed, N failed, N skipped`.
pub(crate) fn test(options: &Options) -> Result<ExitCode> {
    let mut summary = Summary::default();
    if let Err(error) = steps(options, &mut summary) {
        summary.failed.push(format!("{error:#}"));
    }
    summary.print()?;
    Ok(if summary.is_success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// An error is what makes the further steps pointless.
fn steps(options: &Options, summary: &mut Summary) -> Result<()> {
    let tools = setup(setup::ALL).context("set-up")?;
    if let Some(lack) = setup::lacks() {
        eprintln!("tests that need the kernel are skipped: {lack}");
    }
    build(&tools).context("build")?;
    if !options.fast && options.filter.is_none() {
        let failed = lint::failed_checks(&tools);
        summary
            .failed
            .extend(failed.into_iter().map(|name| format!("check {name}")));
    }
    native(&tools, options, summary)?;
    if options.miri {
        miri(options, summary)?;
    }
    Ok(())
}

/// What the tests start and load. The agent is that of the development profile: an optimised one takes minutes more.
fn build(tools: &Tools) -> Result<()> {
    build_ebpf::build(tools, &["lb", "table"])?;
    command::run(command::cargo().args(["build", "--package", "lb-agent"]))
}

/// The tests of every crate that is compiled for this machine.
fn native(tools: &Tools, options: &Options, summary: &mut Summary) -> Result<()> {
    let mut cargo = command::cargo();
    tools.point(&mut cargo);
    cargo
        .args([
            "test",
            "--workspace",
            "--exclude",
            "lb-ebpf",
            "--no-fail-fast",
            "--",
        ])
        .args(&options.filter);
    summary.run("cargo test", &mut cargo)
}

/// lb-common's tests in the interpreter that finds undefined behaviour.
fn miri(options: &Options, summary: &mut Summary) -> Result<()> {
    let miri = || {
        let mut command = Command::new("cargo");
        command
            .current_dir(paths::workspace())
            .env_remove("RUSTUP_TOOLCHAIN")
            .args(["+nightly", "miri"]);
        command
    };
    // Fails also where the interpreter is there, but not the sources of the standard library that it runs.
    command::read(miri().arg("setup")).context(
        "Miri is not complete; `rustup toolchain install nightly --component miri --component rust-src`",
    )?;
    let mut cargo = miri();
    cargo
        .arg("test")
        .args(["--package", "lb-common", "--no-fail-fast", "--target-dir"])
        .arg(paths::target().join("miri"))
        .arg("--")
        .args(&options.filter);
    summary.run("cargo miri test", &mut cargo)
}

/// What the tests came to.
#[derive(Default)]
struct Summary {
    passed: u64,
    failed: Vec<String>,
    /// `NAME: REASON`.
    skipped: Vec<String>,
    /// `NAME: N passed`, with the number that failed where there is one.
    binaries: Vec<String>,
}

impl Summary {
    /// Runs a test command, shows its output and counts.
    fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        // One pipe for both: cargo names a binary on standard error before its tests on standard output.
        let (output, input) = io::pipe().context("cannot make a pipe")?;
        let mut child = command
            .stdout(input.try_clone()?)
            .stderr(input)
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        // Else the pipe has no end: the command holds its other end, too.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut reader = Reader::default();
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read the tests' output")?;
            let line = String::from_utf8_lossy(&line);
            say(&line)?;
            reader.line(&line);
        }
        let status = child.wait()?;
        self.passed += reader.passed;
        self.binaries.append(&mut reader.binaries);
        self.skipped.append(&mut reader.ignored);
        if !status.success() && reader.failed.is_empty() {
            // A binary that did not compile, or died without a result.
            reader.failed.push(format!("{name} ({status})"));
        }
        self.failed.append(&mut reader.failed);
        Ok(())
    }

    /// What ran, what was skipped, what failed, and the counts.
    fn print(&self) -> Result<()> {
        for binary in &self.binaries {
            say(&format!("ran      {binary}"))?;
        }
        for skipped in &self.skipped {
            say(&format!("SKIPPED: {skipped}"))?;
        }
        for failed in &self.failed {
            say(&format!("FAILED: {failed}"))?;
        }
        if self.passed == 0 {
            say("no test passed, which counts as a failure of the run")?;
        }
        say(&format!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        ))
    }

    /// A run without a single test proves nothing and is no success, nor is CI's where something was skipped.
    fn is_success(&self) -> bool {
        let may_skip = std::env::var_os("CI").is_none_or(|value| value.is_empty());
        self.failed.is_empty() && self.passed > 0 && (may_skip || self.skipped.is_empty())
    }
}

fn say(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot write to standard output")
}

/// Reads libtest's output line by line.
#[derive(Default)]
struct Reader {
    passed: u64,
    failed: Vec<String>,
    ignored: Vec<String>,
    /// Names seen since the last `failures:`; the second such list of a binary holds nothing but names.
    listed: Option<Vec<String>>,
    /// The binary whose output is being read.
    binary: String,
    /// See [`Summary::binaries`].
    binaries: Vec<String>,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if let Some(name) = binary(line) {
            self.binary = name;
        } else if line == "failures:" {
            self.listed = Some(Vec::new());
        } else if let (Some(listed), Some(name)) = (&mut self.listed, line.strip_prefix("    ")) {
            listed.push(name.to_owned());
        } else if let Some(at) = line.find("test result: ") {
            self.result(&line[at..]);
        } else if let Some((name, reason)) = ignored(line) {
            self.ignored.push(format!("{name}: {reason}"));
        }
    }

    /// `test result: FAILED. 3 passed; 1 failed; 0 ignored; …`
    fn result(&mut self, line: &str) {
        let count = |what: &str| -> u64 {
            let words: Vec<&str> = line
                .split([' ', ';'])
                .filter(|word| !word.is_empty())
                .collect();
            words
                .windows(2)
                .find(|pair| pair[1] == what)
                .and_then(|pair| pair[0].parse().ok())
                .unwrap_or(0)
        };
        self.passed += count("passed");
        let mut names = self.listed.take().unwrap_or_default();
        let failed = usize::try_from(count("failed")).unwrap_or(usize::MAX);
        // The count is what is sure: a test's own output may look like a list of names.
        names = names.split_off(names.len().saturating_sub(failed));
        names.resize_with(failed, || "a test whose name was not read".to_owned());
        let binary = &self.binary;
        if count("passed") + count("failed") > 0 {
            let failures = match failed {
                0 => String::new(),
                number => format!(", {number} failed"),
            };
            let passed = count("passed");
            self.binaries
                .push(format!("{binary}: {passed} passed{failures}"));
        }
        let names = names.iter().map(|name| format!("{binary}: {name}"));
        self.failed.extend(names);
    }
}

/// What cargo is about to run: `Running tests/flows.rs (target/debug/deps/flows-0123)`, `Doc-tests lb_common`.
fn binary(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("documentation of {name}"));
    }
    let (_, path) = line.strip_prefix("Running ")?.split_once(" (")?;
    let file = path.strip_suffix(')')?.rsplit('/').next()?;
    let (name, _hash) = file.rsplit_once('-')?;
    Some(name.to_owned())
}

/// `test NAME ... ignored, REASON` of libtest, `test NAME    ... ignored (REASON)` of libtest-mimic → name and reason.
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    let of_mimic = || rest.strip_prefix(" (")?.strip_suffix(')');
    let reason = rest.strip_prefix(", ").or_else(of_mimic);
    Some((name.trim_end(), reason.unwrap_or("marked as ignored")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
     Running unittests src/lib.rs (target/debug/deps/lb_one-0123abc)

running 4 tests
test a::passes ... ok
test a::fails ... FAILED
test a::waits ... ignored, needs a network
test a::other ... ignored
test a::third      ... ignored (needs root (CAP_SYS_ADMIN))

failures:

---- a::fails stdout ----
    not a name
thread 'a::fails' panicked

failures:
    a::fails

test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running tests/two.rs (target/debug/deps/lb_two-0123abc)
glued to a child's output test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out
";

    #[test]
    fn counts_and_names_of_all_binaries_are_read() {
        let mut reader = Reader::default();
        OUTPUT.lines().for_each(|line| reader.line(line));
        assert_eq!(reader.passed, 13);
        assert_eq!(reader.failed, ["lb_one: a::fails"]);
        assert_eq!(
            reader.binaries,
            ["lb_one: 1 passed, 1 failed", "lb_two: 12 passed"]
        );
        assert_eq!(
            reader.ignored,
            [
                "a::waits: needs a network",
                "a::other: marked as ignored",
                "a::third: needs root (CAP_SYS_ADMIN)"
            ]
        );
    }

    #[test]
    fn a_failed_command_without_a_failed_test_counts_as_failed() {
        let mut summary = Summary::default();
        summary.run("false", &mut Command::new("false")).unwrap();
        assert_eq!(summary.failed.len(), 1);
        assert!(!summary.is_success());
    }

    #[test]
    fn no_test_at_all_is_a_failure() {
        assert!(!Summary::default().is_success());
        let one = Summary {
            passed: 1,
            ..Summary::default()
        };
        assert!(one.is_success());
    }
}
