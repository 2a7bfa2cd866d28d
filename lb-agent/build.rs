//! `target/bpf/lb.o`, which `cargo xtask build` leaves → `$OUT_DIR/lb.o`, which `bpf::load` embeds.
//!
//! Without the object the embedded file is empty: checks and tests that load nothing need no BPF target, and the agent
//! says at run time what to do. `LB_BPF_OBJECT` names another object.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-env-changed=LB_BPF_OBJECT");
    let source = env::var_os("LB_BPF_OBJECT").map_or_else(built_object, PathBuf::from);
    println!("cargo:rerun-if-changed={}", source.display());
    let object = match fs::read(&source) {
        Ok(object) => object,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!(
                "cargo:warning=the agent has no BPF programs inside; run `cargo xtask build` to build both"
            );
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    fs::write(variable("OUT_DIR").join("lb.o"), object)
}

fn built_object() -> PathBuf {
    let manifest = variable("CARGO_MANIFEST_DIR");
    manifest
        .parent()
        .unwrap_or(Path::new(".."))
        .join("target/bpf/lb.o")
}

/// A path that cargo sets for every build script.
fn variable(name: &str) -> PathBuf {
    env::var_os(name).map(PathBuf::from).unwrap_or_default()
}
