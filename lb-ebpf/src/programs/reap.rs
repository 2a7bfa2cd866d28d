//! Deletes flows for the agent, which never takes a lock: killed, it would leave it held. Run by `BPF_PROG_TEST_RUN`,
//! never attached.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::flow_table::REAP_ITEMS;
use lb_common::pipeline::ip::Ip;
use lb_common::pipeline::tables::Tables;
use lb_common::{V4, V6};

use crate::arrays::REAP;
use crate::look::LookFunctions;
use crate::maps::FamilyMaps;
use crate::tables::Kernel;

/// Flows of IPv4.
#[xdp]
#[inline(always)]
pub fn reap_v4(_ctx: XdpContext) -> u32 {
    reap::<V4>()
}

/// Flows of IPv6.
#[xdp]
#[inline(always)]
pub fn reap_v6(_ctx: XdpContext) -> u32 {
    reap::<V6>()
}

/// Does what `reap` asks for.
#[inline(always)]
fn reap<F: Ip + FamilyMaps + LookFunctions>() -> u32 {
    let Some(list) = REAP.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: a map value, which the agent does not change while it waits for this program.
    let list = unsafe { &mut *list };
    let mut deleted = 0;
    let mut i = 0;
    while i < REAP_ITEMS && i < list.count as usize {
        let item = list.items[i];
        deleted += F::delete_seen(item.number, item.check, item.stamp) as u32;
        i += 1;
    }
    list.deleted = deleted;
    let now = Tables::<F>::stamp(&Kernel);
    let mut swept = 0;
    let mut i = 0;
    while i < REAP_ITEMS as u32 && i < list.sweep_count {
        swept += F::sweep(list.sweep_from.wrapping_add(i), now, list.reserved_age);
        i += 1;
    }
    list.swept = swept;
    XDP_PASS
}
