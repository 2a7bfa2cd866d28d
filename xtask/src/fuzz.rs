//! `fuzz/fuzz_targets/` → programs of libFuzzer, each run for a while → one line a target.
//!
//! A run goes on from the kept inputs (`fuzz/corpus`, `fuzz/regressions`) and from what earlier runs found. It writes below
//! `target/fuzzing` only: an input that is worth keeping is copied by hand.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::setup::{self, setup};
use crate::{command, paths};

/// Named, so that cargo tells what runs in the fuzzer from what runs in the build: only the first is instrumented.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What libFuzzer learns from: the edges that an input takes, and the values that it is compared with.
const FLAGS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// An input that takes longer hangs.
const INPUT_SECS: u32 = 20;

/// What `cargo xtask fuzz` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A file of fuzz/fuzz_targets, without its ending
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// Builds every target and runs the one that was asked for, or all.
pub(crate) fn fuzz(options: &Options) -> Result<ExitCode> {
    let mut targets = targets()?;
    if let Some(wanted) = &options.target {
        if !targets.contains(wanted) {
            bail!("there is no target {wanted}, but {}", targets.join(", "));
        }
        targets.retain(|target| target == wanted);
    }
    setup(setup::FUZZ)?;
    build()?;
    let mut code = ExitCode::SUCCESS;
    for target in &targets {
        if !run(target, options.seconds)? {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let files = paths::files(&paths::workspace().join("fuzz/fuzz_targets"))?;
    let name = |path: &PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
    let mut names: Vec<_> = files.iter().filter_map(name).collect();
    names.sort();
    Ok(names)
}

fn build() -> Result<()> {
    command::run(
        command::cargo()
            .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"))
            // No target loads the programs.
            .env("LB_BPF_OBJECT", "/dev/null")
            .args(["build", "--profile", "fuzz", "--target", TRIPLE])
            .args(["--package", "lb-fuzz", "--bins", "--features", "libfuzzer"]),
    )
}

/// Runs a target and says what came of it; whether it found no fault.
fn run(target: &str, seconds: u32) -> Result<bool> {
    let folder = paths::target().join("fuzzing").join(target);
    let found = folder.join("corpus");
    let faults = folder.join("faults");
    for folder in [&found, &faults] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let path = folder.join("log");
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;

    eprintln!("fuzzing {target} for {seconds} s; log: {}", path.display());
    let start = Instant::now();
    let mut fuzzer = command::program(paths::target().join(TRIPLE).join("fuzz").join(target));
    fuzzer
        .current_dir(paths::workspace())
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECS}"))
        .arg(format!("-artifact_prefix={}/", faults.display()))
        .arg("-print_final_stats=1")
        // The first is where it writes.
        .arg(found)
        .args(kept(target))
        .stdout(log.try_clone()?)
        .stderr(log);
    let status = fuzzer
        .status()
        .with_context(|| format!("cannot start the fuzzer of {target}"))?;
    let took = start.elapsed().as_secs_f32();

    let log = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let log = String::from_utf8_lossy(&log);
    let seen = Seen::of(&log);
    let outcome = match (status.success(), &seen.fault) {
        (true, _) => "no fault".to_owned(),
        (false, Some(fault)) => format!("FAULT: {fault}"),
        (false, None) => format!("FAILED: {status}, see {}", path.display()),
    };
    say(&format!(
        "{target}: {} executions in {took:.0} s, {} places covered, {} of them new, {outcome}",
        seen.executions,
        seen.covered,
        seen.covered.saturating_sub(seen.covered_before),
    ));
    if let (false, Some(fault)) = (status.success(), &seen.fault) {
        advise(target, fault, &log);
    }
    Ok(status.success())
}

/// The folders of a target's kept inputs.
fn kept(target: &str) -> impl Iterator<Item = PathBuf> {
    let folders = ["corpus", "regressions"];
    folders
        .map(|folder| Path::new("fuzz").join(folder).join(target))
        .into_iter()
        .filter(|folder| paths::workspace().join(folder).is_dir())
}

/// What failed, and how the input becomes a test.
fn advise(target: &str, fault: &str, log: &str) {
    let message = log.lines().skip_while(|line| !line.contains("panicked at"));
    let is_message = |line: &&str| {
        !["stack backtrace", "note: ", "=="]
            .iter()
            .any(|end| line.starts_with(end))
    };
    for line in message.take_while(is_message).take(8) {
        eprintln!("    {line}");
    }
    eprintln!(
        "    To make it a test of `cargo test -p lb-fuzz`, give it a name that says what it shows:\n    \
         mkdir -p fuzz/regressions/{target} && cp {fault} fuzz/regressions/{target}/NAME"
    );
}

/// What a log of libFuzzer tells.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    executions: u64,
    /// After the inputs that were there.
    covered_before: u64,
    covered: u64,
    /// The input that failed.
    fault: Option<String>,
}

impl Seen {
    fn of(log: &str) -> Self {
        let mut seen = Self::default();
        for line in log.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some(count) = first.strip_prefix('#').and_then(|text| text.parse().ok()) {
                seen.executions = count;
                let event = words.next();
                let mut words = words.skip_while(|word| *word != "cov:");
                if let Some(covered) = words.nth(1).and_then(|text| text.parse().ok()) {
                    seen.covered = covered;
                    if event == Some("INITED") {
                        seen.covered_before = covered;
                    }
                }
            } else if first == "stat::number_of_executed_units:" {
                let count = words.next().and_then(|text| text.parse().ok());
                seen.executions = count.unwrap_or(seen.executions);
            } else if let Some((_, path)) = line.split_once("Test unit written to ") {
                seen.fault = Some(path.to_owned());
            }
        }
        seen
    }
}

#[expect(clippy::print_stdout, reason = "the report of a task")]
fn say(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_coverage_and_fault_are_read() {
        let log = "\
INFO: seed corpus: files: 4 min: 64b max: 512b total: 1024b rss: 40Mb
#5\tINITED cov: 120 ft: 130 corp: 4/1024b exec/s: 0 rss: 41Mb
#99\tNEW    cov: 124 ft: 140 corp: 5/1100b lim: 512 exec/s: 0 rss: 41Mb L: 76/512 MS: 1 EraseBytes-
#4096\tpulse  cov: 124 ft: 140 corp: 5/1100b lim: 512 exec/s: 2048 rss: 41Mb
artifact_prefix='/x/'; Test unit written to /x/crash-0123
stat::number_of_executed_units: 5000
";
        let seen = Seen {
            executions: 5000,
            covered_before: 120,
            covered: 124,
            fault: Some("/x/crash-0123".to_owned()),
        };
        assert_eq!(Seen::of(log), seen);
        assert_eq!(Seen::of("cannot start\n"), Seen::default());
    }

    #[test]
    fn targets_are_found() {
        assert!(targets().unwrap().contains(&"manifests".to_owned()));
    }
}
