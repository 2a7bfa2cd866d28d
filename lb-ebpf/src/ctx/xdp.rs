//! An XDP frame as a packet.

use aya_ebpf::bindings::xdp_md;
use lb_common::Family;
use lb_common::pipeline::packet::{NextHop, Offset, PacketBuf};
use lb_common::pipeline::rewrite::repair_directly;
use lb_common::wire::Header;
use lb_common::wire::checksum::Diff;

use super::{packet_pointer, window};

/// A frame.
pub(crate) struct XdpPacket {
    ctx: *mut xdp_md,
}

impl XdpPacket {
    #[inline(always)]
    pub(crate) fn new(ctx: *mut xdp_md) -> Self {
        XdpPacket { ctx }
    }
    #[inline(always)]
    fn data(&self) -> usize {
        packet_pointer!(self.ctx, "0")
    }
    #[inline(always)]
    fn data_end(&self) -> usize {
        packet_pointer!(self.ctx, "4")
    }
    #[inline(always)]
    fn at<T: Header>(&self, at: Offset) -> Option<*mut T> {
        window::at(self.data(), self.data_end(), at)
    }
}

impl PacketBuf for XdpPacket {
    #[inline(always)]
    fn header<T: Header>(&self, at: Offset) -> Option<&T> {
        // SAFETY: `at` compared this same pointer, so all of T lies before `data_end`; any bit pattern
        // is a valid `Header`, and the kernel's packet memory suits its alignment claim.
        self.at::<T>(at).map(|header| unsafe { &*header })
    }
    #[inline(always)]
    fn header_mut<T: Header>(&mut self, at: Offset) -> Option<&mut T> {
        // SAFETY: as in `header`; the exclusive borrow of `self` makes the window the only one.
        self.at::<T>(at).map(|header| unsafe { &mut *header })
    }
    #[inline(always)]
    fn linear(&mut self, _len: u32) {}
    #[inline(always)]
    fn len(&self) -> u32 {
        (self.data_end() - self.data()) as u32
    }
    #[inline(always)]
    fn set_len(&mut self, _len: u32) -> bool {
        false
    }
    #[inline(always)]
    fn is_partial(&mut self, _check_at: Offset) -> bool {
        false
    }
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.ctx).ingress_ifindex }
    }
    #[inline(always)]
    fn repair_checksum<F: Family>(
        &mut self,
        at: Offset,
        addresses: Diff,
        data: Diff,
        udp: bool,
    ) -> bool {
        repair_directly(self, at, addresses.and(data), udp && !F::IS_V6, udp)
    }
    #[inline(always)]
    fn route<F: Family>(
        &self,
        saddr: &F::Addr,
        daddr: &F::Addr,
        proto: u8,
        ip_len: u32,
    ) -> Option<NextHop> {
        super::fib::lookup::<F>(
            self.ctx.cast(),
            self.ifindex(),
            saddr,
            daddr,
            proto,
            ip_len as u16,
        )
    }
}
