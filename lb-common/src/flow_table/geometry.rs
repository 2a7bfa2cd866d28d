//! Size and keys of a table, and how many places a bucket and an index line have.

/// Version of a table's layout: of buckets, records, index lines and hash, all that lies in `flows_*`, `flow_index_*` and
/// `flow_seeds`. Whoever changes one of these raises it beside [`crate::ABI_VERSION`]. It is counted by itself, so that
/// a build can tell of the tables of an earlier ABI whether it may take them over as they are or has to convert them.
/// ABI 4 has 1.
pub const FLOW_TABLE_VERSION: u32 = 1;

/// Records of a bucket.
pub const WAYS: u32 = 14;
/// Entries of an index line.
pub const INDEX_WAYS: u32 = 7;

/// Keys of the hash: random, chosen when a table is made, the same for all programs that share it. Element of
/// `flow_seeds`.
#[repr(C)]
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seeds {
    /// XORed into every word of addresses.
    pub offset: u64,
    /// Odd.
    pub factors: [u64; 5],
}

/// Size and keys of a table: constants of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Number of buckets, a power of two, less one.
    pub bucket_mask: u32,
    /// Number of index lines, a power of two, less one.
    pub line_mask: u32,
    /// Keys of the hash.
    pub seeds: Seeds,
}

/// Elements of a [`ReapList`].
pub const REAP_ITEMS: usize = 1_024;

/// A record that the agent wants deleted: it is, if it is still what the agent has seen.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct ReapItem {
    /// [`super::RecordNumber`].
    pub number: u32,
    /// [`super::Record::check`] as it was seen.
    pub check: u32,
    /// [`super::Record::stamp`] as it was seen.
    pub stamp: u32,
    _pad: u32,
}

impl ReapItem {
    /// An item.
    pub const fn new(number: u32, check: u32, stamp: u32) -> Self {
        ReapItem {
            number,
            check,
            stamp,
            _pad: 0,
        }
    }
}

/// What the programs `reap_v4` and `reap_v6` are to do, and what they did: the one element of `reap`, memory-mapped by
/// the agent, which runs them by `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ReapList {
    /// Items in use, from the first on.
    pub count: u32,
    /// Records deleted.
    pub deleted: u32,
    /// Index lines to sweep: the first ...
    pub sweep_from: u32,
    /// ... and how many, at most [`REAP_ITEMS`]; 0: none.
    pub sweep_count: u32,
    /// Reservations older than so many units of stamps go.
    pub reserved_age: u32,
    /// Entries swept.
    pub swept: u32,
    /// The records.
    pub items: [ReapItem; REAP_ITEMS],
}
