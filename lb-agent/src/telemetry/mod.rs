//! What operators see from outside: log, events of the dataplane, metrics, and the state file that gives the
//! commands names.

pub(crate) mod board;
pub(crate) mod counters;
pub(crate) mod events;
mod histogram;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod pages;
pub(crate) mod process;
pub(crate) mod services;
pub(crate) mod state;
