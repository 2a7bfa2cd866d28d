//! Size and keys of a table, and how many places a bucket and an index line have.

/// Records of a bucket.
pub const WAYS: u32 = 14;
/// Entries of an index line.
pub const INDEX_WAYS: u32 = 7;

/// Keys of the hash: random, chosen when a table is made, the same for all programs that share it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
