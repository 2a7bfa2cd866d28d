//! The benchmark: packets through the programs behind a front program that restores them, connects
//! through the socket hooks, and the agent with many Services. Everything is printed as a table and
//! written as JSON.

pub mod agent;
pub mod connect;
pub mod control_plane;
pub mod goals;
pub mod packets;
pub mod report;
pub mod sys;

use std::{sync::OnceLock, time::Instant};

pub use report::{Report, Row};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds, interleaved over all rows; the median counts.
    pub rounds: usize,
    /// Packets of one row in one round.
    pub packets: u32,
    /// Most flows in a row.
    pub flows: u32,
    /// Services of the rows that have many.
    pub services: u32,
    /// Services of the agent's rows.
    pub agent_services: usize,
    /// Endpoint changes that are timed.
    pub updates: usize,
}

impl Effort {
    /// The whole measurement.
    pub const WHOLE: Effort = Effort {
        rounds: 7,
        packets: 300_000,
        flows: 1 << 20,
        services: 100_000,
        agent_services: 10_000,
        updates: 200,
    };
    /// A look at it.
    pub const QUICK: Effort = Effort {
        rounds: 5,
        packets: 100_000,
        flows: 1 << 16,
        services: 100_000,
        agent_services: 1_000,
        updates: 50,
    };
}

/// A line on standard error with the time since the first one, so that nobody thinks it hangs.
pub fn progress(what: &str) {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    eprintln!("[{:>5.1} s] {what}", elapsed.as_secs_f64());
}

/// The median.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// A quantile by the nearest rank; 0 without values.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() {
        return 0.0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a short list"
    )]
    let rank = ((sorted.len() - 1) as f64 * q).round() as usize;
    sorted[rank]
}
