//! Connections or bytes of memory → buckets and index lines of the tables of flows, and the keys of their hash.

use std::{io, mem::size_of, ops::RangeInclusive};

use lb_common::{
    V4, V6,
    flow_table::{Bucket, IndexLine, Seeds, TableFamily as _, WAYS},
};

/// Index lines a bucket. A bucket at [`LOAD`] has 8 records: 8 index entries, or 25 where tc translates every source, of 28.
const LINES: u32 = 4;
/// Per cent of the places that are meant to be used. From 70 on a new connection may find both of its buckets full.
const LOAD: u64 = 60;

/// Connections of each family that a table has room for at least.
const FLOOR: u32 = 262_144;

/// Size of the tables of flows, which is the same for both families.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FlowSize {
    /// Buckets, as a power of two.
    order: u32,
}

impl FlowSize {
    /// Connections that a flag may ask for: an index entry has room for the number of 2^25 buckets.
    pub(crate) const CONNECTIONS: RangeInclusive<u32> = 1_024..=67_108_864;

    /// The smallest in which so many connections of each family find room at 60 % load.
    pub(crate) fn of(connections: u32) -> FlowSize {
        let places = u64::from(connections) * 100;
        let buckets = places.div_ceil(LOAD * u64::from(WAYS)).max(2);
        FlowSize {
            order: buckets.next_power_of_two().ilog2(),
        }
    }
    /// The largest of both families together within so much memory, but not below the floor.
    pub(crate) fn within(bytes: u64) -> FlowSize {
        let mut size = FlowSize::of(FLOOR);
        let largest = FlowSize::of(*Self::CONNECTIONS.end());
        while size.order < largest.order && size.bytes() * 2 <= bytes {
            size.order += 1;
        }
        size
    }
    /// Elements of each of `flows_*`.
    pub(crate) const fn buckets(self) -> u32 {
        1 << self.order
    }
    /// Elements of each of `flow_index_*`.
    pub(crate) const fn lines(self) -> u32 {
        self.buckets() * LINES
    }
    /// Bytes of both families' tables.
    pub(crate) const fn bytes(self) -> u64 {
        let buckets = size_of::<Bucket<{ V4::RECORD }>>() + size_of::<Bucket<{ V6::RECORD }>>();
        let lines = 2 * LINES as usize * size_of::<IndexLine>();
        (buckets + lines) as u64 * self.buckets() as u64
    }
}

/// Connections that are meant to be in a table of so many buckets.
pub(crate) fn connections(buckets: u32) -> u64 {
    u64::from(buckets) * u64::from(WAYS) * LOAD / 100
}

/// New keys. Nobody may know them, or who sends packets could fill one bucket.
pub(super) fn random_seeds() -> io::Result<Seeds> {
    let mut words = [0u64; 6];
    let len = size_of_val(&words);
    // SAFETY: the buffer is live and as long as is told.
    let read = unsafe { libc::getrandom(words.as_mut_ptr().cast(), len, 0) };
    if usize::try_from(read) != Ok(len) {
        return Err(io::Error::last_os_error());
    }
    let [offset, factors @ ..] = words;
    Ok(Seeds {
        offset,
        factors: factors.map(|factor| factor | 1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_asked_for_find_room_at_the_load_that_is_meant() {
        for asked in [1_024, 1_025, 262_144, 1_000_000, 67_108_864] {
            let size = FlowSize::of(asked);
            assert!(connections(size.buckets()) >= u64::from(asked), "{asked}");
            assert!(
                connections(size.buckets() / 2) < u64::from(asked),
                "{asked}"
            );
        }
        // An index entry holds bucket × 16 + way + 1 in 29 bits.
        let largest = FlowSize::of(*FlowSize::CONNECTIONS.end());
        assert!(u64::from(largest.buckets()) * 16 < 1 << 29);
    }

    #[test]
    fn a_machines_memory_gives_the_size_and_never_less_than_the_floor() {
        let connections = |gib: u64| connections(FlowSize::within((gib << 30) / 128).buckets());
        assert_eq!([1, 8, 24].map(connections), [275_251; 3]);
        assert_eq!([26, 27, 64].map(connections), [275_251, 550_502, 1_101_004]);
        let memory = 256 << 30;
        assert!(FlowSize::within(memory / 128).bytes() <= memory / 128);
    }

    #[test]
    fn keys_differ_and_multiply() {
        let [a, b] = [(); 2].map(|()| random_seeds().unwrap());
        assert_ne!(a, b);
        assert!(a.factors.iter().all(|factor| factor % 2 == 1));
    }
}
