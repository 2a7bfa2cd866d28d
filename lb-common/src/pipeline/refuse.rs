//! Turns a packet that nobody serves into its refusal, in place: a TCP RST, or an ICMP port unreachable
//! from the dialled address (semantics 10.1, 10.7, 11.1). The frame goes back out of the interface it
//! came in by.
//!
//! The whole packet is written anew. On an skb that spoils CHECKSUM_COMPLETE, which does no harm: an
//! skb that is sent is not verified by it. CHECKSUM_PARTIAL stays, and with it the place where the
//! kernel or the device will write a checksum, see [`partial`](PacketBuf::is_partial) below.

use super::head::{FragmentPart, Parsed, plain_l4};
use super::ip::Ip;
use super::packet::{Offset, PacketBuf, SLOW_BYTES};
use super::parse;
use super::rewrite;
use super::tables::Tables;
use super::verdict::{Outcome, Step};
use crate::abi::{Be16, Be32, Counter, DropReason, proto};
use crate::family::Address;
use crate::wire::checksum::fold;
use crate::wire::{Eth, Icmp, Ports, Tcp, TcpFlags, Udp, W16, W32, icmp4, icmp6};

/// Bytes of TCP, UDP and ICMP headers.
const TCP_LEN: u8 = 20;
const UDP_LEN: u8 = 8;
const ICMP_LEN: u8 = 8;

/// Refuses a packet at a tc ingress hook. What must not be answered is dropped in silence.
#[inline(always)]
pub fn refuse<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    l3: Offset,
) -> Outcome {
    packet.linear(SLOW_BYTES);
    let Some(parsed) = parse::any::<F, P>(packet, l3) else {
        return Err(DropReason::Malformed);
    };
    if !may_answer(packet, &parsed) {
        return Err(DropReason::NoEndpoint);
    }
    if !tables.may_refuse() {
        return Err(DropReason::RefusalLimit);
    }
    let done = if parsed.is_tcp() {
        reset(packet, &parsed)
    } else {
        port_unreachable(packet, &parsed)
    };
    done.ok_or(DropReason::RefusalFailed)?;
    rewrite::turn_round(packet, l3)?;
    tables.count(Counter::Refused);
    Ok(Step::Reflect)
}

/// RFC 1122, 3.2.2: no answer to what came from or went to many, to later fragments; RFC 9293, 3.5.2:
/// none to a RST.
#[inline(always)]
fn may_answer<F: Ip, P: PacketBuf>(packet: &P, parsed: &Parsed<F>) -> bool {
    if parsed.ip.fragment == FragmentPart::Later || parsed.tcp_flags.contains(TcpFlags::RST) {
        return false;
    }
    if !F::is_unicast(&parsed.ip.saddr) {
        return false;
    }
    if parsed.l3.get() == 0 {
        return true;
    }
    match packet.header::<Eth>(Offset::START) {
        Some(eth) => eth.dst().octets()[0] & 1 == 0,
        None => false,
    }
}

/// Whether the kernel will finish a transport checksum in this packet. `None` where its place does not
/// fit the answer: behind options or extension headers, which an answer does not repeat.
#[inline(always)]
fn partial<F: Ip, P: PacketBuf>(packet: &mut P, parsed: &Parsed<F>, check_at: u32) -> Option<bool> {
    let partial = packet.is_partial(parsed.ip.l4.plus(check_at));
    if partial && parsed.ip.l4 != plain_l4::<F>(parsed.l3) {
        return None;
    }
    Some(partial)
}

/// A RST as the answer to a segment of a connection that does not exist (RFC 9293, 3.10.7.1).
#[inline(always)]
fn reset<F: Ip, P: PacketBuf>(packet: &mut P, parsed: &Parsed<F>) -> Option<()> {
    let tcp = packet.header::<Tcp>(parsed.ip.l4)?;
    let (seq, ack, flags) = (tcp.seq.get(), tcp.ack.get(), tcp.flags);
    let header_len = u32::from(tcp.data_offset >> 4) * 4;
    let partial = partial(packet, parsed, Tcp::CHECK_AT)?;

    let l4 = plain_l4::<F>(parsed.l3);
    resize(packet, l4.plus(TCP_LEN.into()))?;
    F::answer(packet, parsed, proto::TCP, TCP_LEN.into())?;
    // The finished checksum of the old segment does not stand in the way: the field is written last.
    let zero = Be16 { be: 0 };
    let tcp = packet.header_mut::<Tcp>(l4)?;
    tcp.ports.set_word(Ports::join(parsed.dport, parsed.sport));
    tcp.data_offset = 5 << 4;
    tcp.window.set(zero);
    tcp.urgent.set(zero);
    tcp.check.set(zero);
    if flags.contains(TcpFlags::ACK) {
        tcp.seq.set(ack);
        tcp.ack.set(Be32 { be: 0 });
        tcp.flags = TcpFlags::RST;
    } else {
        let syn = u32::from(flags.contains(TcpFlags::SYN));
        let fin = u32::from(flags.contains(TcpFlags::FIN));
        let payload = parsed
            .ip
            .ip_len
            .wrapping_sub(parsed.ip.l4.get().wrapping_sub(parsed.l3.get()))
            .wrapping_sub(header_len);
        let end = seq
            .to_host()
            .wrapping_add(payload)
            .wrapping_add(syn)
            .wrapping_add(fin);
        tcp.seq.set(Be32 { be: 0 });
        tcp.ack.set(Be32::from_host(end));
        tcp.flags = TcpFlags::RST | TcpFlags::ACK;
    }
    let seed = pseudo_sum(parsed, proto::TCP, TCP_LEN.into());
    let check = if partial {
        // The kernel adds the segment to what it finds here.
        fold(seed)
    } else {
        !fold(seed + sum(packet, l4, u32::from(TCP_LEN) / 4)?)
    };
    packet.header_mut::<Tcp>(l4)?.check.set(Be16 { be: check });
    Some(())
}

/// A port unreachable that quotes the IP header and the UDP header (RFC 792, RFC 4443 3.1). Options and
/// extension headers are left out of the quote.
#[inline(always)]
fn port_unreachable<F: Ip, P: PacketBuf>(packet: &mut P, parsed: &Parsed<F>) -> Option<()> {
    let udp = *packet.header::<Udp>(parsed.ip.l4)?;
    let partial = partial(packet, parsed, Udp::CHECK_AT)?;

    let l4 = plain_l4::<F>(parsed.l3);
    let ip_len = if F::IS_V6 { 40 } else { 20 };
    let icmp_len = ICMP_LEN + ip_len + UDP_LEN;
    resize(packet, l4.plus(icmp_len.into()))?;
    let quote = l4.plus(ICMP_LEN.into());
    *packet.header_mut::<Udp>(quote.plus(ip_len.into()))? = udp;
    F::quote(packet, parsed, quote)?;
    F::answer(packet, parsed, F::ICMP, icmp_len.into())?;

    let seed = if F::IS_V6 {
        pseudo_sum(parsed, F::ICMP, icmp_len.into())
    } else {
        0
    };
    // Where the kernel is going to finish a UDP checksum, it adds up this message and writes the
    // complement into the lower half of the unused word, where that checksum was. ICMP: the message
    // sums up to 0, so 0 is written (as 0xffff), which changes nothing. ICMPv6: it sums up to the
    // complement of the pseudo-header's sum; that sum stands there already, so nothing changes either.
    let unused = if partial && F::IS_V6 { fold(seed) } else { 0 };
    let icmp = packet.header_mut::<Icmp>(l4)?;
    (icmp.kind, icmp.code) = if F::IS_V6 {
        (icmp6::UNREACHABLE, icmp6::PORT_UNREACHABLE)
    } else {
        (icmp4::UNREACHABLE, icmp4::PORT_UNREACHABLE)
    };
    icmp.check.set(Be16 { be: 0 });
    icmp.rest.set(Be32 { be: 0 });
    packet
        .header_mut::<W16>(l4.plus(Udp::CHECK_AT))?
        .set(Be16 { be: unused });
    let check = !fold(seed + sum(packet, l4, u32::from(icmp_len) / 4)?);
    packet.header_mut::<Icmp>(l4)?.check.set(Be16 { be: check });
    Some(())
}

/// Makes the packet end here, all of it within reach.
#[inline(always)]
fn resize<P: PacketBuf>(packet: &mut P, end: Offset) -> Option<()> {
    if !packet.set_len(end.get()) {
        return None;
    }
    packet.linear(end.get());
    Some(())
}

/// Sum of the pseudo-header of the answer: it does not depend on which address is the source.
#[inline(always)]
fn pseudo_sum<F: Ip>(parsed: &Parsed<F>, proto: u8, len: u16) -> u64 {
    let mut sum = u64::from(Be16::from_host(proto.into()).be) + u64::from(Be16::from_host(len).be);
    let mut i = 0;
    while i < F::Addr::WORDS {
        sum += u64::from(parsed.ip.saddr.word(i)) + u64::from(parsed.ip.daddr.word(i));
        i += 1;
    }
    sum
}

/// Sum of so many words; the count is a constant.
#[inline(always)]
fn sum<P: PacketBuf>(packet: &P, at: Offset, words: u32) -> Option<u64> {
    let mut sum = 0;
    let mut i = 0;
    while i < words {
        sum += u64::from(packet.header::<W32>(at.plus(4 * i))?.get().be);
        i += 1;
    }
    Some(sum)
}
