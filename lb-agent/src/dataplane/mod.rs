//! Desired state → map entries: what to write, in which order ([`apply`]), and what stays over a restart
//! ([`restore`]).
//!
//! ```text
//! audit, restore, apply            both families: a list of changes → one round of writes
//!      family/                     one family: prepare, publish, finish; its frontends, backends, what was left
//!      shared                      what belongs to neither: selection, port_filter, service ids, report
//!      model, maglev, slab, ids …  one thing each, without maps
//!      store                       the maps behind a trait; pinned: the real ones
//! gc                               flows → dead flows, by the store alone
//! ```

mod apply;
mod audit;
mod cluster_span;
mod family;
mod frontend_map;
pub(crate) mod gc;
mod ids;
mod maglev;
mod model;
pub(crate) mod pinned;
mod port_filter;
mod report;
mod rest;
mod restore;
mod selection;
mod shared;
mod slab;
pub(crate) mod store;
mod uses;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

pub(crate) use apply::{Dataplane, DataplaneConfig};
pub(crate) use report::{ApplyReport, LeftOut};
#[cfg(test)]
pub(crate) use selection::tables_within;
pub(crate) use store::MapStore;
