//! `bpf_fib_lookup`.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    bpf_fib_lookup as Params,
};
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use lb_common::abi::MacAddr;
use lb_common::family::{Address, Family};
use lb_common::pipeline::packet::NextHop;

use crate::maps::FIB;

/// Address families of the kernel.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Asks the routing table for a packet that arrived by `ifindex`. `ip_len` 0: no MTU check by length.
#[inline(always)]
pub(crate) fn lookup<F: Family>(
    ctx: *mut core::ffi::c_void,
    ifindex: u32,
    saddr: &F::Addr,
    daddr: &F::Addr,
    proto: u8,
    ip_len: u16,
) -> Option<NextHop> {
    let place = FIB.get_ptr_mut(0)?;
    // SAFETY: a map value of this CPU; hooks do not nest on a CPU.
    let params = unsafe { &mut *place };
    // SAFETY: all zero is a valid value of this struct of integers.
    *params = unsafe { core::mem::zeroed() };
    params.family = if F::IS_V6 { AF_INET6 } else { AF_INET };
    params.l4_protocol = proto;
    params.__bindgen_anon_1.tot_len = ip_len;
    params.ifindex = ifindex;
    if F::IS_V6 {
        params.__bindgen_anon_3.ipv6_src =
            [saddr.word(0), saddr.word(1), saddr.word(2), saddr.word(3)];
        params.__bindgen_anon_4.ipv6_dst =
            [daddr.word(0), daddr.word(1), daddr.word(2), daddr.word(3)];
    } else {
        params.__bindgen_anon_3.ipv4_src = saddr.word(0);
        params.__bindgen_anon_4.ipv4_dst = daddr.word(0);
    }
    // SAFETY: the context is this program's, the parameters lie there with the size given.
    let code = unsafe { bpf_fib_lookup(ctx, place, size_of::<Params>() as i32, 0) };
    let code = u32::try_from(code).ok()?;
    match code {
        BPF_FIB_LKUP_RET_SUCCESS => Some(NextHop {
            ifindex: params.ifindex,
            dmac: MacAddr::new(params.dmac),
            // Kernels before 6.3 report unresolved neighbours as found.
            ready: !MacAddr::new(params.dmac).is_zero(),
        }),
        BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => Some(NextHop {
            ifindex: params.ifindex,
            dmac: MacAddr::default(),
            ready: false,
        }),
        _ => None,
    }
}
