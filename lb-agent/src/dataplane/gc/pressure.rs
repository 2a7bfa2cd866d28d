//! A table that confirmed connections fill → which of them go before their time: those that have been idle longest, and
//! nobody who moved data in the last minutes.

/// Per cent of the places above which idle connections go.
const MOST: u64 = 90;
/// Minutes of a bin, and the idle time below which a connection is left alone.
const FLOOR_SECS: u32 = 600;
/// Bins: a day of idle time.
const LAST_BIN: u32 = 144;
const BINS: usize = LAST_BIN as usize;

/// Idle times of confirmed connections, from [`FLOOR_SECS`] on.
#[derive(Clone, Debug)]
pub(super) struct IdleTimes {
    /// Confirmed connections, whatever their idle time.
    number: u64,
    /// Connections by idle time in units of [`FLOOR_SECS`], less one.
    bins: [u32; BINS],
    /// [`FLOOR_SECS`] in units of stamps.
    unit: u32,
}

impl IdleTimes {
    pub(super) fn new() -> Self {
        IdleTimes {
            number: 0,
            bins: [0; BINS],
            unit: 1,
        }
    }
    /// Forgets what was counted.
    pub(super) fn begin(&mut self, units: impl Fn(u32) -> u32) {
        self.number = 0;
        self.bins.fill(0);
        self.unit = units(FLOOR_SECS).max(1);
    }
    /// Counts a confirmed connection that stays.
    pub(super) fn add(&mut self, idle: u32) {
        self.number += 1;
        if let Some(bin) = (idle / self.unit).checked_sub(1) {
            self.bins[(bin as usize).min(BINS - 1)] += 1;
        }
    }
    /// What is to go in the next round of a table with so many places.
    pub(super) fn pressure(&self, places: u64) -> Pressure {
        let mut excess = self.number.saturating_sub(places * MOST / 100);
        let mut pressure = Pressure::default();
        for (bin, count) in (1..=LAST_BIN).rev().zip(self.bins.iter().rev()) {
            if excess == 0 || *count == 0 {
                continue;
            }
            let taken = excess.min(u64::from(*count));
            excess -= taken;
            pressure.idle = bin * self.unit;
            pressure.left += taken;
        }
        pressure
    }
}

/// Confirmed connections that go before their time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Pressure {
    /// Units of stamps that they have been idle at least.
    idle: u32,
    /// How many of them.
    left: u64,
}

impl Pressure {
    /// Whether a connection of this idle time goes; it counts as gone.
    pub(super) fn takes(&mut self, idle: u32) -> bool {
        let takes = self.left > 0 && idle >= self.idle;
        self.left -= u64::from(takes);
        takes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One stamp a second: 910 connections, a tenth of them idle for 2 h, a tenth for 20 min, the others for less.
    fn times() -> IdleTimes {
        let mut times = IdleTimes::new();
        times.begin(|secs| secs);
        for i in 0..910 {
            times.add([7_200, 1_200, 599][usize::min(i / 91, 2)]);
        }
        times
    }

    #[test]
    fn as_many_go_as_are_too_many_and_those_that_idle_longest() {
        let gone =
            |pressure: &mut Pressure, idle| (0..500).filter(|_| pressure.takes(idle)).count();
        let mut pressure = times().pressure(1_000);
        assert_eq!(gone(&mut pressure, 1_200), 0);
        assert_eq!(gone(&mut pressure, 7_200), 10);

        let mut pressure = times().pressure(900);
        assert_eq!(gone(&mut pressure, 1_199), 0);
        assert_eq!(gone(&mut pressure, 1_200), 100);

        // Who moved data in the last minutes stays, however many they are.
        let mut pressure = times().pressure(500);
        assert_eq!(gone(&mut pressure, 599), 0);
        assert_eq!(gone(&mut pressure, 1_200), 182);
    }

    #[test]
    fn without_pressure_nobody_goes() {
        assert_eq!(times().pressure(1_100), Pressure::default());
        assert!(!Pressure::default().takes(u32::MAX));
    }
}
