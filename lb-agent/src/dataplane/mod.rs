//! Desired state → map entries: what to write, in which order, and what stays over a restart.

pub mod apply;
pub mod audit;
mod diff;
mod frontends;
pub mod gc;
pub mod ids;
pub mod maglev;
pub mod model;
pub mod pinned;
pub mod report;
mod restore;
pub mod slab;
mod span;
pub mod store;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

pub use apply::Dataplane;
pub use audit::AuditReport;
pub use model::DataplaneConfig;
pub use report::{ApplyError, ApplyReport, Usage};
pub use store::{MapStore, StoreError};
