//! The tests' control plane and the kube-proxy they compare with: found, or built once from the tools module.
//!
//! `KUBEBUILDER_ASSETS` and `PATH` are looked at first. Programs built here lie in the cache, in a folder named after the
//! module's checksums: another version is another folder.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{Steps, go};
use crate::{command, paths};

/// Folders that hold the programs, separated as in `PATH`; tests read it.
pub(crate) const FOLDERS: &str = "LB_CONTROL_PLANE";

/// Programs and their packages.
const PROGRAMS: [(&str, &str); 5] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    (
        "kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
    ),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
];

/// The value of [`FOLDERS`], after building what nobody has.
pub(super) fn install(steps: &Steps) -> Result<OsString> {
    let module = paths::workspace().join("tests/control-plane");
    let version = version(&module)?;
    let mut folders = Vec::new();
    for (name, _) in PROGRAMS {
        match found(steps, name, &version) {
            Some(folder) => folders.push(folder),
            None => {
                folders.push(build(steps, &module, &version)?);
                break;
            }
        }
    }
    folders.dedup();
    env::join_paths(folders)
        .context("a folder of the control plane cannot stand in a list of paths")
}

/// The folder of a program that is there already.
fn found(steps: &Steps, name: &str, version: &str) -> Option<PathBuf> {
    if let Some(folder) = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
        && folder.join(name).is_file()
    {
        return Some(folder);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let folder = env::split_paths(&path).find(|folder| folder.join(name).is_file())?;
    let mut program = Command::new(folder.join(name));
    program.arg(if name == "kubectl" {
        "version"
    } else {
        "--version"
    });
    if name == "kubectl" {
        program.arg("--client");
    }
    let text = command::read(&mut program).unwrap_or_default();
    // Results are compared with one version; etcd is only a store.
    if name == "etcd" || text.contains(version) {
        return Some(folder);
    }
    steps.say(&format!(
        "control plane: the {name} in {} is not {version}",
        folder.display()
    ));
    None
}

/// The version of Kubernetes that the module names.
fn version(module: &Path) -> Result<String> {
    let file = module.join("go.mod");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    text.lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
        .and_then(|rest| rest.split(' ').next())
        .map(str::to_owned)
        .with_context(|| format!("{} names no version of k8s.io/kubernetes", file.display()))
}

/// Builds all programs into the cache unless they are there.
fn build(steps: &Steps, module: &Path, version: &str) -> Result<PathBuf> {
    let sums = fs::read(module.join("go.sum")).context("cannot read the tools module's go.sum")?;
    let key: String = Sha256::digest(sums)
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let folder = paths::cache()?.join(format!("control-plane-{key}"));
    let is_there = |folder: &Path| PROGRAMS.iter().all(|(name, _)| folder.join(name).is_file());
    if is_there(&folder) {
        return Ok(folder);
    }
    let go = go::install(steps)?;
    // Renamed at the end: an interrupted run leaves nothing that looks complete.
    let partial = folder.with_extension("partial");
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let mut build = go.command();
    build
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-buildvcs=false")
        .args(["build", "-trimpath"])
        .arg(format!(
            "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion={version}"
        ))
        .arg("-o")
        .arg(format!("{}/", partial.display()))
        .args(PROGRAMS.map(|(_, package)| package));
    let text = format!(
        "control plane: building etcd and Kubernetes {version} (6 minutes on two idle cores, once)"
    );
    steps
        .during(&text, || command::read(&mut build))
        .context("cannot build the control plane; is the Go module proxy reachable? KUBEBUILDER_ASSETS may name a folder of programs instead")?;
    // The package's folder gives the program its name.
    fs::rename(partial.join("server"), partial.join("etcd")).context("etcd was not built")?;
    if !is_there(&partial) {
        bail!("{} is not complete after the build", partial.display());
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot replace {}", folder.display()))?;
    }
    fs::rename(&partial, &folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_names_the_version() {
        let version = version(&paths::workspace().join("tests/control-plane")).unwrap();
        assert!(version.starts_with("v1."), "{version}");
    }
}
