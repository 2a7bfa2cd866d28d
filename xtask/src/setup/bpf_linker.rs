//! The BPF linker, built against the compiler's own LLVM.
//!
//! One LLVM for both means that the linker reads every bitcode the compiler writes, and that no LLVM package is needed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Rustc, Steps};
use crate::{command, paths};

const VERSION: &str = "0.13.0";

/// Returns the linker's path, after building it if it is not there.
pub(super) fn install(steps: &Steps, rustc: &Rustc) -> Result<PathBuf> {
    // The path ends up in the linker's rpath, so every toolchain has a folder of its own.
    let folder = paths::cache()?.join(format!(
        "bpf-linker-{VERSION}-rustc-{}-{}",
        rustc.release, rustc.commit
    ));
    let linker = folder.join("bin/bpf-linker");
    link_llvm(&folder.join("lib"), rustc)?;
    if linker.is_file() {
        return Ok(linker);
    }
    let mut cargo = command::cargo();
    cargo
        .env("LLVM_PREFIX", &folder)
        // Its build script's backtrace would hide what it says.
        .env("RUST_BACKTRACE", "0")
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{}", rustc.llvm_major)])
        .arg("--root")
        .arg(&folder);
    let text =
        format!("bpf-linker {VERSION}: building it against the compiler's LLVM (about a minute)");
    steps
        .during(&text, || command::read(&mut cargo))
        .context("cannot build bpf-linker; is the crate registry reachable?")?;
    Ok(linker)
}

/// Makes `libLLVM.so` and its versioned name in `lib` links to the compiler's library.
fn link_llvm(lib: &Path, rustc: &Rustc) -> Result<()> {
    let versioned = format!("libLLVM.so.{}.", rustc.llvm_major);
    let source = rustc.sysroot.join("lib");
    let name = fs::read_dir(&source)
        .with_context(|| format!("cannot list {}", source.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with(&versioned))
        .with_context(|| {
            format!(
                "{} has no {versioned}*; use a toolchain from rustup, which brings it",
                source.display()
            )
        })?;
    fs::create_dir_all(lib).with_context(|| format!("cannot create {}", lib.display()))?;
    let library = source.join(&name);
    for link in [lib.join("libLLVM.so"), lib.join(&name)] {
        if fs::read_link(&link).is_ok_and(|present| present == library) {
            continue;
        }
        if link.is_symlink() {
            fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
        }
        symlink(&library, &link).with_context(|| format!("cannot create {}", link.display()))?;
    }
    Ok(())
}
