//! Time → flows that are over leave the maps, a few thousand entries a look.

use std::time::{Duration, Instant};

use lb_common::abi::Clock;

use crate::{
    bpf::maps::ClockReader,
    dataplane::{
        MapStore,
        gc::{FlowGc, Now, Timeouts},
    },
    error::chain,
};

/// Between two looks at flows: a fourth of a second, so that one look stays under a millisecond.
pub(super) const INTERVAL: Duration = Duration::from_millis(250);
/// Between two rounds over all flows: a round walks every bucket, also of empty tables.
const ROUND: Duration = Duration::from_secs(2);
/// Entries a look.
const ENTRIES: usize = 8_192;
/// The walk over the flows, and the clock that ages are told by.
#[derive(Debug)]
pub(super) struct Ageing {
    gc: FlowGc,
    /// When the next round over all flows begins.
    rest: Option<Instant>,
    clock: ClockReader,
    hz: Hz,
}

impl Ageing {
    pub(super) fn new(clock: ClockReader) -> Ageing {
        Ageing {
            gc: FlowGc::new(Timeouts::default()),
            rest: None,
            clock,
            hz: Hz::default(),
        }
    }

    /// Jiffies a second; 0: the clock cannot be read.
    pub(super) fn hz(&mut self) -> u32 {
        let clock = self.clock.now();
        clock.map_or(0, |clock| self.hz.measure(&clock))
    }

    /// Entries that the last round found in `flows_v4`, `openings_v4`, `flows_v6`, `openings_v6`.
    pub(super) fn entries(&self) -> [usize; 4] {
        self.gc.entries()
    }

    /// Looks at the next flows.
    pub(super) fn collect(&mut self, store: &mut impl MapStore) {
        if self.rest.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let clock = match self.clock.now() {
            Ok(clock) => clock,
            Err(error) => return tracing::error!("flows are not aged: {}", chain(&error)),
        };
        let now = Now {
            stamp: clock.stamp(),
            hz: self.hz.measure(&clock),
        };
        match self.gc.tick(store, now, ENTRIES) {
            Ok(report) => {
                self.rest = report.is_round_complete.then(|| Instant::now() + ROUND);
                if report.removed > 0 {
                    tracing::debug!(removed = report.removed, "flows aged");
                }
            }
            Err(error) => tracing::error!("flows are not aged: {}", chain(&error)),
        }
    }
}

/// Jiffies a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Hz(u32);

impl Hz {
    const USUAL: [u32; 4] = [100, 250, 300, 1000];

    /// The rate that explains a reading best, found once. The kernel starts `jiffies` five minutes before 32 bits
    /// are full, so one reading is enough but around these five minutes; there the default of the time answers.
    fn measure(&mut self, clock: &Clock) -> u32 {
        let seconds = clock.monotonic_ns / 1_000_000_000;
        if self.0 == 0 && !(240..360).contains(&seconds) {
            let seconds = i128::from(seconds) - 300;
            let ticks = i128::from(clock.jiffies) - (1 << 32);
            let miss = |hz: &u32| (ticks - i128::from(*hz) * seconds).abs();
            self.0 = Self::USUAL.into_iter().min_by_key(miss).unwrap_or(250);
        }
        if self.0 == 0 { 250 } else { self.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reading_of_the_clock_tells_its_rate() {
        for hz in Hz::USUAL {
            for seconds in [1u64, 60, 400, 100_000] {
                let jiffies = (1u64 << 32) - 300 * u64::from(hz) + u64::from(hz) * seconds;
                let clock = Clock {
                    jiffies,
                    monotonic_ns: seconds * 1_000_000_000,
                };
                assert_eq!(
                    Hz::default().measure(&clock),
                    hz,
                    "{hz} Hz after {seconds} s"
                );
            }
        }
    }
}
