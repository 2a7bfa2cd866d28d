//! Pins and attachments that agents left → removed. Nothing there is success, too.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result};
use lb_common::{abi::SNAT_PORTS_SLOT, names::PIN_ROOT};

use crate::{
    bpf::{
        attach::release,
        load::is_bpffs,
        maps::{Maps, pin_dir},
    },
    node::{
        netlink::Socket,
        reserved,
        snapshot::Snapshot,
        tc::{self, Direction},
    },
    port_set::PortSet,
};

/// What was removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Removed {
    /// Links and filters.
    pub attachments: usize,
    /// Pins of maps and programs.
    pub pins: usize,
}

/// Removes every version's pins below a bpf filesystem, and our filters from the interfaces of this namespace.
pub(crate) fn cleanup(bpffs: &Path) -> Result<Removed> {
    let mut removed = Removed {
        attachments: remove_filters()?,
        pins: 0,
    };
    let root = bpffs.join(PIN_ROOT);
    if !is_bpffs(bpffs).unwrap_or(false) || !root.exists() {
        return Ok(removed);
    }
    // A version of another build cannot be read, only removed.
    let ports = Maps::open_pinned(&pin_dir(bpffs))
        .and_then(|maps| {
            let mut ports = PortSet::default();
            *ports.filter_mut() = maps.port_filter.read(SNAT_PORTS_SLOT)?;
            Ok(ports)
        })
        .ok();
    for version in entries(&root)? {
        // Attachments go before what they use.
        for link in entries(&version.join("links"))? {
            release(&link).with_context(|| format!("cannot detach {}", link.display()))?;
            removed.attachments += 1;
        }
        removed.pins += remove_all(&version)?;
    }
    fs::remove_dir(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    if let Some(ports) = ports {
        reserved::release(&ports).context("cannot give the reserved ports back")?;
    }
    Ok(removed)
}

/// Removes what agents of other versions left, whose maps this one cannot read; returns how many pins. Their flows are
/// lost.
pub(crate) fn remove_other_versions(bpffs: &Path) -> Result<usize> {
    let own = pin_dir(bpffs);
    let mut pins = 0;
    for version in entries(&bpffs.join(PIN_ROOT))? {
        if version != own {
            for link in entries(&version.join("links"))? {
                release(&link).with_context(|| format!("cannot detach {}", link.display()))?;
            }
            pins += remove_all(&version)?;
        }
    }
    Ok(pins)
}

fn remove_filters() -> Result<usize> {
    let failed = "cannot list the interfaces; run as root";
    let mut socket = Socket::new().context(failed)?;
    let snapshot = Snapshot::read(&mut socket).context(failed)?;
    let mut removed = 0;
    for link in &snapshot.links {
        for direction in [Direction::Ingress, Direction::Egress] {
            let gone = tc::detach(&mut socket, link.ifindex, direction);
            removed += usize::from(
                gone.with_context(|| format!("cannot remove the filter at {}", link.name))?,
            );
        }
    }
    Ok(removed)
}

fn entries(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot list {}", dir.display())),
    }
}

/// Removes a directory of pins; returns how many pins there were.
fn remove_all(dir: &Path) -> Result<usize> {
    let mut pins = 0;
    for path in entries(dir)? {
        if path.is_dir() {
            pins += remove_all(&path)?;
        } else {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            pins += 1;
        }
    }
    fs::remove_dir(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    Ok(pins)
}
