//! Row ranges of the selection slab: best fit, neighbours join again, freed ranges rest for a grace
//! period. Sizes come from the ladder, so most freed ranges are taken whole again.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::SelectionList;

use super::rest::Rest;

/// The free rows.
#[derive(Debug)]
pub(crate) struct Slab {
    by_offset: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    resting: Rest<SelectionList>,
    free: u32,
}

impl Slab {
    /// A slab of `rows` rows, of which the ranges in `used` are taken; they may overlap or lie beyond.
    pub(crate) fn new(rows: u32, used: &[SelectionList]) -> Self {
        let mut slab = Slab {
            by_offset: BTreeMap::new(),
            by_len: BTreeSet::new(),
            resting: Rest::default(),
            free: 0,
        };
        let mut used: Vec<_> = used.iter().filter(|r| r.len > 0).collect();
        used.sort_unstable_by_key(|r| r.offset);
        let mut at = 0u32;
        for range in used {
            let offset = range.offset.min(rows);
            if offset > at {
                slab.insert(at, offset - at);
            }
            at = at.max(offset.saturating_add(range.len)).min(rows);
        }
        if rows > at {
            slab.insert(at, rows - at);
        }
        slab
    }

    fn insert(&mut self, offset: u32, len: u32) {
        self.by_offset.insert(offset, len);
        self.by_len.insert((len, offset));
        self.free += len;
    }

    fn remove(&mut self, offset: u32, len: u32) {
        self.by_offset.remove(&offset);
        self.by_len.remove(&(len, offset));
        self.free -= len;
    }

    /// Takes a range of `len` rows.
    pub(crate) fn take(&mut self, len: u32) -> Option<SelectionList> {
        let (free, offset) = *self.by_len.range((len, 0)..).next()?;
        self.remove(offset, free);
        if free > len {
            self.insert(offset + len, free - len);
        }
        Some(SelectionList { offset, len })
    }

    /// Gives back a range that no program has seen.
    pub(crate) fn give_back(&mut self, range: SelectionList) {
        let SelectionList {
            mut offset,
            mut len,
        } = range;
        if len == 0 {
            return;
        }
        if let Some((&before, &rows)) = self.by_offset.range(..offset).next_back()
            && before + rows == offset
        {
            self.remove(before, rows);
            (offset, len) = (before, rows + len);
        }
        if let Some(&rows) = self.by_offset.get(&(offset + len)) {
            self.remove(offset + len, rows);
            len += rows;
        }
        self.insert(offset, len);
    }

    /// Lays a range to rest until the next grace period has passed.
    pub(crate) fn rest(&mut self, range: SelectionList) {
        if range.len > 0 {
            self.resting.push(range);
        }
    }

    /// Whether some range rests.
    pub(crate) fn is_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Frees what rests; a grace period has passed.
    pub(crate) fn release(&mut self) {
        for range in self.resting.take() {
            self.give_back(range);
        }
    }

    /// Rows of the longest free range.
    pub(crate) fn longest(&self) -> u32 {
        self.by_len.last().map_or(0, |(len, _)| *len)
    }

    /// Free rows, those at rest not among them.
    pub(crate) fn free_rows(&self) -> u32 {
        self.free
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn freed_range_rests_then_joins_its_neighbours() {
        let mut slab = Slab::new(100, &[]);
        let (a, b) = (slab.take(37).unwrap(), slab.take(37).unwrap());
        assert!(slab.take(37).is_none());
        slab.rest(a);
        slab.rest(b);
        assert!(slab.take(37).is_none());
        slab.release();
        assert_eq!(
            slab.take(100),
            Some(SelectionList {
                offset: 0,
                len: 100
            })
        );
    }

    #[test]
    fn used_ranges_may_overlap() {
        let range = |offset, len| SelectionList { offset, len };
        let slab = Slab::new(
            100,
            &[range(10, 20), range(20, 20), range(90, 50), range(0, 0)],
        );
        assert_eq!(slab.free_rows(), 10 + 50);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(steps in prop::collection::vec((1u32..60, any::<prop::sample::Index>(), any::<bool>()), 1..80)) {
            let mut slab = Slab::new(500, &[]);
            let mut held: Vec<SelectionList> = Vec::new();
            for (len, which, free) in steps {
                if free && !held.is_empty() {
                    slab.give_back(held.swap_remove(which.index(held.len())));
                } else if let Some(range) = slab.take(len) {
                    prop_assert!(range.offset + range.len <= 500);
                    prop_assert!(held.iter().all(|h| h.offset + h.len <= range.offset || range.offset + range.len <= h.offset));
                    held.push(range);
                }
                prop_assert_eq!(slab.free_rows() + held.iter().map(|h| h.len).sum::<u32>(), 500);
            }
            for range in held {
                slab.give_back(range);
            }
            prop_assert_eq!(slab.take(500).map(|r| r.offset), Some(0));
        }
    }
}
