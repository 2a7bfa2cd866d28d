//! Desired state → map entries: what to write, in which order, and what stays over a restart.

pub mod apply;
pub mod audit;
mod diff;
mod frontends;
pub mod gc;
pub mod ids;
pub mod maglev;
pub mod model;
mod restore;
pub mod slab;
pub mod store;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

pub use apply::{ApplyReport, Dataplane, Usage};
pub use audit::AuditReport;
pub use model::{ApplyError, DataplaneConfig};
pub use store::{MapStore, StoreError};
