//! Which row of a table a packet takes. A function of the packet and the table alone, so that XDP,
//! tc, the socket hooks and other nodes choose alike.

use crate::family::{Address, Family};

/// Golden-ratio multiplier (Knuth, The Art of Computer Programming 3, 6.4).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
fn step(state: u64, word: u64) -> u64 {
    let x = (state ^ word).wrapping_mul(MULTIPLIER);
    x ^ (x >> 32)
}

#[inline(always)]
fn addr<A: Address>(state: u64, addr: &A) -> u64 {
    let mut state = step(state, addr.word(0) as u64 | ((addr.word(1) as u64) << 32));
    if A::WORDS == 4 {
        state = step(state, addr.word(2) as u64 | ((addr.word(3) as u64) << 32));
    }
    state
}

/// Hash of a connection: both addresses, both ports (`ports` as they lie in the packet), protocol.
#[inline(always)]
pub fn connection<F: Family>(saddr: &F::Addr, daddr: &F::Addr, ports: u32, proto: u8) -> u32 {
    let state = addr(addr(MULTIPLIER, saddr), daddr);
    finish(step(state, ports as u64 | ((proto as u64) << 32)))
}

/// Hash of a client address, for session affinity.
#[inline(always)]
pub fn client<F: Family>(saddr: &F::Addr) -> u32 {
    finish(addr(MULTIPLIER, saddr))
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the upper half")]
fn finish(state: u64) -> u32 {
    (state.wrapping_mul(MULTIPLIER) >> 32) as u32
}

/// Scales a hash to `0..len`.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "less than len")]
pub fn scale(hash: u32, len: u32) -> u32 {
    ((hash as u64 * len as u64) >> 32) as u32
}
