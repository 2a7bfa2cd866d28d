//! What lies in a table of flows → how full it is.

use lb_common::flow_table::{Class, INDEX_WAYS, Meta, RecordNumber, WAYS};

/// Per cent of [`FlowUse::load`] from which on a person should know: at 70 one new connection in millions finds both of its
/// buckets full, at 80 one in a thousand.
pub(crate) const ALARM: u64 = 65;

/// How full a family's table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct FlowUse {
    /// Places for records.
    pub(crate) places: u64,
    /// Connections that are over, and give way to new ones.
    pub(crate) closed: u64,
    /// Connections that are not confirmed; they give way, too.
    pub(crate) opening: u64,
    /// Connections that give way to nobody.
    pub(crate) confirmed: u64,
    /// Records that lie in their second bucket.
    pub(crate) spilled: u64,
    /// Records of the fullest bucket, of [`WAYS`].
    pub(crate) fullest: u32,
    /// The bucket that is being counted, and its records.
    at: (u32, u32),
}

impl FlowUse {
    /// Of an empty table.
    pub(crate) fn of(buckets: u32) -> FlowUse {
        FlowUse {
            places: u64::from(buckets) * u64::from(WAYS),
            ..FlowUse::default()
        }
    }
    /// Counts a record, bucket by bucket.
    pub(crate) fn add(&mut self, number: RecordNumber, meta: Meta) {
        match meta.class() {
            Class::Free => return,
            Class::Closed => self.closed += 1,
            Class::Opening => self.opening += 1,
            Class::Confirmed => self.confirmed += 1,
        }
        self.spilled += u64::from(meta.is_spilled());
        if self.at.0 != number.bucket() {
            self.at = (number.bucket(), 0);
        }
        self.at.1 += 1;
        self.fullest = self.fullest.max(self.at.1);
    }
    /// Records.
    pub(crate) fn records(&self) -> u64 {
        self.closed + self.opening + self.confirmed
    }
    /// Per cent of the places that hold something.
    pub(crate) fn fill(&self) -> u64 {
        self.records() * 100 / self.places.max(1)
    }
    /// Per cent of the places that connections hold which give way to nobody: what a new one may meet a full table by.
    pub(crate) fn load(&self) -> u64 {
        self.confirmed * 100 / self.places.max(1)
    }
}

/// How full the index of a family's table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct IndexUse {
    /// Places for entries.
    pub(crate) places: u64,
    /// Entries, reservations among them.
    pub(crate) entries: u64,
    /// Tuples that nobody may take.
    pub(crate) reserved: u64,
}

impl IndexUse {
    /// Of an empty index.
    pub(crate) fn of(lines: u32) -> IndexUse {
        IndexUse {
            places: u64::from(lines) * u64::from(INDEX_WAYS),
            ..IndexUse::default()
        }
    }
}
