//! Tuples → records: one record a translated connection, found by its original tuple and by the tuples that follow
//! from it.
//!
//! Two arrays. *Buckets* hold the records, keyed by the original tuple: a line of fingerprints, a line of states, then
//! [`WAYS`] records. *Index lines* hold entries of fingerprint and record number, one for each tuple that is derived
//! from a record ([`Derived`]): those are never stored. Zeroed memory is an empty table.
//!
//! Readers take no lock: they copy a record and compare its check. Writers lock a bucket, then its second bucket, then
//! index lines, each by a bounded number of tries; what cannot be had is [`Insert::Busy`], never waited for. The
//! algorithm knows no kernel and no `unsafe`: it works on [`Memory`], which is BPF arrays in the programs and
//! [`native::Table`] elsewhere.
//!
//! Invariants:
//! - A record that a reader finds has all its index entries, or is being removed.
//! - Of two records no original tuple and no derived tuple is equal.
//! - `spill` of a bucket or line is the number of its entries that lie in their second place.

#[cfg(not(target_arch = "bpf"))]
pub mod census;
mod change;
mod find;
mod geometry;
mod index;
mod insert;
mod layout;
mod memory;
#[cfg(not(target_arch = "bpf"))]
pub mod native;
mod tuple;

pub use change::{Change, change, delete, delete_seen, halve, is_free};
pub use find::{Found, find, find_derived, find_derived_into, find_into, way_of};
pub use geometry::{
    FLOW_TABLE_VERSION, Geometry, INDEX_WAYS, REAP_ITEMS, ReapItem, ReapList, Seeds, WAYS,
};
pub use index::{add_entry, is_reserved, make_room, remove_entry, reserve, sweep};
pub use insert::{Room, insert, touch};
pub use layout::{Awaited, Bucket, Class, Hop, IndexLine, Insert, Meta, Record, RecordNumber};
pub use memory::{BucketCells, Head, LineCells, Memory, RecordCells};
pub use tuple::{Derived, Hashed, TableFamily, Tuple};
