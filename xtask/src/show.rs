//! The tasks that run the product: demo and benchmark, which are programs of the crate lb-tests.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use anyhow::{Result, anyhow, bail};

use crate::setup::{self, RUN, setup};
use crate::{build, build_ebpf, command, paths};

/// Becomes the demo, of a build that is quickly made: optimised it takes two minutes more, and shows the same.
pub(crate) fn demo(hold: bool) -> Result<()> {
    let tools = set_up(RUN)?;
    build_ebpf::build(&tools, &["lb"])?;
    let bins = ["--bin", "lb-agent", "--bin", "demo"];
    let mut cargo = command::cargo();
    cargo.args(["build", "--package", "lb-agent", "--package", "lb-tests"]);
    command::run(cargo.args(bins))?;
    let options: Option<OsString> = hold.then(|| "--hold".into());
    become_program("debug/demo", options.as_slice(), &tools)
}

/// Becomes the benchmark. `--control-plane` compares with a real one, which is set up first.
pub(crate) fn bench(options: &[OsString]) -> Result<()> {
    let mut parts = RUN.to_vec();
    if options.iter().any(|option| option == "--control-plane") {
        parts.push("control-plane");
    }
    let tools = set_up(&parts)?;
    build::build(&tools)?;
    build_ebpf::build(&tools, &["front"])?;
    let mut cargo = command::cargo();
    cargo.args(["build", "--release", "--package", "lb-tests"]);
    command::run(cargo.args(["--bin", "bench"]))?;
    become_program("release/bench", options, &tools)
}

fn set_up(parts: &[&str]) -> Result<setup::Tools> {
    match setup::lacks() {
        Some(lack) => bail!("this machine cannot run it: {lack}"),
        None => setup(parts),
    }
}

/// Becomes, not starts: ^C then reaches that program alone, which cleans up before the shell is back.
fn become_program(bin: &str, options: &[OsString], tools: &setup::Tools) -> Result<()> {
    let mut program = command::program(paths::target().join(bin));
    tools.point(&mut program);
    let error = program.args(options).exec();
    Err(anyhow!(error).context(format!("cannot start {bin}")))
}
