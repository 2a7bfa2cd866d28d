//! Snapshot → desired state, pure.
pub mod state;
