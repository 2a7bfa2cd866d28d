//! A pin directory → descriptors of maps, checked against what this build expects.

use std::{
    io,
    mem::size_of,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use lb_common::{ABI_VERSION, names::PIN_ROOT};

use crate::bpf::sys;

/// Directory of the pins of this build below a bpffs mount.
pub fn pin_dir(bpffs: &Path) -> PathBuf {
    bpffs.join(PIN_ROOT).join(format!("v{ABI_VERSION}"))
}

/// Where a program is pinned.
pub(crate) fn program_pin(dir: &Path, program: &str) -> PathBuf {
    dir.join("programs").join(program)
}

/// Why a map could not be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Nothing is pinned there.
    #[error("no pinned map at {}; start the agent with `lb-agent run`, or name its bpffs with --bpffs", path.display())]
    Missing {
        /// Where the pin should be.
        path: PathBuf,
    },
    /// The pin cannot be opened.
    #[error("cannot open the pinned map {}", path.display())]
    Open {
        /// Where the pin is.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The pinned map is not what this build expects.
    #[error(
        "pinned map {map} has {field} {found}, this build expects {expected}; run `lb-agent cleanup`, then start again"
    )]
    Unfit {
        /// The map's name, which is its pin's.
        map: &'static str,
        /// The property that differs, in words.
        field: &'static str,
        /// In the kernel.
        found: u32,
        /// In this build.
        expected: u32,
    },
    /// An operation failed.
    #[error("cannot {what} map {map}")]
    Io {
        /// The map's name, which is its pin's.
        map: &'static str,
        /// The verb of the operation.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// What a map operation returns.
pub type MapResult<T> = Result<T, MapError>;

/// How a map is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Look-ups only: commands beside a running agent.
    Read,
    /// Look-ups and updates: the agent.
    Write,
}

pub(super) fn open(dir: &Path, map: &'static str, access: Access) -> MapResult<OwnedFd> {
    let path = dir.join(map);
    let flags = if access == Access::Read {
        sys::F_RDONLY
    } else {
        0
    };
    sys::obj_get(&path, flags).map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            MapError::Missing { path }
        } else {
            MapError::Open { path, source }
        }
    })
}

pub(super) fn size_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

pub(super) fn check(
    map: &'static str,
    field: &'static str,
    found: u32,
    expected: u32,
) -> MapResult<()> {
    if found == expected {
        Ok(())
    } else {
        Err(MapError::Unfit {
            map,
            field,
            found,
            expected,
        })
    }
}
