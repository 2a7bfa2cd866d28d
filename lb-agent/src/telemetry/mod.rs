//! What operators see from outside: log, events of the dataplane, metrics, and the state file that gives the
//! commands names.

pub mod board;
pub mod events;
pub mod log;
pub mod metrics;
pub mod pages;
pub mod state;
