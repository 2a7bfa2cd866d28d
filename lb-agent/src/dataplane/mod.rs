//! Desired state → map entries: what to write, in which order, and what stays over a restart.

pub mod store;
