//! `lb-ebpf` → `target/bpf/NAME.o`: compiles the BPF programs with the flags that the verifier needs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::{Object as _, ObjectSection as _};

use crate::setup::Tools;
use crate::{command, paths};

/// Linker arguments, given after `--` so that a change of them does not rebuild `core`.
///
/// - The memcpy expansion turns every short memset and memmove into a call of a byte loop, which old kernels refuse
///   (`back-edge from insn …`) and new ones verify at three times the cost.
/// - The memory builtins call a `memcmp` whose length LLVM removed (`R3 is not a scalar`).
const LINK_ARGS: [&str; 2] = [
    "-Clink-arg=--disable-expand-memcpy-in-order",
    "-Clink-arg=--disable-memory-builtins",
];

/// Builds objects of `lb-ebpf` and leaves them at [`paths::bpf_object`]: `lb`, the programs; `front`, the benchmark's own;
/// `table`, the record table's.
pub(crate) fn build(tools: &Tools, names: &[&str]) -> Result<()> {
    for name in names {
        command::run(
            cargo(tools, "rustc")
                .args(["--release", "--package", "lb-ebpf", "--bin", name])
                .arg("--")
                .args(LINK_ARGS),
        )?;
        let built = paths::bpf_target()
            .join("bpfel-unknown-none/release")
            .join(name);
        let object =
            fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
        check(&object).with_context(|| format!("{} would not load", built.display()))?;
        replace(&paths::bpf_object(name), &object)?;
    }
    Ok(())
}

/// Checks the BPF programs with clippy, under the flags they are built with.
pub(crate) fn clippy(tools: &Tools) -> Result<()> {
    let mut command = cargo(tools, "clippy");
    command.args([
        "--release",
        "--package",
        "lb-ebpf",
        "--bins",
        "--",
        "-Dwarnings",
    ]);
    command::run(&mut command)
}

/// `cargo VERB` for the BPF target.
fn cargo(tools: &Tools, verb: &str) -> Command {
    let flags = [
        // Maps lose their BTF with less.
        "-Cdebuginfo=2".to_owned(),
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        format!("-Clinker={}", tools.bpf_linker.display()),
    ];
    let mut command = command::cargo();
    command
        // The compiler is a stable one; building `core` for a target without a prebuilt one is not stable yet.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        // One unit, optimised as a whole, with the debug information that BTF is made of.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false")
        .arg(verb)
        .args(["-Zbuild-std=core", "--target", "bpfel-unknown-none"])
        .arg("--target-dir")
        .arg(paths::bpf_target());
    command
}

/// Refuses an object that holds a panic path: the kernel's own message about it says nothing.
fn check(object: &[u8]) -> Result<()> {
    let object = object::File::parse(object)?;
    let mut names = object.sections().filter_map(|section| section.name().ok());
    if let Some(name) = names.find(|name| name.starts_with(".text.unlikely")) {
        bail!(
            "it has a section {name}, so some code can panic (an index, a slice copy, unwrap, a division by a \
             variable); find it with `llvm-objdump -dr` or by taking code away"
        );
    }
    Ok(())
}

/// Replaces a file in one step, and only if it differs: its time stamp is what the agent's build script watches.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let partial = path.with_extension(format!("o.{}", std::process::id()));
    fs::write(&partial, content).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}
