//! The sources of `core`, which have to be compiled for the BPF target.
//!
//! rustup has them as the component rust-src. Where that cannot be fetched, Debian's package of the same compiler
//! version has the same files.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Rustc, Steps, apt};
use crate::{command, paths};

/// How long rustup may take for some 5 MB before Debian is asked.
const RUSTUP_LIMIT: Duration = Duration::from_secs(90);
/// Carries the sources of several compiler versions at once; those of older releases carry one.
const SUITE: &str = "trixie-backports";

/// Installs the sources into the compiler's sysroot if they are not there.
pub(super) fn install(steps: &Steps, rustc: &Rustc) -> Result<()> {
    let place = rustc.sysroot.join("lib/rustlib/src/rust/library");
    let is_there = || place.join("Cargo.lock").is_file();
    if is_there() {
        return Ok(());
    }
    let mut rustup = command::program("rustup");
    rustup
        .current_dir(paths::workspace())
        .args(["component", "add", "rust-src"]);
    let by_rustup = steps.during("rust-src: asking rustup for it", || {
        command::read_within(&mut rustup, RUSTUP_LIMIT)?;
        // It also succeeds for a component that its records hold and a person deleted.
        if !is_there() {
            bail!("it is installed, but {} is missing", place.display());
        }
        Ok(())
    });
    let Err(rustup_error) = by_rustup else {
        return Ok(());
    };
    steps
        .during("rust-src: rustup cannot fetch it, taking Debian's package", || from_debian(rustc, &place))
        .with_context(|| {
            format!(
                "cannot install the sources of Rust's core library, which the BPF target needs; \
                 run `rustup component add rust-src`, which said: {rustup_error:#}; Debian's package instead"
            )
        })
}

fn from_debian(rustc: &Rustc, place: &Path) -> Result<()> {
    let repositories = apt::debian_repositories()?;
    let mut failed = None;
    for repository in &repositories {
        match from_repository(rustc, place, repository) {
            Ok(()) => return Ok(()),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.context("apt has no Debian repository to take it from")?)
}

fn from_repository(rustc: &Rustc, place: &Path, repository: &str) -> Result<()> {
    let suite = apt::Suite::open(repository, SUITE)?;
    let version = suite
        .versions("rust-src")?
        .into_iter()
        .find(|version| is_of_release(version, &rustc.release))
        .with_context(|| format!("{SUITE} no longer has rust-src {}", rustc.release))?;
    let package = suite.download("rust-src", &version)?;

    // Unpacked beside its place, then moved: an interrupted run leaves nothing that looks complete.
    let parent = place
        .parent()
        .context("the sysroot has no place for sources")?;
    let partial = parent.join(".lb-ebpf-partial");
    fs::create_dir_all(&partial).with_context(|| {
        format!(
            "cannot write to the toolchain's folder {}",
            parent.display()
        )
    })?;
    let unpacked = unpack(&package, &rustc.release, &partial).and_then(|()| {
        if place.exists() {
            fs::remove_dir_all(place)?;
        }
        fs::rename(partial.join("library"), place)
            .with_context(|| format!("cannot create {}", place.display()))
    });
    fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    unpacked
}

/// Debian appends its own revision to the upstream version: `1.95.0+dfsg1-1~bpo13+1`.
fn is_of_release(version: &str, release: &str) -> bool {
    version
        .strip_prefix(release)
        .is_some_and(|rest| rest.starts_with(['+', '-', '~']))
}

/// Unpacks the folder `library` of a package into `folder`.
fn unpack(package: &Path, release: &str, folder: &Path) -> Result<()> {
    let mut dpkg = command::program("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start `dpkg-deb`")?;
    let archive = dpkg.stdout.take().context("dpkg-deb has no output")?;
    let status = command::program("tar")
        .args(["--extract", "--strip-components=4", "--directory"])
        .arg(folder)
        .arg(format!("./usr/src/rustc-{release}/library"))
        .stdin(archive)
        .status()
        .context("cannot start `tar`")?;
    if !dpkg.wait()?.success() || !status.success() {
        bail!("cannot unpack {}", package.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_package_of_the_same_release_is_taken() {
        assert!(is_of_release("1.95.0+dfsg1-1~bpo13+1", "1.95.0"));
        assert!(!is_of_release("1.95.01-1", "1.95.0"));
        assert!(!is_of_release("1.94.0+dfsg1-1", "1.95.0"));
    }
}
