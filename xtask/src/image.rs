//! The agent → `target/image/lb-agent.tar`, a container image that any engine loads.
//!
//! Neither a registry nor a daemon takes part. The archive is an OCI layout that also carries the index of
//! `docker save`, so that `docker load`, `podman load`, `ctr images import` and `kind load image-archive` read it. The
//! same program makes the same archive, byte by byte.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::Object as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::setup::Tools;
use crate::{build_ebpf, command, paths};

/// Its resolver needs no shared libraries, which a static program with glibc would look for.
const TARGET: &str = "x86_64-unknown-linux-musl";
/// Without a registry's host, as deploy/ names it.
const NAME: &str = "lb-agent";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// All times in the archive: a build leaves no trace of when it ran.
const CREATED: &str = "1970-01-01T00:00:00Z";
/// Where the DaemonSet mounts what it takes from the node. They are there before, as the root is read-only.
const FOLDERS: [&str; 12] = [
    "host",
    "host/cgroup",
    "host/proc",
    "host/proc/sys",
    "host/proc/sys/net",
    "proc",
    "run",
    "run/lb-agent",
    "sys",
    "usr",
    "usr/bin",
    "tmp",
];

/// Builds the static agent and the archive.
pub(crate) fn image(tools: &Tools) -> Result<PathBuf> {
    image_of(&static_agent(tools)?)
}

/// The archive around an agent that is built.
pub(crate) fn image_of(agent: &Path) -> Result<PathBuf> {
    let program = fs::read(agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let object = object::File::parse(program.as_slice())
        .with_context(|| format!("{} is no program", agent.display()))?;
    if object.section_by_name(".interp").is_some() {
        bail!(
            "{} asks for a dynamic linker, which the image has not; remove linker flags from cargo's configuration",
            agent.display()
        );
    }
    let folder = paths::target().join("image");
    let path = folder.join("lb-agent.tar");
    let archive = archive(&program, env!("CARGO_PKG_VERSION"))?;
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, &archive))
        .with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!(
        "{}: {}, {:.1} MiB, of which the program {:.1} MiB",
        path.display(),
        reference(env!("CARGO_PKG_VERSION")),
        mebibytes(archive.len()),
        mebibytes(program.len())
    );
    Ok(path)
}

/// The image's name, complete as container engines keep it.
pub(crate) fn reference(version: &str) -> String {
    format!("docker.io/library/{NAME}:{version}")
}

fn static_agent(tools: &Tools) -> Result<PathBuf> {
    build_ebpf::build(tools, &["lb"])?;
    let installed =
        command::read(command::program("rustup").args(["target", "list", "--installed"]))?;
    if !installed.lines().any(|line| line == TARGET) {
        command::run(command::program("rustup").args(["target", "add", TARGET]))?;
    }
    command::run(
        command::cargo()
            // The C and assembly of the TLS library call no libc, so the machine's own compiler will do, as long as it
            // adds no checks that only glibc has.
            .env("CC_x86_64_unknown_linux_musl", "cc")
            .env(
                "CFLAGS_x86_64_unknown_linux_musl",
                "-U_FORTIFY_SOURCE -fno-stack-protector",
            )
            .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
            .args([
                "build",
                "--release",
                "--package",
                "lb-agent",
                "--target",
                TARGET,
            ]),
    )?;
    Ok(paths::target().join(TARGET).join("release/lb-agent"))
}

/// The whole archive around one program.
fn archive(program: &[u8], version: &str) -> Result<Vec<u8>> {
    let layer = layer(program)?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "created": CREATED,
        "config": {
            "Entrypoint": ["/usr/bin/lb-agent"],
            "Env": ["PATH=/usr/bin"],
            "Labels": {
                "org.opencontainers.image.title": NAME,
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        "history": [{ "created": CREATED, "created_by": "cargo xtask image" }],
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer)],
    }))?;
    let mut entry = descriptor(MANIFEST, &manifest);
    entry["annotations"] = json!({
        "io.containerd.image.name": reference(version),
        "org.opencontainers.image.ref.name": version,
    });
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [entry] }))?;
    let docker = serde_json::to_vec(&json!([{
        "Config": blob(&config),
        "RepoTags": [format!("{NAME}:{version}")],
        "Layers": [blob(&layer)],
    }]))?;

    let mut archive = tar::Builder::new(Vec::new());
    folder(&mut archive, "blobs")?;
    folder(&mut archive, "blobs/sha256")?;
    for content in [&config, &layer, &manifest] {
        file(&mut archive, &blob(content), 0o644, content)?;
    }
    file(&mut archive, "index.json", 0o644, &index)?;
    file(&mut archive, "manifest.json", 0o644, &docker)?;
    file(
        &mut archive,
        "oci-layout",
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(archive.into_inner()?)
}

fn layer(program: &[u8]) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for path in FOLDERS {
        folder(&mut layer, path)?;
    }
    file(&mut layer, "usr/bin/lb-agent", 0o755, program)?;
    Ok(layer.into_inner()?)
}

fn folder(archive: &mut tar::Builder<Vec<u8>>, path: &str) -> Result<()> {
    append(archive, tar::EntryType::Directory, path, 0o755, &[])
}

fn file(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    append(archive, tar::EntryType::Regular, path, mode, content)
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    path: &str,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(u64::try_from(content.len())?);
    archive.append_data(&mut header, path, content)?;
    Ok(())
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex(content))
}

fn blob(content: &[u8]) -> String {
    format!("blobs/sha256/{}", hex(content))
}

fn hex(content: &[u8]) -> String {
    let bytes = Sha256::digest(content);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / 1_048_576.0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn entries(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(archive);
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            assert_eq!(entry.header().uid().unwrap(), 0);
            let path = entry.path().unwrap().display().to_string();
            let mode = entry.header().mode().unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert!(files.insert(path, (mode, content)).is_none());
        }
        files
    }

    fn json_of(files: &BTreeMap<String, (u32, Vec<u8>)>, path: &str) -> Value {
        serde_json::from_slice(&files[path].1).unwrap()
    }

    fn blob_of<'a>(files: &'a BTreeMap<String, (u32, Vec<u8>)>, descriptor: &Value) -> &'a [u8] {
        let digest = descriptor["digest"].as_str().unwrap();
        let content = &files[&digest.replace("sha256:", "blobs/sha256/")].1;
        assert_eq!(descriptor["size"], content.len());
        assert_eq!(super::digest(content), digest);
        content
    }

    #[test]
    fn every_reference_of_the_archive_leads_to_its_blob() {
        let files = entries(&archive(b"a program", "1.2.3").unwrap());
        let index = json_of(&files, "index.json");
        let entry = &index["manifests"][0];
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            "docker.io/library/lb-agent:1.2.3"
        );
        let manifest: Value = serde_json::from_slice(blob_of(&files, entry)).unwrap();
        let config: Value = serde_json::from_slice(blob_of(&files, &manifest["config"])).unwrap();
        let layer = blob_of(&files, &manifest["layers"][0]);
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            manifest["layers"][0]["digest"]
        );

        let docker = &json_of(&files, "manifest.json")[0];
        assert_eq!(docker["RepoTags"][0], "lb-agent:1.2.3");
        assert_eq!(files[docker["Layers"][0].as_str().unwrap()].1, layer);
        assert!(files.contains_key(docker["Config"].as_str().unwrap()));

        let root = entries(layer);
        assert_eq!(root["usr/bin/lb-agent"], (0o755, b"a program".to_vec()));
        let files: Vec<_> = root
            .values()
            .filter(|(_, content)| !content.is_empty())
            .collect();
        assert_eq!(
            files.len(),
            1,
            "the image holds the program and nothing else"
        );
    }

    #[test]
    fn same_program_makes_the_same_archive() {
        let one = archive(b"a program", "1.2.3").unwrap();
        assert_eq!(one, archive(b"a program", "1.2.3").unwrap());
        assert_ne!(one, archive(b"another", "1.2.3").unwrap());
    }
}
