//! `flows_*` and `flow_index_*` in shared memory → records and index entries, as they lie. Nothing is looked up here: a
//! walk reads every bucket, and what it reads may be changed meanwhile.

use std::{
    io,
    marker::PhantomData,
    mem::{offset_of, size_of},
    ops::Range,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use lb_common::{
    flow_table::{
        Bucket, INDEX_WAYS, IndexLine, Meta, REAP_ITEMS, ReapItem, ReapList, Record, RecordNumber,
        TableFamily, WAYS,
    },
    names::{maps as names, programs},
};

use super::{
    mapped::{MappedArray, Mapping, check_mappable},
    pin::{Access, MapError, MapResult, check, open, program_pin},
};
use crate::bpf::sys;

/// Bytes of a bucket before its records, whatever the family.
const RECORDS: usize = offset_of!(Bucket<8>, records);
/// Where the states of a bucket's ways lie.
const META: usize = offset_of!(Bucket<8>, meta);
const ENTRIES: usize = offset_of!(IndexLine, entries);
/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Elements of a fixed number of bytes.
#[derive(Debug)]
struct Elements {
    mapping: Mapping,
    number: u32,
    stride: usize,
}

impl Elements {
    fn open(dir: &Path, name: &'static str, stride: usize, access: Access) -> MapResult<Self> {
        let failed = |what| {
            move |source| MapError::Io {
                map: name,
                what,
                source,
            }
        };
        // By a descriptor that may write, as of `MappedArray`.
        let fd = open(dir, name, Access::Write)?;
        let info = sys::map_info(fd.as_fd()).map_err(failed("describe"))?;
        check_mappable(name, &info)?;
        let size = u32::try_from(stride).unwrap_or(u32::MAX);
        check(name, "value size", info.value_size, size)?;
        let number = info.max_entries;
        let mapping = Mapping::new(fd.as_fd(), stride * number as usize, access)
            .map_err(failed("map the memory of"))?;
        Ok(Elements {
            mapping,
            number,
            stride,
        })
    }

    /// The words of an element.
    fn words(&self, index: u32) -> &[AtomicU64] {
        let offset = index as usize * self.stride;
        let words = self.mapping.words64(offset, self.stride / WORD);
        words.unwrap_or_default()
    }
}

/// A word of an element; 0 where there is none.
fn load(words: &[AtomicU64], i: usize) -> u64 {
    words.get(i).map_or(0, |word| word.load(Ordering::Relaxed))
}

/// The table of flows of one family, to look at.
#[derive(Debug)]
pub(crate) struct FlowPins<F> {
    buckets: Elements,
    lines: Elements,
    family: PhantomData<fn() -> F>,
}

impl<F: TableFamily> FlowPins<F> {
    /// Opens the pinned arrays.
    pub(super) fn open(dir: &Path) -> MapResult<Self> {
        let bucket = RECORDS + WAYS as usize * F::RECORD * WORD;
        let line = size_of::<IndexLine>();
        Ok(FlowPins {
            buckets: Elements::open(dir, names::FLOWS[F::INDEX], bucket, Access::Read)?,
            lines: Elements::open(dir, names::FLOW_INDEX[F::INDEX], line, Access::Read)?,
            family: PhantomData,
        })
    }
    /// Number of buckets.
    pub(crate) const fn buckets(&self) -> u32 {
        self.buckets.number
    }
    /// Number of index lines.
    pub(crate) const fn lines(&self) -> u32 {
        self.lines.number
    }

    /// Shows the records of some buckets.
    pub(crate) fn each(
        &self,
        buckets: Range<u32>,
        each: &mut impl FnMut(RecordNumber, Meta, &Record<F>),
    ) {
        for bucket in buckets.start..buckets.end.min(self.buckets.number) {
            let words = self.buckets.words(bucket);
            for way in 0..WAYS {
                let place = META / 4 + way as usize;
                let pair = load(words, place / 2).to_ne_bytes().as_chunks::<4>().0[place % 2];
                let meta = Meta(u32::from_ne_bytes(pair));
                if meta.is_free() {
                    continue;
                }
                let at = RECORDS / WORD + way as usize * F::RECORD;
                let words = words.get(at..at + F::RECORD).unwrap_or_default();
                let record = Record::from_words(|i| load(words, i));
                // Of a place that is being filled or emptied nothing is to be believed.
                if record.is_published() {
                    each(RecordNumber::new(bucket, way), meta, &record);
                }
            }
        }
    }

    /// Shows the index entries of some lines.
    pub(crate) fn each_entry(&self, lines: Range<u32>, each: &mut impl FnMut(u64)) {
        for line in lines.start..lines.end.min(self.lines.number) {
            let words = self.lines.words(line);
            for way in 0..INDEX_WAYS {
                let entry = load(words, ENTRIES / WORD + way as usize);
                if entry != 0 {
                    each(entry);
                }
            }
        }
    }
}

/// The programs that delete flows for the agent, and the list by which they are told which.
#[derive(Debug)]
pub(crate) struct Reaper {
    list: MappedArray<ReapList>,
    /// IPv4, IPv6.
    programs: [OwnedFd; 2],
}

/// Index of a word of [`ReapList`].
macro_rules! word {
    ($field:ident) => {
        offset_of!(ReapList, $field) / 4
    };
}

impl Reaper {
    /// Opens the pinned list and programs.
    pub(crate) fn open(dir: &Path) -> MapResult<Reaper> {
        let program = |name: &'static str| {
            let path = program_pin(dir, name);
            sys::obj_get(&path, 0).map_err(|source| {
                if source.kind() == io::ErrorKind::NotFound {
                    MapError::Missing { path }
                } else {
                    MapError::Open { path, source }
                }
            })
        };
        let [v4, v6] = programs::REAP;
        Ok(Reaper {
            list: MappedArray::open(dir, names::REAP, Access::Write)?,
            programs: [program(v4)?, program(v6)?],
        })
    }

    /// Deletes records of a family that are still as they were seen, and sweeps index lines of reservations that are older
    /// than `reserved_age` and of what is dead. Of either at most [`REAP_ITEMS`]. Gives how many were deleted and swept.
    pub(crate) fn run(
        &self,
        family: usize,
        items: &[ReapItem],
        lines: Range<u32>,
        reserved_age: u32,
    ) -> MapResult<[u32; 2]> {
        let items = items.get(..REAP_ITEMS).unwrap_or(items);
        let list = &self.list;
        let (from, words) = (word!(items), size_of::<ReapItem>() / 4);
        for (i, item) in items.iter().enumerate() {
            let at = from + i * words;
            for (word, value) in [item.number, item.check, item.stamp]
                .into_iter()
                .enumerate()
            {
                list.write_word(0, at + word, value)?;
            }
        }
        let count = u32::try_from(items.len()).unwrap_or(0);
        for (word, value) in [
            (word!(count), count),
            (word!(deleted), 0),
            (word!(sweep_from), lines.start),
            (word!(sweep_count), lines.end.saturating_sub(lines.start)),
            (word!(reserved_age), reserved_age),
            (word!(swept), 0),
        ] {
            list.write_word(0, word, value)?;
        }
        let mut packet = [0u8; 64];
        sys::prog_test_run(self.programs[family].as_fd(), &mut packet).map_err(|source| {
            MapError::Io {
                map: programs::REAP[family],
                what: "run the program in place of",
                source,
            }
        })?;
        Ok([
            list.read_word(0, word!(deleted))?,
            list.read_word(0, word!(swept))?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{V4, V6};

    use super::*;

    #[test]
    fn records_of_both_families_begin_where_a_bucket_says() {
        assert_eq!(offset_of!(Bucket<{ V6::RECORD }>, records), RECORDS);
        assert_eq!(offset_of!(Bucket<{ V6::RECORD }>, meta), META);
        let bucket = |record: usize| RECORDS + WAYS as usize * record * 8;
        assert_eq!(bucket(V4::RECORD), size_of::<Bucket<{ V4::RECORD }>>());
        assert_eq!(bucket(V6::RECORD), size_of::<Bucket<{ V6::RECORD }>>());
    }

    #[test]
    fn an_item_is_written_as_it_lies() {
        let places = [
            offset_of!(ReapItem, number),
            offset_of!(ReapItem, check),
            offset_of!(ReapItem, stamp),
        ];
        assert_eq!(places, [0, 4, 8]);
    }
}
