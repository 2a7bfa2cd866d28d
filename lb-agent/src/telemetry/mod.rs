//! What operators see from outside: metrics.

pub mod metrics;
