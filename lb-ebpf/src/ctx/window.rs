//! `data` and `data_end` of a context → a typed window at an offset.

use lb_common::pipeline::packet::Offset;
use lb_common::wire::Header;

/// Where a header lies; `None` where the directly accessible part ends before its end.
///
/// The pointer returned is the one compared: a second computation is a second pointer to the verifier.
#[inline(always)]
pub(super) fn at<T: Header>(data: usize, data_end: usize, at: Offset) -> Option<*mut T> {
    let start = data + at.get() as usize; // an Offset is at most 0x3ff: the verifier's bound
    if start + size_of::<T>() > data_end {
        return None;
    }
    Some(start as *mut T)
}
