//! The programs that tests, demo and benchmark call, from the distribution's packages.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{Steps, apt, machine};
use crate::{command, paths};

/// A program and the package that has it in Debian and Ubuntu.
const PROGRAMS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("bpftool", "bpftool"),
    ("nft", "nftables"),
    // kube-proxy, with which we are compared, calls these.
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
];
/// Ubuntu 24.04 has bpftool in the packages of its kernels.
const UBUNTU_BPFTOOL: [&str; 2] = ["linux-tools-common", "linux-tools-generic"];

/// Installs the packages of programs that are missing.
pub(super) fn install(steps: &Steps) -> Result<()> {
    let missing: Vec<(&str, &str)> = PROGRAMS
        .into_iter()
        .filter(|(program, _)| !command::exists(program))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs = missing
        .iter()
        .map(|(program, _)| *program)
        .collect::<Vec<_>>()
        .join(", ");
    if !command::exists("apt-get") {
        bail!("missing programs: {programs}; install them with this distribution's package tool");
    }
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    if !machine::is_root() {
        bail!(
            "missing programs: {programs}; run as root, or run `apt-get install {}`",
            packages.join(" ")
        );
    }
    steps
        .during(
            &format!("packages: installing {}", packages.join(", ")),
            || {
                if let Some(at) = packages.iter().position(|package| *package == "bpftool")
                    && is_ubuntu()
                    && !apt::has_package("bpftool")
                {
                    packages.splice(at..=at, UBUNTU_BPFTOOL);
                }
                apt::install(&packages)
            },
        )
        .with_context(|| {
            format!(
                "cannot install {programs}; run `apt-get install {}`",
                packages.join(" ")
            )
        })?;
    bpftool_of_another_kernel()
}

/// Links bpftool into the cache when its wrapper refuses: Ubuntu's wants the running kernel's own package.
///
/// [`command::cargo`] puts that folder first in `PATH`.
fn bpftool_of_another_kernel() -> Result<()> {
    if command::read(command::program("bpftool").arg("version")).is_ok() {
        return Ok(());
    }
    let tool = fs::read_dir("/usr/lib/linux-tools")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bpftool")))
        .find(|path| path.is_file())
        .context("bpftool does not run; install the package of it that fits the running kernel")?;
    let bin: PathBuf = paths::cache()?.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    let link = bin.join("bpftool");
    if link.is_symlink() {
        fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
    }
    symlink(&tool, &link).with_context(|| format!("cannot create {}", link.display()))
}

fn is_ubuntu() -> bool {
    fs::read_to_string("/etc/os-release")
        .is_ok_and(|text| text.lines().any(|line| line == "ID=ubuntu"))
}
