//! Where things lie: the checkout, its build output, and the tools that outlive a `cargo clean`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the checkout.
pub(crate) fn workspace() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask
        .parent()
        .map_or_else(|| xtask.clone(), Path::to_path_buf)
}

/// All files below a folder of the checkout but those that are built and git's own.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(folder);
    for entry in entries.with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            files.extend(self::files(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Build output of the native crates.
pub(crate) fn target() -> PathBuf {
    workspace().join("target")
}

/// Build output of the BPF target. Apart from [`target`], so that its flags do not rebuild native crates.
///
/// `lb-agent/build.rs` expects the finished object in this folder.
pub(crate) fn bpf_target() -> PathBuf {
    target().join("bpf")
}

/// The finished object of the BPF program `bin`.
pub(crate) fn bpf_object(bin: &str) -> PathBuf {
    bpf_target().join(format!("{bin}.o"))
}

/// The folder of tools that [`mod@crate::setup`] builds: `$XDG_CACHE_HOME/lb-ebpf` or `~/.cache/lb-ebpf`.
pub(crate) fn cache() -> Result<PathBuf> {
    let folder = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = folder("XDG_CACHE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .context(
            "neither XDG_CACHE_HOME nor HOME names a folder; set one to say where tools may be kept",
        )?;
    Ok(base.join("lb-ebpf"))
}
