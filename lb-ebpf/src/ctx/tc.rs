//! An skb at tc as a packet.

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_pull_data,
};
use lb_common::Family;
use lb_common::pipeline::packet::{NextHop, Offset, PacketBuf};
use lb_common::wire::checksum::Diff;
use lb_common::wire::{Header, W16};

use super::{packet_pointer, window};

/// `bpf_l4_csum_replace`: the addresses are IPv6, so that CHECKSUM_COMPLETE stays as it is (6.16).
const BPF_F_IPV6: u64 = 1 << 7;

/// An skb.
pub(crate) struct TcPacket {
    skb: *mut __sk_buff,
}

impl TcPacket {
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        TcPacket { skb }
    }
    #[inline(always)]
    fn data(&self) -> usize {
        packet_pointer!(self.skb, "76")
    }
    #[inline(always)]
    fn data_end(&self) -> usize {
        packet_pointer!(self.skb, "80")
    }
    #[inline(always)]
    fn at<T: Header>(&self, at: Offset) -> Option<*mut T> {
        window::at(self.data(), self.data_end(), at)
    }
    /// EtherType of the packet in network byte order.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).protocol }
    }
    /// Whether the packet carries a VLAN tag beside its data: it belongs to a VLAN device, whose own
    /// hooks see it.
    #[inline(always)]
    pub(crate) fn is_vlan(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        let present = unsafe { (*self.skb).vlan_present };
        // SAFETY: as above.
        let tci = unsafe { (*self.skb).vlan_tci };
        // VLAN 0 is a priority tag of the device itself (IEEE 802.1Q).
        present != 0 && tci & 0x0fff != 0
    }
    /// Whether the frame is addressed to another host (`PACKET_OTHERHOST`): the interface hears more than its own.
    #[inline(always)]
    pub(crate) fn is_others(&self) -> bool {
        const PACKET_OTHERHOST: u32 = 3;
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).pkt_type == PACKET_OTHERHOST }
    }
    /// What the program before the tail call left: where IP starts, and the side.
    #[inline(always)]
    pub(crate) fn note(&self) -> (Offset, u32) {
        // SAFETY: the context is valid while the program runs.
        let l3 = unsafe { (*self.skb).cb[0] };
        // SAFETY: the context is valid while the program runs.
        let side = unsafe { (*self.skb).cb[1] };
        (Offset::new(l3), side)
    }
    /// Leaves a note for the tail-called program in the control block, which is scratch space between
    /// the layers.
    #[inline(always)]
    pub(crate) fn leave_note(&mut self, l3: Offset, side: u32) {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).cb[0] = l3.get() }
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).cb[1] = side }
    }
}

/// Whether the kernel knows `BPF_F_IPV6` of `bpf_l4_csum_replace` (6.16 and backports): set by the agent before it
/// loads the object, a constant to the verifier.
#[unsafe(no_mangle)]
static HAS_CSUM_IPV6: u8 = 0;

#[inline(always)]
fn has_csum_ipv6() -> bool {
    let has_csum_ipv6 = &raw const HAS_CSUM_IPV6;
    // SAFETY: a byte of the read-only data; volatile, because the loader may have changed it.
    unsafe { has_csum_ipv6.read_volatile() != 0 }
}

impl PacketBuf for TcPacket {
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
    fn linear(&mut self, len: u32) {
        let want = len.min(self.len());
        // SAFETY: the context is this program's; no window is open, `self` is borrowed exclusively.
        // A failure shows in the next window, which stays closed.
        let _failed = unsafe { bpf_skb_pull_data(self.skb, want) };
    }
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).len }
    }
    #[inline(always)]
    fn set_len(&mut self, len: u32) -> bool {
        // SAFETY: the context is this program's; no window is open, `self` is borrowed exclusively.
        unsafe { bpf_skb_change_tail(self.skb, len, 0) == 0 }
    }
    /// No context field tells; but `bpf_l4_csum_replace` leaves an unfinished checksum alone when the
    /// change is not one of the pseudo-header, and alters every other one.
    #[inline(always)]
    fn is_partial(&mut self, check_at: Offset) -> bool {
        let Some(before) = self.header::<W16>(check_at).map(|field| field.get()) else {
            return false;
        };
        // SAFETY: the context is this program's; no window is open.
        let code = unsafe { bpf_l4_csum_replace(self.skb, check_at.get(), 0, 1, 0) };
        let Some(field) = self.header_mut::<W16>(check_at) else {
            return false;
        };
        let partial = code == 0 && field.get() == before;
        field.set(before);
        partial
    }
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.skb).ifindex }
    }
    /// `bpf_l4_csum_replace` knows about CHECKSUM_PARTIAL and COMPLETE; one call for the addresses, one
    /// more if anything else changed.
    #[inline(always)]
    fn repair_checksum<F: Family>(
        &mut self,
        at: Offset,
        addresses: Diff,
        data: Diff,
        udp: bool,
    ) -> bool {
        let mangled = if udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        let mut flags = mangled | BPF_F_PSEUDO_HDR as u64;
        let give_back = F::IS_V6 && !has_csum_ipv6();
        if F::IS_V6 && !give_back {
            flags |= BPF_F_IPV6;
        }
        if addresses != Diff::NONE {
            let diff = addresses.to_u32();
            // SAFETY: the context is this program's; no window is open.
            let code = unsafe { bpf_l4_csum_replace(self.skb, at.get(), 0, diff as u64, flags) };
            if code != 0 {
                return false;
            }
            if give_back {
                // Without the flag the helper takes the difference out of CHECKSUM_COMPLETE, as is right
                // for IPv4, whose own checksum cancels it; IPv6 has none. Fails, as it should, for any
                // other state of the checksum.
                // SAFETY: the context is this program's; no window is open.
                let _not_complete = unsafe { bpf_csum_update(self.skb, diff) };
            }
        }
        if data != Diff::NONE {
            // SAFETY: the context is this program's; no window is open.
            let code = unsafe {
                bpf_l4_csum_replace(self.skb, at.get(), 0, data.to_u32() as u64, mangled)
            };
            if code != 0 {
                return false;
            }
        }
        true
    }
    #[inline(always)]
    fn route<F: Family>(
        &self,
        saddr: &F::Addr,
        daddr: &F::Addr,
        proto: u8,
        _ip_len: u32,
    ) -> Option<NextHop> {
        // Of a GSO packet the length says nothing about the MTU, and tc does not transmit anyway.
        super::fib::lookup::<F>(self.skb.cast(), self.ifindex(), saddr, daddr, proto, 0)
    }
}
