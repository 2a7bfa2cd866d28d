//! Waiting until no program holds on to what a map had before: one RCU grace period.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use lb_common::names::maps as names;

use super::{
    maps::{MapError, MapResult, bytes},
    sys,
};

/// Map-in-map that no program reads: the kernel waits for a grace period before an update of it returns.
#[derive(Debug)]
pub(crate) struct Barrier {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Barrier {
    /// Makes its two maps, which are not pinned.
    pub(crate) fn new() -> MapResult<Barrier> {
        let failed = |source| MapError::Io {
            map: names::BARRIER,
            what: "create",
            source,
        };
        let inner = sys::map_create(sys::map_type::ARRAY, 4, 4, 1, None, "barrier_inner")
            .map_err(failed)?;
        let outer = sys::map_create(
            sys::map_type::ARRAY_OF_MAPS,
            4,
            4,
            1,
            Some(inner.as_fd()),
            names::BARRIER,
        )
        .map_err(failed)?;
        Ok(Barrier { outer, inner })
    }

    /// Returns after a grace period.
    pub(crate) fn wait(&self) -> MapResult<()> {
        let inner = self.inner.as_raw_fd();
        sys::map_update(self.outer.as_fd(), bytes(&0u32), &inner.to_ne_bytes(), 0).map_err(
            |source| MapError::Io {
                map: names::BARRIER,
                what: "write",
                source,
            },
        )
    }
}
