//! What a packet does to its flow: found, followed, confirmed, closed, replaced.
//!
//! A new flow is an opening: it gives way to others, and of TCP it waits for certain numbers. A SYN-ACK belongs to it
//! only if it acknowledges that opening's SYN; the flow is confirmed by the client's ACK of that SYN-ACK. So a sender
//! who sees no answers confirms nothing, and touches no connection that goes past the frontends with the same tuple.
//! A FIN or RST counts if its number lies near the newest of its direction.

use super::head::Parsed;
use super::ip::Ip;
pub use super::leg::Leg;
use super::packet::PacketBuf;
use super::tables::Tables;
use super::verdict::Step;
use super::work::{Todo, Wanted, Work};
use crate::abi::flags::flags;
use crate::abi::{Counter, DropReason, FlowFlags, MacAddr, Side, Translation};
use crate::flow_table::{
    Awaited, Change, Class, Found, Hop, Memory, Record, RecordCells, Tuple, find_derived_into,
    find_into,
};
use crate::wire::{Tcp, TcpFlags};

/// Where a record is read: of the fast stages a copy, of the slow ones the flow in work. Beside a parsed IPv6 packet a copy
/// has no room on a stack.
pub trait Seen<F: Ip>: Copy {
    /// The record; what is not asked for is not read.
    fn record(&self) -> Record<F>;
}

impl<F: Ip> Seen<F> for Record<F> {
    #[inline(always)]
    fn record(&self) -> Record<F> {
        *self
    }
}

impl<F: Ip> Seen<F> for &Work<F> {
    #[inline(always)]
    fn record(&self) -> Record<F> {
        Work::record(self)
    }
}

/// A flow, and where a packet of it was met.
#[derive(Clone, Copy, Debug)]
pub struct Met<C, R> {
    /// Its place.
    pub cells: C,
    /// What was read of it.
    pub seen: R,
    /// Where the packet was met.
    pub leg: Leg,
}

impl<C, R> Met<C, R> {
    /// The record.
    #[inline(always)]
    pub fn record<F: Ip>(&self) -> Record<F>
    where
        R: Seen<F>,
    {
        self.seen.record()
    }
    /// Addresses and ports of the packet after its whole translation.
    #[inline(always)]
    pub fn to<F: Ip>(&self) -> Translation<F>
    where
        R: Seen<F>,
    {
        translation(&self.record(), self.leg)
    }
    /// Next hop of the packet's direction; none while its place holds what an opening waits for.
    #[inline(always)]
    pub fn hop<F: Ip>(&self) -> Hop
    where
        R: Seen<F>,
    {
        let record = self.record();
        if self.leg.is_reply() {
            if record.flags.contains(FlowFlags::CONFIRMED) {
                record.hops[1]
            } else {
                Hop::default()
            }
        } else {
            record.hops[0]
        }
    }
}

#[inline(always)]
const fn met<F: Ip, C: Copy>(found: Found<F, C>, leg: Leg) -> Met<C, Record<F>> {
    Met {
        cells: found.cells,
        seen: found.record,
        leg,
    }
}

/// Addresses and ports of a packet of a flow after its whole translation.
#[inline(always)]
pub fn translation<F: Ip>(record: &Record<F>, leg: Leg) -> Translation<F> {
    if leg.is_reply() {
        let client = &record.original;
        Translation {
            saddr: client.daddr(),
            daddr: client.saddr(),
            sport: client.dport(),
            dport: client.sport(),
        }
    } else {
        Translation {
            saddr: record.source_addr(),
            daddr: record.backend_addr(),
            sport: record.source_port,
            dport: record.backend_port,
        }
    }
}

/// The flow of a packet that arrives. `frontend`: its destination may be one; `reply`: it may answer a flow whose
/// source this node translated.
#[inline(always)]
pub fn arrived<F: Ip, T: Tables<F>>(
    tables: &T,
    tuple: &Tuple<F>,
    frontend: bool,
    reply: bool,
) -> Option<Met<T::Cells, Record<F>>> {
    if frontend && let Some(found) = tables.flow(tuple) {
        return Some(met(found, Leg::Original));
    }
    if reply { leaving(tables, tuple) } else { None }
}

/// The flow of a packet that leaves, or answers: by a tuple that follows from it.
#[inline(always)]
pub fn leaving<F: Ip, T: Tables<F>>(
    tables: &T,
    tuple: &Tuple<F>,
) -> Option<Met<T::Cells, Record<F>>> {
    let (found, derived) = tables.flow_by(tuple)?;
    Some(met(found, Leg::of(derived)))
}

flags! {
    /// Where a slow stage looks.
    Look: u32 {
        /// By the original tuple.
        FRONTEND = 1 << 0,
        /// By one that follows from it: of replies, of packets that leave.
        DERIVED = 1 << 1,
        /// By that of replies at external interfaces, too.
        OUTSIDE = 1 << 2,
    }
}

/// Looks an original tuple up and leaves the record in work.
#[inline(always)]
pub fn look_by_original<F: Ip, M: Memory<F>>(
    memory: &M,
    tuple: &Tuple<F>,
    work: &mut Work<F>,
) -> Option<Leg> {
    work.number = find_into(memory, tuple, &mut work.words)?.0;
    Some(Leg::Original)
}

/// Looks a derived tuple up and leaves the record in work.
#[inline(always)]
pub fn look_by_derived<F: Ip, M: Memory<F>>(
    memory: &M,
    tuple: &Tuple<F>,
    work: &mut Work<F>,
) -> Option<Leg> {
    let (number, derived) = find_derived_into(memory, tuple, &mut work.words)?;
    work.number = number.0;
    Some(Leg::of(derived))
}

/// The flow that a slow stage looks up.
#[inline(always)]
pub fn looked_up<'a, F: Ip, T: Tables<F>>(
    tables: &T,
    tuple: &Tuple<F>,
    what: Look,
    work: &'a mut Work<F>,
) -> Option<Met<T::Cells, &'a Work<F>>> {
    let mut leg = None;
    if what.contains(Look::FRONTEND) {
        leg = tables.look(tuple, work);
    }
    if leg.is_none() && what.contains(Look::DERIVED) {
        leg = tables.look_by(tuple, work);
    }
    if leg.is_none() && what.contains(Look::OUTSIDE) {
        leg = tables.look_by(&tuple.at(Side::ExternalIn), work);
    }
    Some(Met {
        leg: leg?,
        cells: tables.cells(work.number)?,
        seen: work,
    })
}

/// Whether somebody else's NAT changes the packets of a flow between tc's hooks: none was met there as the first hook had
/// left it. Then the answer is for that NAT first, even where it comes to the very address and port that this node would
/// have taken, and XDP, which it does not see, must leave the flow alone.
#[inline(always)]
pub fn is_others<F: Ip>(record: &Record<F>) -> bool {
    record.flags & (FlowFlags::BY_HALVES | FlowFlags::OUT_SEEN) == FlowFlags::BY_HALVES
}

/// Units of the stamp after which a record's time of use is written again (about 2 s at HZ=250): a
/// table of many flows is not dirtied for every packet.
pub const RENEW: u32 = 2;

/// Whether the time of use is to be written again.
#[inline(always)]
pub const fn is_due(last_use: u32, stamp: u32) -> bool {
    stamp.wrapping_sub(last_use) >= RENEW
}

/// Notes the time of use, where it is due.
#[inline(always)]
pub fn touch<F: Ip, C: RecordCells<F>>(cells: C, last_use: u32, stamp: u32) {
    if is_due(last_use, stamp) {
        cells.set_stamp(stamp);
    }
}

/// Whether a segment neither opens nor ends anything.
#[inline(always)]
pub fn is_ordinary<F: Ip>(parsed: &Parsed<F>) -> bool {
    !parsed
        .tcp_flags
        .intersects(TcpFlags::SYN.union(TcpFlags::FIN).union(TcpFlags::RST))
}

/// How far the number of a direction may lie behind the note, in units of 65,536, until it is noted anew.
const NOTED: u16 = 32;
/// How far a number may be ahead of the note and still be the next one noted: 32 MiB, the data between two segments
/// that a hook sees of one direction. Who does not know the numbers meets that once in 128 tries.
const AHEAD: u16 = 512;
/// A FIN or RST counts from so many units behind the note ...
const BEHIND_CLOSE: u16 = 32;
/// ... to so many ahead of it: 10 MiB in all, a blind one once in 400 tries.
const AHEAD_CLOSE: u16 = 128;

/// Notes about how far the sender of an ordinary segment has come.
#[inline(always)]
pub fn track<F: Ip, P: PacketBuf, C: RecordCells<F>, R: Seen<F>>(
    packet: &P,
    parsed: &Parsed<F>,
    met: &Met<C, R>,
) {
    if !parsed.is_tcp() {
        return;
    }
    let Some(tcp) = packet.header::<Tcp>(parsed.ip.l4) else {
        return;
    };
    let direction = met.leg.direction();
    let now = (tcp.seq.get().to_host() >> 16) as u16;
    let ahead = now.wrapping_sub(met.record().sequence[direction]);
    if (NOTED..AHEAD).contains(&ahead) {
        met.cells.set_sequence(direction, now);
    }
}

/// Whether the number of a FIN or RST is near what its direction has come to.
#[inline(always)]
fn is_near(sequence: u32, noted: u16) -> bool {
    let ahead = ((sequence >> 16) as u16).wrapping_sub(noted);
    ahead.wrapping_add(BEHIND_CLOSE) < BEHIND_CLOSE + AHEAD_CLOSE
}

/// What a flow makes of a packet that needed a look.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    /// It is translated.
    Go,
    /// It is not this flow's: a connection past the frontends has the same tuple.
    Leave,
    /// The flow is over, and this opens another.
    Over,
}

/// Follows a packet of a flow, slow stages.
#[inline(always)]
pub fn follow<F: Ip, P: PacketBuf, T: Tables<F>>(
    packet: &P,
    tables: &T,
    parsed: &Parsed<F>,
    met: &Met<T::Cells, &Work<F>>,
    wanted: &mut Wanted,
) -> Result<Follow, DropReason> {
    let (record, reply) = (&met.record(), met.leg.is_reply());
    let confirmed = record.flags.contains(FlowFlags::CONFIRMED);
    if !parsed.is_tcp() {
        if reply {
            if !record.flags.contains(FlowFlags::REPLY_SEEN) {
                met.cells.add_flags(FlowFlags::REPLY_SEEN);
            }
        } else if backend_gone(tables, record) {
            return Ok(Follow::Over);
        } else if !confirmed && record.flags.contains(FlowFlags::REPLY_SEEN) {
            wanted.change(CONFIRM);
        }
        return Ok(Follow::Go);
    }
    let tcp = packet
        .header::<Tcp>(parsed.ip.l4)
        .ok_or(DropReason::Malformed)?;
    let (sequence, acknowledged) = (tcp.seq.get().to_host(), tcp.ack.get().to_host());
    let flags = parsed.tcp_flags;
    if flags.is_pure_syn() {
        return Ok(syn(tables, met, sequence, wanted));
    }
    if confirmed {
        if reply && flags.contains(TcpFlags::SYN) && is_outside_over(record) {
            // A backend accepts a connection, and here is the flow of one with the same client, port and backend that
            // ended: were the new one a frontend's, its SYN would have replaced the flow. So the client reached the
            // backend past this node's frontends, from a port that it had used at one, or the node itself did, from a port
            // that the flow had been given; the old flow gives way.
            wanted.todo |= Todo::DELETE;
            tables.count(Counter::OverForgotten);
            return Ok(Follow::Leave);
        }
        if flags.intersects(TcpFlags::FIN | TcpFlags::RST) {
            close(tables, met, sequence, flags, wanted);
        }
        return Ok(Follow::Go);
    }
    if record.flags.contains(FlowFlags::MIDSTREAM) {
        if reply && flags.contains(TcpFlags::RST) {
            // The backend knows no such connection.
            wanted.must_change(REFUSED);
        } else if record.flags.is_over() {
            // Nothing confirms it any more.
        } else if reply && !record.flags.contains(FlowFlags::REPLY_SEEN) {
            met.cells.set_sequence(1, (sequence >> 16) as u16);
            met.cells.add_flags(FlowFlags::REPLY_SEEN);
        } else if !reply && record.flags.contains(FlowFlags::REPLY_SEEN) {
            wanted.change(CONFIRM);
        }
        return Ok(Follow::Go);
    }
    if reply {
        if !flags.intersects(TcpFlags::SYN | TcpFlags::RST | TcpFlags::FIN)
            && record
                .flags
                .intersects(FlowFlags::SNAT | FlowFlags::HAIRPIN)
            && !has_data(packet, parsed)
        {
            // The backend still has a connection of this tuple and asks the client about it (RFC 5961, section 4; TIME_WAIT):
            // its RST ends that one.
            return Ok(Follow::Go);
        }
        Ok(answer(met, flags, sequence, acknowledged, wanted))
    } else {
        let awaited = Awaited::of(&record.hops[1]);
        // Before it has heard of the client the server sends at most the window that the SYN offered, which is not
        // scaled (RFC 7323, 2.2).
        let beyond = acknowledged.wrapping_sub(awaited.number);
        if record.flags.contains(FlowFlags::REPLY_SEEN)
            && flags.contains(TcpFlags::ACK)
            && beyond <= 0xffff
        {
            // A FIN that comes with it is sent again, or followed by the ACK of the server's.
            wanted.change(CONFIRM);
        }
        Ok(Follow::Go)
    }
}

/// A SYN meets a flow: the same again, or another connection in its place (semantics 18.3).
#[inline(always)]
fn syn<F: Ip, T: Tables<F>>(
    tables: &T,
    met: &Met<T::Cells, &Work<F>>,
    sequence: u32,
    wanted: &mut Wanted,
) -> Follow {
    let record = &met.record();
    if met.leg.is_reply() {
        // Simultaneous open through a frontend does not exist: this is the backend's own connection to the client.
        return Follow::Leave;
    }
    if record.flags.is_over() || backend_gone(tables, record) {
        return Follow::Over;
    }
    if record.flags.contains(FlowFlags::CONFIRMED) {
        // The server answers it by a challenge (RFC 5961, section 4) or, its side being gone, by a RST.
        return Follow::Go;
    }
    if record.flags.contains(FlowFlags::MIDSTREAM) {
        return Follow::Over;
    }
    let awaited = Awaited::new(sequence.wrapping_add(1), sequence);
    if Awaited::of(&record.hops[1]).client == awaited.client {
        return Follow::Go;
    }
    // The client tries anew: what is on its way for the first try is not for this one.
    let change = Change::flags(FlowFlags::NONE, FlowFlags::REPLY_SEEN).hop(1, &awaited.as_hop());
    wanted.must_change(change);
    met.cells.set_sequence(0, (sequence >> 16) as u16);
    Follow::Go
}

/// A SYN may carry data, a segment's worth, that a SYN-ACK acknowledges (RFC 7413).
const FAST_OPEN: u32 = 1_500;

/// Whether a segment carries data.
#[inline(always)]
pub(super) fn has_data<F: Ip, P: PacketBuf>(packet: &P, parsed: &Parsed<F>) -> bool {
    let Some(tcp) = packet.header::<Tcp>(parsed.ip.l4) else {
        return false;
    };
    let headers = parsed.ip.l4.get() - parsed.l3.get() + (tcp.data_offset >> 4) as u32 * 4;
    parsed.ip.ip_len > headers
}

/// The backend answers an opening.
#[inline(always)]
fn answer<F: Ip, C: RecordCells<F>>(
    met: &Met<C, &Work<F>>,
    flags: TcpFlags,
    sequence: u32,
    acknowledged: u32,
    wanted: &mut Wanted,
) -> Follow {
    let record = &met.record();
    let awaited = Awaited::of(&record.hops[1]);
    let seen = record.flags.contains(FlowFlags::REPLY_SEEN);
    // The client's first number + 1, of which an opening that was answered keeps 24 bits.
    let answers = flags.contains(TcpFlags::ACK)
        && if seen {
            acknowledged.wrapping_sub(awaited.client).wrapping_sub(1) & 0x00ff_ffff
        } else {
            acknowledged.wrapping_sub(awaited.number)
        } < FAST_OPEN;
    if flags.contains(TcpFlags::RST) {
        // Refused: a RST that acknowledges the SYN (RFC 9293, 3.10.7.3), or one of a server that had accepted.
        if answers || (seen && sequence == awaited.number) {
            wanted.must_change(REFUSED);
            return Follow::Go;
        }
        return Follow::Leave;
    }
    if !flags.contains(TcpFlags::SYN) {
        return if seen { Follow::Go } else { Follow::Leave };
    }
    if !answers {
        return Follow::Leave;
    }
    let next = Awaited {
        number: sequence.wrapping_add(1),
        client: awaited.client,
    };
    if !seen || next.number != awaited.number {
        wanted.must_change(
            Change::flags(FlowFlags::REPLY_SEEN, FlowFlags::NONE).hop(1, &next.as_hop()),
        );
        met.cells.set_sequence(1, (sequence >> 16) as u16);
    }
    Follow::Go
}

/// A FIN or RST of a confirmed connection.
#[inline(always)]
fn close<F: Ip, T: Tables<F>>(
    tables: &T,
    met: &Met<T::Cells, &Work<F>>,
    sequence: u32,
    flags: TcpFlags,
    wanted: &mut Wanted,
) {
    let record = &met.record();
    if !is_near(sequence, record.sequence[met.leg.direction()]) {
        tables.count(Counter::OutOfWindow);
        return;
    }
    let (fin, rst) = met.leg.closing();
    let mut seen = FlowFlags::NONE;
    if flags.contains(TcpFlags::FIN) {
        seen |= fin;
    }
    if flags.contains(TcpFlags::RST) {
        seen |= rst;
    }
    if record.flags.contains(seen) {
        return;
    }
    if !record.flags.union(seen).is_over() {
        met.cells.add_flags(seen);
        return;
    }
    wanted.change(Change::flags(seen, FlowFlags::NONE).class(Class::Closed));
}

/// Whether a flow has ended that came from outside, or from another node.
#[inline(always)]
fn is_outside_over<F: Ip>(record: &Record<F>) -> bool {
    let others = FlowFlags::HAIRPIN | FlowFlags::DIRECT;
    record.flags.is_over()
        && !record.flags.intersects(others)
        && record.original.side() == Side::ExternalIn as u8
}

/// The backend has refused an opening.
const REFUSED: Change = Change::flags(FlowFlags::REPLY_RST, FlowFlags::NONE).class(Class::Closed);

/// The client has answered what it got; the reply's hop takes the place of what the opening waited for. Where the lock is
/// not to be had the next packet does it.
const CONFIRM: Change = Change::flags(FlowFlags::CONFIRMED, FlowFlags::NONE)
    .class(Class::Confirmed)
    .hop(
        1,
        &Hop {
            mac: MacAddr { be: [0; 3] },
            slot: 0,
        },
    );

/// Whether the backend of a flow has got another meaning.
#[inline(always)]
pub fn backend_gone<F: Ip, T: Tables<F>>(tables: &T, record: &Record<F>) -> bool {
    if record.flags.contains(FlowFlags::DIRECT) {
        return false;
    }
    match tables.backend(record.backend) {
        Some(backend) => !is_generation(backend.generation(), record),
        None => true,
    }
}

/// Whether a generation is the one that a flow was made with, of which 16 bits are kept.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half")]
pub const fn is_generation<F: Ip>(generation: u32, record: &Record<F>) -> bool {
    generation as u16 == record.backend_generation
}

/// Whether the source is translated and the flow cannot be found between tc's hooks yet.
#[inline(always)]
pub fn lacks_halves(flags: FlowFlags) -> bool {
    flags & (FlowFlags::SNAT | FlowFlags::BY_HALVES) == FlowFlags::SNAT
}

/// Sees to it that an SNAT flow is found between tc's hooks, before tc lets a packet go on to the stack.
#[inline(always)]
pub fn want_halves<F: Ip, C: RecordCells<F>>(met: &Met<C, &Work<F>>, wanted: &mut Wanted) {
    let flags = met.record().flags;
    if !lacks_halves(flags) {
        return;
    }
    wanted.todo |= Todo::HALVE;
    if met.leg.is_reply() || flags.intersects(FlowFlags::REPLY_SEEN | FlowFlags::CONFIRMED) {
        // XDP has sent what was answered: no other NAT has seen it.
        met.cells.add_flags(FlowFlags::OUT_SEEN);
    }
}

/// How a packet goes on of which this was decided: at once, or behind what is wanted of the table.
#[inline(always)]
pub fn after<F: Ip>(work: &mut Work<F>, wanted: &Wanted, step: Step) -> Step {
    if wanted.todo == Todo::NONE {
        return step;
    }
    work.todo = wanted.todo;
    work.change = wanted.change;
    work.then(step);
    Step::Commit
}

/// Counts a packet of the original direction; service id 0 is no service port.
#[inline(always)]
pub fn count_original<F: Ip, C, R: Seen<F>, T: Tables<F>>(tables: &T, met: &Met<C, R>, bytes: u32) {
    let service = met.record().service;
    if met.leg == Leg::Original && service != 0 {
        tables.count_service_packet(service, bytes);
    }
}
