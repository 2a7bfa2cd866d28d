//! Names for what a test leaves outside of memory → the removal of what a killed run left under such names.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MntFlags, umount2};

const PREFIX: &str = "lb-test-";

/// A name that no other test of this machine uses, and that tells which process owns it.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static SWEPT: OnceLock<()> = OnceLock::new();
    SWEPT.get_or_init(sweep);
    format!(
        "{PREFIX}{}-{}-{what}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Removes what killed test processes could not: mounts, directories and cgroups named by them.
fn sweep() {
    let dead = |name: &str| {
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    let named = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter(|entry| dead(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path())
            .collect()
    };
    for dir in named(&std::env::temp_dir()) {
        // Several test processes sweep at once; whoever comes second finds nothing.
        while umount2(&dir.join("bpf"), MntFlags::MNT_DETACH).is_ok() {}
        while umount2(&dir, MntFlags::MNT_DETACH).is_ok() {}
        drop(fs::remove_dir_all(&dir));
    }
    if let Ok(cgroups) = cgroup2_mount() {
        for dir in named(&cgroups) {
            drop(fs::remove_dir(&dir));
        }
    }
}

/// Where the machine's cgroup2 hierarchy is mounted: found by type, wherever that is.
pub fn cgroup2_mount() -> Result<PathBuf> {
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    mounts
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .find(|(_, filesystem)| filesystem.starts_with("cgroup2 "))
        .and_then(|(mount, _)| mount.split(' ').nth(4))
        .map(PathBuf::from)
        .ok_or_else(|| anyhow!("no mount of type cgroup2; mount one: mount -t cgroup2 none DIR"))
}
