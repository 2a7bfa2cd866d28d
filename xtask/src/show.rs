//! The tasks that run the product: demo and benchmark, which are programs of the crate lb-tests.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, anyhow, bail};

use crate::setup::{self, Tools};
use crate::{build, command, paths};

/// Builds everything and becomes the program `bin` of lb-tests.
///
/// Becomes, not starts: ^C then reaches that program alone, which cleans up before the shell is back.
pub(crate) fn become_program(tools: &Tools, bin: &str, arguments: &[OsString]) -> Result<()> {
    if let Some(lack) = setup::lacks() {
        bail!("cannot run the {bin}: {lack}");
    }
    build::build(tools)?;
    let mut cargo = command::cargo();
    if arguments
        .iter()
        .any(|argument| argument == "--control-plane")
    {
        setup::setup(&["control-plane"])?.point(&mut cargo);
    }
    // Relative paths in the arguments are the caller's.
    let error = cargo
        .current_dir(std::env::current_dir().context("the current folder is gone")?)
        .args([
            "run",
            "--quiet",
            "--release",
            "--package",
            "lb-tests",
            "--bin",
            bin,
            "--manifest-path",
        ])
        .arg(paths::workspace().join("Cargo.toml"))
        .arg("--")
        .args(arguments)
        .exec();
    Err(anyhow!(error).context(format!("cannot start the {bin}")))
}
