//! Waiting until no program holds on to what a map had before: one RCU grace period.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
};

use lb_common::names::maps as names;

use super::{
    maps::{MapError, MapResult, bytes},
    sys,
};

/// A wait for a grace period, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Barrier {
    maps: Arc<BarrierMaps>,
    waiting: Option<JoinHandle<MapResult<()>>>,
}

/// Map-in-map that no program reads: the kernel waits for a grace period before an update of it returns.
#[derive(Debug)]
struct BarrierMaps {
    outer: OwnedFd,
    inner: OwnedFd,
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> MapError {
    move |source| MapError::Io {
        map: names::BARRIER,
        what,
        source,
    }
}

impl Barrier {
    /// Makes its two maps, which are not pinned.
    pub(crate) fn new() -> MapResult<Barrier> {
        let inner = sys::map_create(sys::map_type::ARRAY, 4, 4, 1, None, "barrier_inner")
            .map_err(failed("create"))?;
        let outer = sys::map_create(
            sys::map_type::ARRAY_OF_MAPS,
            4,
            4,
            1,
            Some(inner.as_fd()),
            names::BARRIER,
        )
        .map_err(failed("create"))?;
        Ok(Barrier {
            maps: Arc::new(BarrierMaps { outer, inner }),
            waiting: None,
        })
    }

    /// Begins to wait.
    pub(crate) fn begin(&mut self) -> MapResult<()> {
        let maps = self.maps.clone();
        let thread = thread::Builder::new().name("grace-period".to_owned());
        let waiting = thread.spawn(move || maps.wait());
        self.waiting = Some(waiting.map_err(failed("wait for"))?);
        Ok(())
    }

    /// Whether the grace period has passed; `must_wait`: returns when it has.
    pub(crate) fn is_over(&mut self, must_wait: bool) -> MapResult<bool> {
        if let Some(waiting) = self
            .waiting
            .take_if(|thread| must_wait || thread.is_finished())
        {
            let panicked = |_panic| failed("wait for")(io::Error::other("the thread panicked"));
            waiting.join().map_err(panicked)??;
        }
        Ok(self.waiting.is_none())
    }
}

impl BarrierMaps {
    /// Returns after a grace period.
    fn wait(&self) -> MapResult<()> {
        let inner = self.inner.as_raw_fd();
        sys::map_update(self.outer.as_fd(), bytes(&0u32), &inner.to_ne_bytes(), 0)
            .map_err(failed("write"))
    }
}
