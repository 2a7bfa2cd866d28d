//! Incremental Internet checksums (RFC 1071, RFC 1624).
//!
//! Sums are of words as loaded from memory: the ones' complement sum does not depend on byte order.

use crate::abi::Be16;
use crate::family::Address;

/// A change of a checksummed area: the ones' complement sum of new words and inverted old ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Diff {
    // Each step adds less than 2^33; far fewer than 2^31 steps are taken.
    sum: u64,
}

impl Diff {
    /// No change.
    pub const NONE: Diff = Diff { sum: 0 };

    /// A word changes.
    #[inline(always)]
    #[must_use]
    pub fn word(self, old: u32, new: u32) -> Self {
        Diff {
            // 0xffff_ffff - old is !old; so written the constants of several words become one.
            sum: self.sum + (0xffff_ffff - old as u64) + new as u64,
        }
    }
    /// A half-word changes.
    #[inline(always)]
    #[must_use]
    pub fn half(self, old: Be16, new: Be16) -> Self {
        Diff {
            sum: self.sum + !old.be as u64 + new.be as u64,
        }
    }
    /// An address changes.
    #[inline(always)]
    #[must_use]
    pub fn addr<A: Address>(self, old: &A, new: &A) -> Self {
        let mut diff = self.word(old.word(0), new.word(0));
        if A::WORDS == 4 {
            diff = diff
                .word(old.word(1), new.word(1))
                .word(old.word(2), new.word(2))
                .word(old.word(3), new.word(3));
        }
        diff
    }
    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub fn and(self, other: Diff) -> Self {
        Diff {
            sum: self.sum + other.sum,
        }
    }
    /// As 32 bits with end-around carry: what `bpf_l4_csum_replace` takes with size 0.
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "folded to 32 bits")]
    pub fn to_u32(self) -> u32 {
        let sum = (self.sum & 0xffff_ffff) + (self.sum >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum as u32
    }
    /// The checksum after the change.
    #[inline(always)]
    pub fn apply(self, check: Be16) -> Be16 {
        let sum = self.sum + (!check.be) as u64;
        Be16 { be: !fold(sum) }
    }
}

/// Folds a sum to 16 bits with end-around carry.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}
