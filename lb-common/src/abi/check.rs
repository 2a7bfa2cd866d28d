//! Words of an entry → the check by which a reader knows that the entry is still the one it looked up.

/// Folds one 32-bit word into a running check. Cheap on BPF: one xor, one multiply, one shift.
#[inline(always)]
pub(crate) fn mix(state: u64, word: u32) -> u64 {
    let x = (state ^ word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}
