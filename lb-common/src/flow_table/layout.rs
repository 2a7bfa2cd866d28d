//! How a table lies in memory: [`Bucket`], [`IndexLine`], [`Record`], and what the words in them mean.
//!
//! A v4 bucket is 1,024 bytes, a v6 bucket 1,920: two lines of heads, then the records, each on lines of its own.

use super::geometry::{INDEX_WAYS, WAYS};
use super::tuple::{Derived, TableFamily, Tuple};
use crate::abi::{Be16, FlowFlags, MacAddr, Side};
use crate::{V4, V6};

/// What a place in a bucket holds, by how willingly it is given away.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    /// Nothing.
    Free = 0,
    /// A connection that has ended: gives way to a new one.
    Closed = 1,
    /// A connection that is not confirmed: gives way, the oldest first.
    Opening = 2,
    /// Never gives way to a new one.
    Confirmed = 3,
}

/// State of a way: class, whether the record lies in its second bucket, and when the class was set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta(pub u32);

impl Class {
    /// Decodes the lowest two bits.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Class::Free,
            1 => Class::Closed,
            2 => Class::Opening,
            _ => Class::Confirmed,
        }
    }
}

impl Meta {
    const SPILLED: u32 = 1 << 24;
    const STAMP: u32 = 0x00ff_ffff;

    /// A state; of the stamp the lower 24 bits are kept.
    #[inline(always)]
    pub const fn new(class: Class, spilled: bool, stamp: u32) -> Self {
        let spilled = if spilled { Self::SPILLED } else { 0 };
        Meta(((class as u32) << 30) | spilled | (stamp & Self::STAMP))
    }
    /// The class.
    #[inline(always)]
    pub const fn class(self) -> Class {
        Class::from_bits(self.0 >> 30)
    }
    /// Whether nothing is there.
    #[inline(always)]
    pub const fn is_free(self) -> bool {
        self.0 >> 30 == 0
    }
    /// Whether the record lies in its second bucket.
    #[inline(always)]
    pub const fn is_spilled(self) -> bool {
        self.0 & Self::SPILLED != 0
    }
}

/// A record's number: bucket × 16 + way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordNumber(pub u32);

impl RecordNumber {
    /// Of a way of a bucket.
    #[inline(always)]
    pub const fn new(bucket: u32, way: u32) -> Self {
        RecordNumber((bucket << 4) | way)
    }
    /// Index of the bucket.
    #[inline(always)]
    pub const fn bucket(self) -> u32 {
        self.0 >> 4
    }
    /// The way.
    #[inline(always)]
    pub const fn way(self) -> u32 {
        self.0 & 15
    }
}

/// An entry of an index line: fingerprint, whether it lies in its second line, [`Derived`], record number + 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry(pub(super) u64);

impl Entry {
    pub(super) const SPILLED: u64 = 1 << 31;
    const NUMBER: u32 = (1 << 29) - 1;

    #[inline(always)]
    pub(super) const fn new(fingerprint: u32, kind: Derived, number: RecordNumber) -> Self {
        let low = ((kind as u32) << 29) | ((number.0 + 1) & Self::NUMBER);
        Entry(((fingerprint as u64) << 32) | low as u64)
    }
    #[inline(always)]
    pub(super) const fn fingerprint(self) -> u32 {
        (self.0 >> 32) as u32
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the two bits of the kind")]
    pub(super) const fn kind(self) -> Derived {
        Derived::from_bits((self.0 >> 29) as u32)
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub(super) const fn number(self) -> RecordNumber {
        RecordNumber((self.0 as u32 & Self::NUMBER).wrapping_sub(1))
    }
    #[inline(always)]
    pub(super) const fn is_spilled(self) -> bool {
        self.0 & Self::SPILLED != 0
    }
    /// Fingerprint and kind alone.
    #[inline(always)]
    pub(super) const fn without_number(self) -> u64 {
        self.0 & !(Self::SPILLED | Self::NUMBER as u64)
    }
    /// The same in either place.
    #[inline(always)]
    pub(super) const fn without_place(self) -> u64 {
        self.0 & !Self::SPILLED
    }
}

/// One translated connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<F: TableFamily> {
    /// Its original tuple, as the client dials.
    pub original: Tuple<F>,
    /// The backend's address, and the source address after translation.
    pub(super) translated: F::Pair,
    /// The backend's port, as it lies in the packet.
    pub backend_port: Be16,
    /// Source port after translation.
    pub source_port: Be16,
    /// Over everything of a record that never changes; see [`Record::checked`].
    pub check: u32,
    /// Last use, in units of 256 jiffies.
    pub stamp: u32,
    /// What it is, and what was seen of it.
    pub flags: FlowFlags,
    /// Upper halves of the newest TCP sequence numbers of both directions, about: what a RST is measured by.
    pub sequence: [u16; 2],
    /// Backend id, 24 bits.
    pub backend: u32,
    /// Service port id, 24 bits.
    pub service: u32,
    /// Lower half of the backend id's generation when it was selected.
    pub backend_generation: u16,
    /// Next hops: original, reply.
    pub hops: [Hop; 2],
}

/// By which device XDP transmits, and to whom. It is written by one store.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hop {
    /// The next hop's link-layer address.
    pub mac: MacAddr,
    /// Slot of `xdp_devices`.
    pub slot: u8,
}

impl Hop {
    /// Whether one is known: slot and address 0 are not.
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        let [a, b, c] = self.mac.be;
        a | b | c | self.slot as u16 != 0
    }
}

/// What an opening of TCP waits for. It lies where the reply's [`Hop`] will, until the record is confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Awaited {
    /// The acknowledgement number that comes next: of the SYN-ACK, then of the client's ACK.
    pub number: u32,
    /// The lower 24 bits of the client's first sequence number.
    pub client: u32,
}

impl Awaited {
    /// The number, and the client's sequence number, of which 24 bits are kept.
    #[inline(always)]
    pub const fn new(number: u32, client: u32) -> Self {
        Awaited {
            number,
            client: client & 0x00ff_ffff,
        }
    }
    /// Where it lies.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "parts of a word")]
    pub const fn as_hop(self) -> Hop {
        Hop {
            mac: MacAddr {
                be: [
                    self.number as u16,
                    (self.number >> 16) as u16,
                    self.client as u16,
                ],
            },
            slot: (self.client >> 16) as u8,
        }
    }
    /// What lies there.
    #[inline(always)]
    pub const fn of(hop: &Hop) -> Self {
        let [a, b, c] = hop.mac.be;
        Awaited {
            number: a as u32 | ((b as u32) << 16),
            client: c as u32 | ((hop.slot as u32) << 16),
        }
    }
}

/// A record is not published before its index entries are there.
pub(super) const PENDING: u64 = 1 << 63;

impl<F: TableFamily> Record<F> {
    const REST: usize = F::PAIR;
    const TRANSLATED: usize = F::PAIR + 1;
    /// Both ports after translation, and the check.
    pub const PORTS: usize = 2 * F::PAIR + 1;
    /// Stamp, flags, sequence number of the original direction: with that of the reply in [`Record::IDS`] and the hops what
    /// changes while a record lives.
    pub const STATE: usize = 2 * F::PAIR + 2;
    /// Ids, and the sequence number of the reply direction in the upper 16 bits.
    pub const IDS: usize = 2 * F::PAIR + 3;
    /// Next hops: original, reply.
    pub const HOPS: usize = 2 * F::PAIR + 4;
    /// Bits of an id.
    pub const ID: u32 = (1 << 24) - 1;

    /// A record that translates `original` to a backend, with this source; its check is right.
    #[inline(always)]
    pub fn new(
        original: Tuple<F>,
        backend: (&F::Addr, Be16),
        source: (&F::Addr, Be16),
        flags: FlowFlags,
    ) -> Self {
        Record {
            original,
            translated: F::pair(backend.0, source.0),
            backend_port: backend.1,
            source_port: source.1,
            check: 0,
            stamp: 0,
            flags,
            sequence: [0; 2],
            backend: 0,
            service: 0,
            backend_generation: 0,
            hops: [Hop::default(); 2],
        }
    }
    /// The backend's address.
    #[inline(always)]
    pub fn backend_addr(&self) -> F::Addr {
        F::first(&self.translated)
    }
    /// The source address after translation.
    #[inline(always)]
    pub fn source_addr(&self) -> F::Addr {
        F::second(&self.translated)
    }
    /// From the words of a place.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "parts of words")]
    pub fn from_words(word: impl Fn(usize) -> u64) -> Self {
        let (ports, state, ids) = (word(Self::PORTS), word(Self::STATE), word(Self::IDS));
        let (low, high) = (word(Self::HOPS), word(Self::HOPS + 1));
        Record {
            original: Tuple {
                addrs: F::from_words(&word),
                rest: word(Self::REST),
            },
            translated: F::from_words(|i| word(Self::TRANSLATED + i)),
            backend_port: Be16 { be: ports as u16 },
            source_port: Be16 {
                be: (ports >> 16) as u16,
            },
            check: (ports >> 32) as u32,
            stamp: state as u32,
            flags: FlowFlags::from_bits((state >> 32) as u16),
            sequence: [(state >> 48) as u16, (ids >> 48) as u16],
            backend: ids as u32 & Self::ID,
            service: (ids >> 24) as u32 & Self::ID,
            backend_generation: (low >> 56) as u16 | ((high >> 56) as u16) << 8,
            hops: [hop(low), hop(high)],
        }
    }
    /// Word `i` of a place.
    #[inline(always)]
    pub fn word(&self, i: usize) -> u64 {
        if i < F::PAIR {
            F::word(&self.original.addrs, i)
        } else if i == Self::REST {
            self.original.rest
        } else if i < Self::PORTS {
            F::word(&self.translated, i - Self::TRANSLATED)
        } else if i == Self::PORTS {
            self.backend_port.be as u64
                | ((self.source_port.be as u64) << 16)
                | ((self.check as u64) << 32)
        } else if i == Self::STATE {
            self.stamp as u64
                | ((self.flags.bits() as u64) << 32)
                | ((self.sequence[0] as u64) << 48)
        } else if i == Self::IDS {
            self.ids() | ((self.sequence[1] as u64) << 48)
        } else if i == Self::HOPS {
            hop_word(&self.hops[0], self.backend_generation & 0xff)
        } else if i == Self::HOPS + 1 {
            hop_word(&self.hops[1], self.backend_generation >> 8)
        } else {
            0
        }
    }
    #[inline(always)]
    const fn ids(&self) -> u64 {
        (self.backend & Self::ID) as u64 | (((self.service & Self::ID) as u64) << 24)
    }
    /// Over tuple, translation and ids: a reader who finds it right has read one whole record. A multilinear hash,
    /// whose products do not wait for each other. Its constants are not secret: nobody chooses what a reader tears.
    #[inline(always)]
    pub fn sum(&self) -> u32 {
        Self::sum_of(|i| self.word(i))
    }
    /// [`Record::sum`] of the words of a place.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "parts of words")]
    pub fn sum_of(mut word: impl FnMut(usize) -> u64) -> u32 {
        const FACTORS: [u64; 4] = [
            0x9e37_79b9_7f4a_7c15,
            0xd6e8_feb8_6659_fd93,
            0xa076_1d64_78bd_642f,
            0xe703_7ed1_a0b4_28db,
        ];
        let constant = FlowFlags::from_bits((word(Self::STATE) >> 32) as u16) & FlowFlags::CONSTANT;
        let ports = word(Self::PORTS) & 0xffff_ffff | ((constant.bits() as u64) << 32);
        let ids = word(Self::IDS) & ((1 << 48) - 1);
        let generation = word(Self::HOPS) >> 56 | (word(Self::HOPS + 1) >> 56 << 8);
        let mut sum = 0x6c62_2d65_6270_6602u64
            .wrapping_add(word(Self::REST).wrapping_mul(0xbf58_476d_1ce4_e5b9))
            .wrapping_add(ports.wrapping_mul(0x94d0_49bb_1331_11eb))
            .wrapping_add(ids.wrapping_mul(0xc2b2_ae3d_27d4_eb4f))
            .wrapping_add(generation.wrapping_mul(0x1656_67b1_9e37_79f9));
        let mut i = 0;
        while i < F::PAIR {
            sum = sum
                .wrapping_add(word(i).wrapping_mul(FACTORS[i]))
                .wrapping_add(
                    word(Self::TRANSLATED + i).wrapping_mul(FACTORS[i] ^ 0x5555_5555_5555_5554),
                );
            i += 1;
        }
        (sum >> 32) as u32
    }
    /// The same record with the right check.
    #[inline(always)]
    pub fn checked(mut self) -> Self {
        self.check = self.sum();
        self
    }
    /// Whether readers may use it: it has all its index entries.
    #[inline(always)]
    pub const fn is_published(&self) -> bool {
        self.original.rest & PENDING == 0 && self.original.rest != 0
    }
    /// Whether its place holds nothing, or something of which not even the tuple is written yet.
    #[inline(always)]
    pub const fn is_gone(&self) -> bool {
        self.original.rest & !PENDING == 0
    }
    /// Whether it was read whole.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.check == self.sum()
    }
    /// A tuple that follows from it. [`Derived::Reserved`] follows from none; it gives the reply's.
    #[inline(always)]
    pub fn derived(&self, kind: Derived) -> Tuple<F> {
        Self::derived_of(|i| self.word(i), kind)
    }
    /// [`Record::derived`] of the words of a place.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "parts of words")]
    pub fn derived_of(word: impl Fn(usize) -> u64, kind: Derived) -> Tuple<F> {
        let rest = word(Self::REST);
        let proto = (rest >> 32) as u8;
        let ports = word(Self::PORTS);
        let (backend_port, source_port) = (ports as u16, (ports >> 16) as u16);
        let client = || F::first(&F::from_words(&word));
        let translated = || F::from_words(|i| word(Self::TRANSLATED + i));
        match kind {
            Derived::OutOriginal => Tuple {
                addrs: F::pair(&client(), &F::first(&translated())),
                rest: Tuple::<F>::rest(source_port, backend_port, proto, Side::Out),
            },
            Derived::OutReply => Tuple {
                addrs: F::pair(&F::first(&translated()), &client()),
                rest: Tuple::<F>::rest(backend_port, source_port, proto, Side::Out),
            },
            Derived::Reply | Derived::Reserved => {
                let flags = FlowFlags::from_bits((word(Self::STATE) >> 32) as u16);
                let side = if !flags.intersects(FlowFlags::SNAT | FlowFlags::HAIRPIN) {
                    Side::Out
                } else if flags.contains(FlowFlags::REPLY_AT_POD) {
                    Side::PodIn
                } else {
                    Side::ExternalIn
                };
                Tuple {
                    addrs: translated(),
                    rest: Tuple::<F>::rest(backend_port, source_port, proto, side),
                }
            }
        }
    }
    /// Whether tuples between tc's hooks have entries.
    #[inline(always)]
    pub const fn is_by_halves(&self) -> bool {
        self.flags.contains(FlowFlags::BY_HALVES)
    }
}

/// A hop and, in the uppermost byte, half of a generation.
#[inline(always)]
pub(super) const fn hop_word(hop: &Hop, generation: u16) -> u64 {
    let [a, b, c] = hop.mac.be;
    a as u64
        | ((b as u64) << 16)
        | ((c as u64) << 32)
        | ((hop.slot as u64) << 48)
        | ((generation as u64) << 56)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "parts of a word")]
const fn hop(word: u64) -> Hop {
    Hop {
        mac: MacAddr {
            be: [word as u16, (word >> 16) as u16, (word >> 32) as u16],
        },
        slot: (word >> 48) as u8,
    }
}

/// A bucket as it lies in the map; `WORDS` is [`TableFamily::RECORD`].
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Bucket<const WORDS: usize> {
    /// 1 while a program changes the bucket.
    pub lock: u32,
    /// Records whose first bucket this is and that lie in their second.
    pub spill: u32,
    /// Fingerprints; 0: free.
    pub fingerprints: [u32; WAYS as usize],
    /// [`Meta`] of each way.
    pub meta: [u32; WAYS as usize],
    _pad: [u32; 2],
    /// The records.
    pub records: [[u64; WORDS]; WAYS as usize],
}
const _: () = assert!(size_of::<Bucket<{ V4::RECORD }>>() == 1_024);
const _: () = assert!(size_of::<Bucket<{ V6::RECORD }>>() == 1_920);

/// An index line as it lies in the map.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct IndexLine {
    /// 1 while a program changes the line.
    pub lock: u32,
    /// Entries whose first line this is and that lie in their second.
    pub spill: u32,
    /// Fingerprint in the upper half; see [`Derived`].
    pub entries: [u64; INDEX_WAYS as usize],
}
const _: () = assert!(size_of::<IndexLine>() == 64);

impl IndexLine {
    /// What an entry stands for; `None`: nothing, the place is free.
    #[inline(always)]
    pub const fn kind(entry: u64) -> Option<Derived> {
        if entry == 0 {
            None
        } else {
            Some(Entry(entry).kind())
        }
    }
}

/// How an insertion ended.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insert {
    /// It is there.
    Done,
    /// Its original tuple has a record: look it up, the other CPU was first.
    HasRecord,
    /// A tuple that is derived from it is taken: try another source port.
    Exists,
    /// Only confirmed records in both buckets, or no room for an index entry.
    Full,
    /// A lock was not to be had: look the tuple up once more, whoever held it may have made the same record.
    Busy,
}

impl Insert {
    /// Decodes a number; what is none is [`Insert::Busy`].
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Insert::Done,
            1 => Insert::HasRecord,
            2 => Insert::Exists,
            3 => Insert::Full,
            _ => Insert::Busy,
        }
    }
}
