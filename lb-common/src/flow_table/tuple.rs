//! Addresses, ports, protocol and side ↔ the words by which a record is keyed, and their hash.

use super::geometry::{Seeds, WAYS};
use crate::abi::{Be16, Side};
use crate::family::{Address, Family};
use crate::{V4, V6};

/// A family as the table stores it: pairs of addresses in 64-bit words.
pub trait TableFamily: Family {
    /// Two addresses.
    type Pair: Copy + Eq + core::fmt::Debug;
    /// Words of a pair: 1 or 4.
    const PAIR: usize;
    /// Words of a record: a cache line, or two.
    const RECORD: usize;
    /// The words of a record.
    type Words: AsRef<[u64]> + AsMut<[u64]> + Copy + Default + core::fmt::Debug + 'static;
    /// A pair of two addresses.
    fn pair(first: &Self::Addr, second: &Self::Addr) -> Self::Pair;
    /// A pair from its words.
    fn from_words(word: impl Fn(usize) -> u64) -> Self::Pair;
    /// Word `i` of a pair.
    fn word(pair: &Self::Pair, i: usize) -> u64;
    /// The first address.
    fn first(pair: &Self::Pair) -> Self::Addr;
    /// The second address.
    fn second(pair: &Self::Pair) -> Self::Addr;
    /// A keyed sum over a pair, to be folded.
    fn sum(pair: &Self::Pair, seeds: &Seeds) -> u64;
}

#[inline(always)]
const fn join(low: u32, high: u32) -> u64 {
    low as u64 | ((high as u64) << 32)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
const fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

impl TableFamily for V4 {
    type Pair = u64;
    const PAIR: usize = 1;
    const RECORD: usize = 8;
    type Words = [u64; 8];
    #[inline(always)]
    fn pair(first: &Self::Addr, second: &Self::Addr) -> u64 {
        join(first.be, second.be)
    }
    #[inline(always)]
    fn from_words(word: impl Fn(usize) -> u64) -> u64 {
        word(0)
    }
    #[inline(always)]
    fn word(pair: &u64, _: usize) -> u64 {
        *pair
    }
    #[inline(always)]
    fn first(pair: &u64) -> Self::Addr {
        Address::from_words([halves(*pair).0, 0, 0, 0])
    }
    #[inline(always)]
    fn second(pair: &u64) -> Self::Addr {
        Address::from_words([halves(*pair).1, 0, 0, 0])
    }
    #[inline(always)]
    fn sum(pair: &u64, seeds: &Seeds) -> u64 {
        (*pair ^ seeds.offset).wrapping_mul(seeds.factors[0])
    }
}

impl TableFamily for V6 {
    type Pair = [u64; 4];
    const PAIR: usize = 4;
    const RECORD: usize = 16;
    type Words = [u64; 16];
    #[inline(always)]
    fn pair(first: &Self::Addr, second: &Self::Addr) -> [u64; 4] {
        let (a, b) = (&first.be, &second.be);
        [
            join(a[0], a[1]),
            join(a[2], a[3]),
            join(b[0], b[1]),
            join(b[2], b[3]),
        ]
    }
    #[inline(always)]
    fn from_words(word: impl Fn(usize) -> u64) -> [u64; 4] {
        [word(0), word(1), word(2), word(3)]
    }
    #[inline(always)]
    fn word(pair: &[u64; 4], i: usize) -> u64 {
        match i {
            0 => pair[0],
            1 => pair[1],
            2 => pair[2],
            _ => pair[3],
        }
    }
    #[inline(always)]
    fn first(pair: &[u64; 4]) -> Self::Addr {
        let ((a, b), (c, d)) = (halves(pair[0]), halves(pair[1]));
        Address::from_words([a, b, c, d])
    }
    #[inline(always)]
    fn second(pair: &[u64; 4]) -> Self::Addr {
        let ((a, b), (c, d)) = (halves(pair[2]), halves(pair[3]));
        Address::from_words([a, b, c, d])
    }
    /// The four products do not wait for each other.
    #[inline(always)]
    fn sum(pair: &[u64; 4], seeds: &Seeds) -> u64 {
        let product = |i: usize| (pair[i] ^ seeds.offset).wrapping_mul(seeds.factors[i]);
        product(0)
            .wrapping_add(product(1).rotate_left(17))
            .wrapping_add(product(2).rotate_left(31))
            .wrapping_add(product(3).rotate_left(47))
    }
}

/// A packet's tuple as it is seen at a side. As it lies in memory a record begins with it, and programs hand it to
/// functions of their own.
#[repr(C)]
#[derive(Clone, Copy, Eq, Debug)]
pub struct Tuple<F: TableFamily> {
    /// Source and destination address.
    pub(super) addrs: F::Pair,
    /// Source port, destination port (both as they lie in the packet), protocol, side, from the lowest bit.
    pub(super) rest: u64,
}

impl<F: TableFamily> PartialEq for Tuple<F> {
    /// Word by word: compared as arrays they would be handed to memcmp, which a program does not have.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let mut differs = self.rest ^ other.rest;
        let mut i = 0;
        while i < F::PAIR {
            differs |= F::word(&self.addrs, i) ^ F::word(&other.addrs, i);
            i += 1;
        }
        differs == 0
    }
}

impl<F: TableFamily> Tuple<F> {
    /// A tuple.
    #[inline(always)]
    pub fn new(
        saddr: &F::Addr,
        daddr: &F::Addr,
        sport: Be16,
        dport: Be16,
        proto: u8,
        side: Side,
    ) -> Self {
        Tuple {
            addrs: F::pair(saddr, daddr),
            rest: Self::rest(sport.be, dport.be, proto, side),
        }
    }
    #[inline(always)]
    pub(super) fn rest(sport: u16, dport: u16, proto: u8, side: Side) -> u64 {
        sport as u64 | ((dport as u64) << 16) | ((proto as u64) << 32) | ((side as u64) << 40)
    }
    /// The same tuple at another side.
    #[inline(always)]
    #[must_use]
    pub const fn at(self, side: Side) -> Self {
        Tuple {
            addrs: self.addrs,
            rest: self.rest & !(0xff << 40) | ((side as u64) << 40),
        }
    }
    /// Source address.
    #[inline(always)]
    pub fn saddr(&self) -> F::Addr {
        F::first(&self.addrs)
    }
    /// Destination address.
    #[inline(always)]
    pub fn daddr(&self) -> F::Addr {
        F::second(&self.addrs)
    }
    /// Source port.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lowest 16 bits")]
    pub fn sport(&self) -> Be16 {
        Be16 {
            be: self.rest as u16,
        }
    }
    /// Destination port.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the next 16 bits")]
    pub fn dport(&self) -> Be16 {
        Be16 {
            be: (self.rest >> 16) as u16,
        }
    }
    /// IANA protocol number.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the next 8 bits")]
    pub fn proto(&self) -> u8 {
        (self.rest >> 32) as u8
    }
    /// The side as a number ([`Side::from_u8`]).
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the next 8 bits")]
    pub fn side(&self) -> u8 {
        (self.rest >> 40) as u8
    }
    /// The tuple's hash, with what follows from it.
    #[inline(always)]
    pub fn hashed(&self, seeds: &Seeds) -> Hashed {
        // Folded between the products: a linear hash fills some buckets at half load.
        let x = F::sum(&self.addrs, seeds);
        let x = ((x ^ (x >> 32)) ^ self.rest).wrapping_mul(seeds.factors[4]);
        Hashed {
            hash: x ^ (x >> 32),
        }
    }
}

/// A tuple's hash. Bucket, fingerprint and home way come from different bits of it; the second bucket follows from
/// first bucket and fingerprint alone, so that an entry of which only these are known finds its other place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hashed {
    hash: u64,
}

impl Hashed {
    /// Index of the first bucket or line; `mask` is their number, a power of two, less one.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a mask has 32 bits")]
    pub const fn first(self, mask: u32) -> u32 {
        self.hash as u32 & mask
    }
    /// Never 0, which is an empty place.
    #[inline(always)]
    pub const fn fingerprint(self) -> u32 {
        let fingerprint = (self.hash >> 32) as u32;
        if fingerprint == 0 { 1 } else { fingerprint }
    }
    /// The other of the two places of a fingerprint: from the first the second, and back. A table has two at least.
    #[inline(always)]
    pub const fn other(place: u32, fingerprint: u32, mask: u32) -> u32 {
        place ^ (((fingerprint.wrapping_mul(0x85eb_ca6b) >> 7) & mask) | 1)
    }
    /// The way in which a record lies if it was free: looked at before any fingerprint.
    #[inline(always)]
    pub const fn home(fingerprint: u32) -> u32 {
        ((fingerprint as u64 * WAYS as u64) >> 32) as u32
    }
}

/// A tuple that follows from a record. Each has an index entry.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Derived {
    /// What the backend answers: backend → source after translation.
    Reply = 0,
    /// A source-translated packet between tc ingress and egress: client with the new port → backend.
    OutOriginal = 1,
    /// Its answer there: backend → client with the new port.
    OutReply = 2,
    /// No record: a tuple that nobody may take. What would be the record's number is a time.
    Reserved = 3,
}

impl Derived {
    /// Decodes the two bits of an index entry.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Derived::Reply,
            1 => Derived::OutOriginal,
            2 => Derived::OutReply,
            _ => Derived::Reserved,
        }
    }
}
