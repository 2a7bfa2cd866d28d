//! Sockets of processes in a cgroup: what they dial, and what they are told whom they talk to.

use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use lb_common::pipeline::socket::{
    SocketOutcome, SocketVerdict, connect, connect6 as connect_v6, report, report6, send,
};
use lb_common::{V4, V6};

use crate::ctx::sock_addr::{PreemptibleKernel, SockAddr, count_drop};

/// The call goes on.
const PROCEED: i32 = 1;
/// The call fails: with what `bpf_set_retval` says, else with EPERM.
const FAIL: i32 = 0;
/// ECONNREFUSED of Linux.
const ECONNREFUSED: i32 = 111;

/// Whether the kernel knows `bpf_set_retval` (5.18): set by the agent before it loads the object. Where
/// it is 0 the verifier sees a constant and removes the call, which an older kernel would refuse.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u8 = 0;

/// connect of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let mut call = SockAddr::<false>::new(ctx.sock_addr);
    finish(connect::<V4, _, _>(&mut call, &PreemptibleKernel))
}

/// connect of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let mut call = SockAddr::<false>::new(ctx.sock_addr);
    finish(connect_v6(&mut call, &PreemptibleKernel))
}

/// sendmsg to an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let mut call = SockAddr::<true>::new(ctx.sock_addr);
    finish(send::<V4, _, _>(&mut call, &PreemptibleKernel))
}

/// sendmsg to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let mut call = SockAddr::<true>::new(ctx.sock_addr);
    finish(send::<V6, _, _>(&mut call, &PreemptibleKernel))
}

/// recvmsg of an IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    tell_v4(&ctx)
}

/// recvmsg of an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    tell_v6(&ctx)
}

/// getpeername of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    tell_v4(&ctx)
}

/// getpeername of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    tell_v6(&ctx)
}

/// These hooks cannot fail a call: the verifier wants them to return 1.
#[inline(always)]
fn tell_v4(ctx: &SockAddrContext) -> i32 {
    let mut call = SockAddr::<false>::new(ctx.sock_addr);
    report::<V4, _, _>(&mut call, &PreemptibleKernel);
    PROCEED
}

#[inline(always)]
fn tell_v6(ctx: &SockAddrContext) -> i32 {
    let mut call = SockAddr::<false>::new(ctx.sock_addr);
    report6(&mut call, &PreemptibleKernel);
    PROCEED
}

#[inline(always)]
fn finish(outcome: SocketOutcome) -> i32 {
    match outcome {
        Ok(SocketVerdict::Pass | SocketVerdict::Translated) => PROCEED,
        Ok(SocketVerdict::Refuse) => {
            refuse();
            FAIL
        }
        Err(reason) => {
            count_drop(reason);
            FAIL
        }
    }
}

#[inline(always)]
fn refuse() {
    let has_set_retval = &raw const HAS_SET_RETVAL;
    // SAFETY: a byte of the read-only data; volatile, because the loader may have changed it.
    if unsafe { has_set_retval.read_volatile() } != 0 {
        // SAFETY: a helper that takes a number. It fails for a number that is no error, which this is.
        let _set = unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
}
