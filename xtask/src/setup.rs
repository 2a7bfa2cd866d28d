//! Parts of xtask/setup.sh → where its programs are. What is missing is installed first.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{command, paths};

/// What a build needs.
pub(crate) const BUILD: &[&str] = &["build"];
/// What the checks besides tests need.
pub(crate) const LINT: &[&str] = &["build", "deny"];
/// What demo and benchmark need.
pub(crate) const RUN: &[&str] = &["build", "run"];
/// What fuzzers need.
pub(crate) const FUZZ: &[&str] = &["fuzz"];
/// What all tests and checks need.
pub(crate) const ALL: &[&str] = &["build", "run", "control-plane", "deny"];

/// The first kernel whose verifier and helpers the programs need.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
/// Network namespaces and devices; loading programs and mounting bpffs. Numbers as in `linux/capability.h`.
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// Programs that lie in folders of their own.
pub(crate) struct Tools {
    /// The linker, by its whole path: never one that happens to lie in `PATH`.
    pub(crate) bpf_linker: PathBuf,
    /// The folder of etcd, Kubernetes and kube-proxy, where that part was asked for.
    control_plane: Option<PathBuf>,
}

impl Tools {
    /// Tells a command where the control plane is, where that part was asked for.
    pub(crate) fn point(&self, command: &mut Command) {
        if let Some(folder) = &self.control_plane {
            command.env("LB_CONTROL_PLANE", folder);
        }
    }
}

/// Checks what the parts need and installs what is missing.
pub(crate) fn setup(parts: &[&str]) -> Result<Tools> {
    let mut script = command::program(paths::workspace().join("xtask/setup.sh"));
    let output = script
        .args(parts)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start xtask/setup.sh")?;
    if !output.status.success() {
        bail!("the machine is not set up; the reason is above");
    }
    let text = String::from_utf8(output.stdout)?;
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        Some(PathBuf::from(lines.find(|(key, _)| *key == name)?.1))
    };
    Ok(Tools {
        bpf_linker: value("LB_BPF_LINKER").unwrap_or_default(),
        control_plane: value("LB_CONTROL_PLANE"),
    })
}

/// What this machine lacks for loading programs and making namespaces; `None` if nothing.
pub(crate) fn lacks() -> Option<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    lacks_privilege(&read("/proc/self/status"))
        .or_else(|| lacks_version(read("/proc/sys/kernel/osrelease").trim()))
}

fn lacks_privilege(status: &str) -> Option<String> {
    let held = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or_default();
    let (_, name) = CAPABILITIES
        .into_iter()
        .find(|(bit, _)| held & (1 << bit) == 0)?;
    Some(format!(
        "{name} is missing, without which no network namespace can be made and no BPF program loaded; run as root \
         (in a container: privileged)"
    ))
}

fn lacks_version(release: &str) -> Option<String> {
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next()?, numbers.next()?);
    let (major, minor) = OLDEST_KERNEL;
    (version < OLDEST_KERNEL)
        .then(|| format!("the kernel is {release}, but the programs need {major}.{minor} or newer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capability_is_named() {
        assert_eq!(
            lacks_privilege("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            None
        );
        let lack = |status| lacks_privilege(status).unwrap();
        assert!(lack("CapEff:\t0000000000001000\n").starts_with("CAP_SYS_ADMIN"));
        assert!(lack("").starts_with("CAP_NET_ADMIN"));
    }

    #[test]
    fn old_kernel_is_named_and_new_ones_pass() {
        assert!(
            lacks_version("5.4.0-150-generic")
                .unwrap()
                .contains("5.4.0-150-generic")
        );
        assert_eq!(lacks_version("5.10.262"), None);
        assert_eq!(lacks_version("6.1.0-40-amd64"), None);
    }
}
