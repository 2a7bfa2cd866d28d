//! A machine with rustup, git and a C compiler → one that can build, test and run this project.
//!
//! Looks first and installs only what is missing, so a run that finds everything costs a few file look-ups.

mod apt;
mod bpf_linker;
mod control_plane;
mod go;
pub(crate) mod machine;
mod programs;
mod rust_src;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{command, paths};

/// What the BPF build needs to know of this machine.
pub(crate) struct Tools {
    /// The linker, by its whole path: never one that happens to lie in `PATH`.
    pub(crate) bpf_linker: PathBuf,
}

/// The compiler of this checkout.
struct Rustc {
    /// As in `1.95.0`.
    release: String,
    /// Short commit hash: two builds of one release do not share tools.
    commit: String,
    /// As in `22`.
    llvm_major: String,
    sysroot: PathBuf,
}

/// What is set up: only what a build needs, or what tests, demo and benchmark use besides.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Build,
    Run,
}

/// The environment variable of the tests that names the folders of the control plane, and its value, after building
/// what is missing.
pub(crate) fn control_plane() -> Result<(&'static str, OsString)> {
    let steps = Steps {
        start: Instant::now(),
    };
    let lock = locked()?;
    let folders = control_plane::install(&steps)?;
    drop(lock);
    Ok((control_plane::FOLDERS, folders))
}

/// What a kind cluster needs of the machine's packages, installed where it is missing.
pub(crate) fn containers() -> Result<()> {
    let steps = Steps {
        start: Instant::now(),
    };
    let _lock = locked()?;
    let missing: Vec<&str> = [("dockerd", "docker.io"), ("debootstrap", "debootstrap")]
        .into_iter()
        .filter(|(program, _)| !command::exists(program))
        .map(|(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    if !machine::is_root() || !command::exists("apt-get") {
        bail!("{packages} is missing; install it");
    }
    steps.during(&format!("installing {packages}"), || apt::install(&missing))
}

/// Gives a command that builds Go programs a Go that can, fetched where it is missing.
pub(crate) fn point_to_go(command: &mut Command) -> Result<()> {
    let steps = Steps {
        start: Instant::now(),
    };
    let _lock = locked()?;
    go::install(&steps)?.point(command)
}

/// Held by one set-up at a time: two checkouts may set up at once.
fn locked() -> Result<File> {
    let cache = paths::cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    let lock =
        File::create(cache.join("setup.lock")).context("cannot create the set-up's lock file")?;
    lock.lock().context("cannot lock the set-up's lock file")?;
    Ok(lock)
}

/// Checks what `scope` needs and installs what is missing.
pub(crate) fn setup(scope: Scope) -> Result<Tools> {
    let steps = Steps {
        start: Instant::now(),
    };
    let rustc = rustc()?;
    let lock = locked()?;

    rust_src::install(&steps, &rustc)?;
    let bpf_linker = bpf_linker::install(&steps, &rustc)?;
    if scope == Scope::Run {
        programs::install(&steps)?;
    }
    drop(lock);
    Ok(Tools { bpf_linker })
}

/// Reports steps with the time since the start, so that nobody thinks a first run hangs.
struct Steps {
    start: Instant,
}

impl Steps {
    /// A step that takes longer than this says that it is still at work.
    const PATIENCE: Duration = Duration::from_secs(10);

    fn say(&self, text: &str) {
        eprintln!(
            "[set-up {:5.1} s] {text}",
            self.start.elapsed().as_secs_f32()
        );
    }

    /// Announces a step and carries it out.
    fn during<T>(&self, text: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.say(text);
        let (done, waits) = channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                while waits.recv_timeout(Self::PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    self.say("  still at work");
                }
            });
            let result = work();
            drop(done);
            result
        })
    }
}

fn rustc() -> Result<Rustc> {
    let in_checkout = || {
        let mut command = Command::new("rustc");
        command.current_dir(paths::workspace());
        command
    };
    let version = command::read(in_checkout().arg("-vV"))
        .context("cannot ask the Rust compiler for its version; install Rust with rustup")?;
    let sysroot = command::read(in_checkout().args(["--print", "sysroot"]))?;
    let field = |name: &str| {
        version
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .with_context(|| format!("`rustc -vV` does not tell `{name}`"))
    };
    let release = field("release")?;
    let wanted = concat!(env!("CARGO_PKG_RUST_VERSION"), ".");
    if !release.starts_with(wanted) {
        bail!(
            "rustc {release} is active, but rust-toolchain.toml names {wanted}x; unset RUSTUP_TOOLCHAIN"
        );
    }
    Ok(Rustc {
        release: release.to_owned(),
        commit: field("commit-hash")?.chars().take(9).collect(),
        llvm_major: field("LLVM version")?
            .split('.')
            .next()
            .unwrap_or_default()
            .to_owned(),
        sysroot: PathBuf::from(sysroot.trim()),
    })
}
