//! The slow stages' look at the tables of flows, in functions that the verifier walks once: beside it a parsed packet takes
//! many ways.

use lb_common::flow_table::{TableFamily, Tuple};
use lb_common::pipeline::flow::{Leg, look_by_derived, look_by_original};
use lb_common::pipeline::work::Work;
use lb_common::{V4, V6};

use crate::flow_table::{FlowTable, given};

/// The functions of one family. Each gives a `Leg` as a number, 0: none; the record is in work.
pub(crate) trait LookFunctions: TableFamily {
    fn look_by_original(tuple: &Tuple<Self>, work: &mut Work<Self>) -> u32;
    fn look_by_derived(tuple: &Tuple<Self>, work: &mut Work<Self>) -> u32;
}

#[inline(always)]
fn looked<F: TableFamily>(
    tuple: *const Tuple<F>,
    work: *mut Work<F>,
    look: impl FnOnce(&FlowTable, &Tuple<F>, &mut Work<F>) -> Option<Leg>,
) -> u32 {
    let Some(tuple) = given(tuple) else {
        return 0;
    };
    if work.is_null() {
        return 0;
    }
    // SAFETY: not null, and the verifier knows it as memory of this size.
    let work = unsafe { &mut *work };
    look(&FlowTable, tuple, work).map_or(0, |leg| leg as u32)
}

macro_rules! functions {
    ($family:ty, $by_original:ident, $by_derived:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $by_original(
            tuple: *const Tuple<$family>,
            work: *mut Work<$family>,
        ) -> u32 {
            looked(tuple, work, look_by_original)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $by_derived(
            tuple: *const Tuple<$family>,
            work: *mut Work<$family>,
        ) -> u32 {
            looked(tuple, work, look_by_derived)
        }

        impl LookFunctions for $family {
            #[inline(always)]
            fn look_by_original(tuple: &Tuple<Self>, work: &mut Work<Self>) -> u32 {
                $by_original(tuple, work)
            }
            #[inline(always)]
            fn look_by_derived(tuple: &Tuple<Self>, work: &mut Work<Self>) -> u32 {
                $by_derived(tuple, work)
            }
        }
    };
}

functions!(V4, flow_look_v4, flow_look_by_v4);
functions!(V6, flow_look_v6, flow_look_by_v6);
