//! The tables of flows: buckets, index lines, and the constants by which they are read.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use lb_common::flow_table::{Bucket, Geometry, IndexLine, ReapList, Seeds, TableFamily};
use lb_common::{V4, V6};

use crate::cells::Place;

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Flows: buckets of 14 records.
///
/// Type    array, memory-mapped by the agent
/// Entry   hash of the original tuple → `lb_common::flow_table::Bucket`
/// Writes  xdp, tc; the agent by `reap_*`      Reads  xdp, tc; the agent
/// Full    a new flow takes the place of one that is over or not confirmed; else it is dropped, counted as `flow_insert`
/// Order   a record is published after its index entries
#[btf_map(name = "flows_v4")]
static FLOWS_V4: Array<Bucket<{ V4::RECORD }>, 2, MMAPABLE> = Array::new();
/// See [`FLOWS_V4`].
#[btf_map(name = "flows_v6")]
static FLOWS_V6: Array<Bucket<{ V6::RECORD }>, 2, MMAPABLE> = Array::new();

/// Flows by the tuples of their replies and between tc's hooks: lines of 7 entries.
///
/// Type    array, memory-mapped by the agent
/// Entry   hash of the tuple → `lb_common::flow_table::IndexLine`
/// Writes  xdp, tc; the agent by `reap_*`      Reads  xdp, tc; the agent
/// Full    what names no record any more gives way, then a reservation; else the flow is dropped, counted as `flow_insert`
/// Order   written before the record is published, removed after it is hidden
#[btf_map(name = "flow_index_v4")]
static FLOW_INDEX_V4: Array<IndexLine, 2, MMAPABLE> = Array::new();
/// See [`FLOW_INDEX_V4`].
#[btf_map(name = "flow_index_v6")]
static FLOW_INDEX_V6: Array<IndexLine, 2, MMAPABLE> = Array::new();

/// Keys of both tables' hash: the agent makes them with the tables and reads them back at every start.
///
/// Type    array of 1, memory-mapped by the agent
/// Entry   `lb_common::flow_table::Seeds`
/// Writes  agent      Reads  agent; programs have them as constants
/// Full    never
/// Order   written before the first program is loaded
#[btf_map(name = "flow_seeds")]
static SEEDS: Array<Seeds, 1, MMAPABLE> = Array::new();

/// Flows that the agent wants deleted.
///
/// Type    array of 1, memory-mapped by the agent
/// Entry   `lb_common::flow_table::ReapList`
/// Writes  agent, `reap_*`      Reads  the same
/// Full    the agent runs the programs once more
/// Order   none: a record that is not what the agent has seen stays
#[btf_map(name = "reap")]
pub(crate) static REAP: Array<ReapList, 1, MMAPABLE> = Array::new();

/// Buckets less one, IPv4 and IPv6: set by the loader with the arrays' sizes, constants to the verifier.
#[unsafe(no_mangle)]
static FLOW_BUCKET_MASKS: [u32; 2] = [0; 2];
/// Index lines less one, in the same way.
#[unsafe(no_mangle)]
static FLOW_LINE_MASKS: [u32; 2] = [0; 2];
/// Keys of the hash, in the same way.
#[unsafe(no_mangle)]
static FLOW_SEEDS: Seeds = Seeds {
    offset: 0,
    factors: [0; 5],
};

/// A constant that the loader may have changed.
#[inline(always)]
fn constant<T: Copy>(of: *const T) -> T {
    // SAFETY: read-only data; volatile, because the compiler thinks that it knows the value.
    unsafe { of.read_volatile() }
}

/// The arrays of one family.
pub(crate) trait FlowArrays: TableFamily {
    fn bucket(index: u32) -> Option<Place>;
    fn line(index: u32) -> Option<Place>;
    #[inline(always)]
    fn geometry() -> Geometry {
        let seeds = &raw const FLOW_SEEDS;
        // SAFETY: a place of the static.
        let offset = unsafe { &raw const (*seeds).offset };
        // SAFETY: as above.
        let factors = unsafe { &raw const (*seeds).factors };
        let mask = |of: *const [u32; 2]| {
            // SAFETY: the family's place of two.
            constant(unsafe { of.cast::<u32>().add(Self::INDEX) })
        };
        let factor = |i: usize| {
            // SAFETY: called with 0 to 4.
            constant(unsafe { factors.cast::<u64>().add(i) })
        };
        Geometry {
            bucket_mask: mask(&raw const FLOW_BUCKET_MASKS),
            line_mask: mask(&raw const FLOW_LINE_MASKS),
            seeds: Seeds {
                offset: constant(offset),
                factors: [factor(0), factor(1), factor(2), factor(3), factor(4)],
            },
        }
    }
}

impl FlowArrays for V4 {
    #[inline(always)]
    fn bucket(index: u32) -> Option<Place> {
        FLOWS_V4.get_ptr_mut(index).map(Place::new)
    }
    #[inline(always)]
    fn line(index: u32) -> Option<Place> {
        FLOW_INDEX_V4.get_ptr_mut(index).map(Place::new)
    }
}

impl FlowArrays for V6 {
    #[inline(always)]
    fn bucket(index: u32) -> Option<Place> {
        FLOWS_V6.get_ptr_mut(index).map(Place::new)
    }
    #[inline(always)]
    fn line(index: u32) -> Option<Place> {
        FLOW_INDEX_V6.get_ptr_mut(index).map(Place::new)
    }
}
