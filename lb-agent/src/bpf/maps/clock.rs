//! The kernel's clocks, read by a pinned program.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use lb_common::{abi::Clock, names::programs};

use super::pin::{MapError, MapResult, program_pin};
use crate::bpf::sys;

/// Reads the kernel's clocks through the pinned program `clock`, so that stamps of flows can be compared.
#[derive(Debug)]
pub(crate) struct ClockReader {
    program: OwnedFd,
}

impl ClockReader {
    /// Opens the pinned program below a pin directory.
    pub(crate) fn open_pinned(dir: &Path) -> MapResult<ClockReader> {
        let path = program_pin(dir, programs::CLOCK);
        let program = sys::obj_get(&path, 0).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                MapError::Missing { path }
            } else {
                MapError::Open { path, source }
            }
        })?;
        Ok(ClockReader { program })
    }

    /// The clocks now.
    pub(crate) fn now(&self) -> MapResult<Clock> {
        let mut packet = [0u8; 64];
        sys::prog_test_run(self.program.as_fd(), &mut packet).map_err(|source| MapError::Io {
            map: programs::CLOCK,
            what: "run the program in place of",
            source,
        })?;
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| packet[at + i]));
        Ok(Clock {
            jiffies: word(0),
            monotonic_ns: word(8),
        })
    }
}
