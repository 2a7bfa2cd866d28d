//! Debian's package tools: packages of this machine's own repositories, and single packages of another suite.
//!
//! Repository addresses are read from apt's configuration of this machine; none is written here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Updates the package lists and installs packages of the machine's own repositories.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    // Another package run, such as a machine's first boot, may hold the lock for a while.
    const WAIT: &str = "DPkg::Lock::Timeout=180";
    command::read(command::program("apt-get").args(["-qq", "-o", WAIT, "update"]))?;
    let mut install = command::program("apt-get");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args([
            "-qq",
            "-o",
            WAIT,
            "install",
            "--yes",
            "--no-install-recommends",
        ])
        .args(packages);
    command::read(&mut install).map(drop)
}

/// Whether the machine's repositories have a package of that name itself, not only others that provide it.
pub(super) fn has_package(package: &str) -> bool {
    command::read(command::program("apt-cache").args(["show", package]))
        .is_ok_and(|text| !text.trim().is_empty())
}

/// The addresses of repositories that may hold Debian's own packages, likeliest first.
pub(super) fn debian_repositories() -> Result<Vec<String>> {
    if !Path::new(KEYRING).exists() {
        bail!("this machine has no {KEYRING}; install debian-archive-keyring");
    }
    let targets = command::read(command::program("apt-get").args([
        "indextargets",
        "--format",
        "$(RELEASE) $(REPO_URI)",
    ]))?;
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or_default();
    let mut repositories: Vec<String> = Vec::new();
    // A suite named exactly like the release is the main archive or a third party's; security archives differ.
    for (_, repository) in targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(suite, _)| *suite == codename)
    {
        if !repositories.iter().any(|present| present == repository) {
            repositories.push(repository.to_owned());
        }
    }
    Ok(repositories)
}

/// One suite of a Debian repository with lists of its own, so that the machine's configuration stays as it is.
pub(super) struct Suite {
    /// Removed on drop.
    folder: PathBuf,
}

impl Suite {
    /// Fetches the lists of `suite`, trusting only Debian's archive keys.
    pub(super) fn open(repository: &str, suite: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("lb-ebpf-apt-{}", std::process::id()));
        let opened = Self { folder };
        for name in ["lists/partial", "cache/archives/partial"] {
            let folder = opened.folder.join(name);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let source = format!("deb [signed-by={KEYRING}] {repository} {suite} main\n");
        fs::write(opened.folder.join("source.list"), source)
            .context("cannot write apt's sources")?;
        command::read(opened.apt("apt-get").arg("update"))?;
        Ok(opened)
    }

    /// The versions of a package in this suite.
    pub(super) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let table = command::read(self.apt("apt-cache").args(["madison", package]))?;
        Ok(table
            .lines()
            .filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned()))
            .collect())
    }

    /// Downloads one package file. It lies in this suite's folder and goes with it.
    pub(super) fn download(&self, package: &str, version: &str) -> Result<PathBuf> {
        command::read(
            self.apt("apt-get")
                .args(["download", &format!("{package}={version}")]),
        )?;
        fs::read_dir(&self.folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get downloaded no file for {package} {version}"))
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = command::program(program);
        command.current_dir(&self.folder);
        for (option, value) in [
            ("Dir::Etc::SourceList", self.folder.join("source.list")),
            ("Dir::Etc::SourceParts", PathBuf::from("-")),
            ("Dir::State::Lists", self.folder.join("lists")),
            ("Dir::Cache", self.folder.join("cache")),
            // The unprivileged user of apt's downloader may not write to this folder.
            ("APT::Sandbox::User", PathBuf::from("root")),
            ("Acquire::Languages", PathBuf::from("none")),
        ] {
            command
                .arg("-o")
                .arg(format!("{option}={}", value.display()));
        }
        command.arg("-q").env("LC_ALL", "C.UTF-8");
        command
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("cannot remove {}: {error}", self.folder.display());
        }
    }
}
