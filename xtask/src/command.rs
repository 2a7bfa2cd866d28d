//! Child processes: a name, arguments and an environment become output or one sentence that says what failed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::paths;

/// The lines of a failed command's output that are worth showing.
const LAST_LINES: usize = 15;

/// `cargo` at the root of the checkout, with the toolchain that runs this task.
///
/// Flags of the caller's shell are removed: they would end up in the BPF build and build everything twice.
pub(crate) fn cargo() -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command
        .current_dir(paths::workspace())
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .env_remove("CARGO_TARGET_DIR");
    if let Some(path) = search_path() {
        command.env("PATH", path);
    }
    // What `cargo run` tells this process about itself would reach build scripts of other packages.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// A program of this machine, found also where only administrators' `PATH` leads.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    if let Some(path) = search_path() {
        command.env("PATH", path);
    }
    command
}

/// Runs a command whose output the user sees, and fails when it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!(
            "`{}` failed ({status}); its own messages are above",
            shown(command)
        );
    }
    Ok(())
}

/// Runs a command silently and returns its standard output; a failure carries the last lines of what it wrote.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    checked(command, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`read`], and ends the command when it runs longer than `limit`.
pub(crate) fn read_within(command: &mut Command, limit: Duration) -> Result<String> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let output = wait_within(child, limit).with_context(|| {
        format!(
            "`{}` did not end within {} s",
            shown(command),
            limit.as_secs()
        )
    })?;
    checked(command, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits for a child that writes less than a pipe holds; kills it at the limit.
fn wait_within(mut child: Child, limit: Duration) -> Result<Output> {
    let deadline = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("killed");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(child.wait_with_output()?)
}

fn checked(command: &Command, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
    bail!("`{}` failed ({}):\n{last}", shown(command), output.status)
}

/// Whether a program of that name lies where [`cargo`]'s children look for it.
pub(crate) fn exists(program: &str) -> bool {
    search_path()
        .is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// `PATH` with the cache's own programs first and, last, where Debian keeps those for administrators.
fn search_path() -> Option<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = paths::cache().ok()?.join("bin");
    let folders = std::iter::once(own)
        .chain(env::split_paths(&path))
        .chain(["/usr/sbin".into(), "/sbin".into()]);
    env::join_paths(folders).ok()
}

/// The command as a person would type it.
fn shown(command: &Command) -> String {
    let name = |text: &OsStr| text.to_string_lossy().into_owned();
    let program = command.get_program().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    std::iter::once(program)
        .chain(command.get_args().map(name))
        .collect::<Vec<_>>()
        .join(" ")
}
