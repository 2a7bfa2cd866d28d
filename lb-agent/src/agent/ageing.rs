//! Time → flows that are over leave the tables: a look of at most a millisecond at a time, more often the fuller they are.

use std::time::{Duration, Instant};

use lb_common::abi::Clock;

use crate::{
    bpf::maps::ClockReader,
    dataplane::{
        Dataplane, MapStore,
        gc::{FlowGc, Found, Now},
    },
    error::chain,
};

/// A look ends after this time, up to what deleting the flows takes that it has found last.
const BUDGET: Duration = Duration::from_micros(700);
/// From a change of frontends to the look at flows that follow it: programs that had read the old entry have ended.
const GRACE: Duration = Duration::from_millis(10);
/// Between two looks when flows are to follow a change.
const HURRY: Duration = Duration::from_millis(5);
/// After a look that failed.
const RETRY: Duration = Duration::from_secs(1);

/// The walk over the flows, and the clock that ages are told by.
#[derive(Debug)]
pub(super) struct Ageing {
    gc: FlowGc,
    /// When the next look is due.
    next: Instant,
    clock: ClockReader,
    hz: Hz,
}

impl Ageing {
    pub(super) fn new(clock: ClockReader) -> Ageing {
        Ageing {
            gc: FlowGc::default(),
            next: Instant::now(),
            clock,
            hz: Hz::default(),
        }
    }

    /// Jiffies a second; 0: the clock cannot be read.
    pub(super) fn hz(&mut self) -> u32 {
        let clock = self.clock.now();
        clock.map_or(0, |clock| self.hz.measure(&clock))
    }

    /// What complete rounds over all flows have found.
    pub(super) fn found(&self) -> &Found {
        self.gc.found()
    }

    /// When the next look is due.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Frontends may have changed. Looks at flows if it is time: whoever writes one change after the other comes to
    /// nothing else.
    pub(super) fn changed(&mut self, dataplane: &mut Dataplane<impl MapStore>) {
        let now = Instant::now();
        if self.gc.is_behind(dataplane.frontend_moves()) {
            self.next = self.next.min(now + GRACE);
        }
        if self.next <= now {
            self.collect(dataplane);
        }
    }

    /// Looks at the next flows.
    pub(super) fn collect(&mut self, dataplane: &mut Dataplane<impl MapStore>) {
        let begun = Instant::now();
        self.next = begun + RETRY;
        let clock = match self.clock.now() {
            Ok(clock) => clock,
            Err(error) => return tracing::error!("flows are not aged: {}", chain(&error)),
        };
        let now = Now {
            stamp: clock.stamp(),
            hz: self.hz.measure(&clock),
        };
        let mut has_time = || begun.elapsed() < BUDGET;
        match dataplane.age(&mut self.gc, now, &mut has_time) {
            Ok(report) => {
                let is_behind = self.gc.is_behind(dataplane.frontend_moves());
                let fill = fill(self.gc.found());
                self.next = begun + pause(is_behind, report.is_round_complete, fill);
                if report.removed > 0 {
                    tracing::debug!(removed = report.removed, "flows aged");
                }
            }
            Err(error) => tracing::error!("flows are not aged: {}", chain(&error)),
        }
    }
}

/// Per cent of the fuller table's places that hold something.
fn fill(found: &Found) -> u64 {
    let fills = found.tables.map(|table| table.usage.fill());
    fills.into_iter().max().unwrap_or(0)
}

/// Between two looks, and between two rounds.
const fn pause(is_behind: bool, is_round_complete: bool, fill: u64) -> Duration {
    match (is_behind, is_round_complete, fill) {
        (true, ..) => HURRY,
        (_, true, 0..50) => Duration::from_secs(2),
        (_, true, _) => Duration::from_millis(500),
        (_, false, 0..50) => Duration::from_millis(250),
        (_, false, 50..80) => Duration::from_millis(50),
        (_, false, _) => Duration::from_millis(20),
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
    fn a_fuller_table_is_looked_at_more_often() {
        let pauses = [10, 60, 90].map(|fill| pause(false, false, fill));
        assert!(pauses.is_sorted_by(|a, b| a > b), "{pauses:?}");
        assert!(pause(false, true, 90) < pause(false, true, 10));
        assert!(pause(true, true, 10) < pauses[2]);
    }

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
