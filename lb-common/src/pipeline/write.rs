//! The record of a new flow → its place in the table, with a source port that is free.

use super::hash;
use super::ip::Ip;
use super::tables::Tables;
use super::verdict::{Outcome, Step};
use super::work::Work;
use crate::abi::{Addr6, Be16, Counter, DropReason, Event, EventKind, FlowFlags, ModeFlags};
use crate::family::Address;
use crate::flow_table::{Class, Insert};

/// Source ports that are tried for one flow.
const PORT_TRIES: u32 = 32;
/// Units of stamps for which a closed flow keeps its source port while others can be had: what may still be on its way
/// has arrived by then.
const REST: u32 = 8;

/// Writes the flow in work, and has its packet follow it: ours, or that of the CPU that was first.
#[inline(always)]
pub fn write<F: Ip, T: Tables<F>>(tables: &T) -> Outcome {
    let mut guard = tables.scratch().ok_or(DropReason::FlowBusy)?;
    let work = &mut *guard;
    if insert(tables, work)? {
        tables.count(Counter::NewFlow);
        tables.count_service_flow(work.record().service);
        if tables.config().modes.contains(ModeFlags::DEBUG_EVENTS) {
            tell(work, tables.now_ns());
            tables.event(&work.event);
        }
    } else {
        tables.count(Counter::InsertRace);
    }
    Ok(Step::Slow)
}

/// Draws of a port that lie in a gap of the range and cost no try.
const DRAWS: u32 = 4;

/// A port of the range that may be taken; `None`: all draws lay in its gaps.
#[inline(always)]
fn draw<F: Ip, T: Tables<F>>(tables: &T, first: u32, span: u32) -> Option<Be16> {
    let mut draws = 0;
    while draws < DRAWS {
        // Nobody foresees which: else one sender could keep a port from another.
        let drawn = first.wrapping_add(hash::scale(tables.random(), span));
        #[expect(clippy::cast_possible_truncation, reason = "between two ports")]
        let port = Be16::from_host(drawn as u16);
        if tables.is_snat_port(port) {
            return Some(port);
        }
        draws += 1;
    }
    None
}

/// Writes a record under a reply tuple that is free, with another source port where need be. False: another CPU was first.
#[inline(always)]
fn insert<F: Ip, T: Tables<F>>(tables: &T, work: &mut Work<F>) -> Result<bool, DropReason> {
    let (stamp, flags) = (work.stamp(), work.flags());
    let is_kept = !flags.intersects(FlowFlags::SNAT | FlowFlags::HAIRPIN);
    let range = tables.config().snat_ports;
    let (first, last) = (range.first as u32, range.last as u32);
    let span = last.wrapping_sub(first).wrapping_add(1) & 0x1_ffff;
    // The client's own port, where it may be had: then two flows want one tuple only if two clients chose one port.
    let direct = flags.contains(FlowFlags::DIRECT);
    let keeps = !direct && (is_kept || tables.is_snat_port(work.source_port()));
    let mut takes_other = !keeps;
    let mut failure = DropReason::PortsExhausted;
    let mut tries = 0;
    while tries < PORT_TRIES {
        let age = if tries < PORT_TRIES / 2 { REST } else { 0 };
        tries += 1;
        if takes_other {
            let Some(port) = draw(tables, first, span) else {
                continue;
            };
            work.set_source_port(port);
            if !tables.is_free(&work.words, stamp, age) {
                continue;
            }
        }
        let mut room = tables.insert_flow(&work.words, stamp);
        if room.result == Insert::Exists && !takes_other {
            // The client itself uses its port again; of other clients' connections the answers may still be on their way.
            let age = if is_kept { 0 } else { REST };
            if tables.is_free(&work.words, stamp, age) {
                room = tables.insert_flow(&work.words, stamp);
            }
        }
        if room.evicted != Class::Free {
            tables.count(Counter::FlowEvicted);
        }
        match room.result {
            Insert::Done => return Ok(true),
            Insert::HasRecord => return Ok(false),
            Insert::Exists => {
                if !takes_other {
                    tables.count(Counter::PortRewritten);
                }
                takes_other = true;
                failure = DropReason::PortsExhausted;
            }
            // An index line is full, which another port may spare, or the bucket, which none does.
            Insert::Full => {
                takes_other = true;
                failure = DropReason::FlowInsert;
                tries += PORT_TRIES / 4;
            }
            Insert::Busy => {
                // Whoever holds the lock may be making this very flow: then the next try finds it. If not, the port is
                // still to be had.
                tables.count(Counter::InsertBusy);
                failure = DropReason::FlowBusy;
            }
        }
    }
    Err(failure)
}

/// Puts the event of a new flow together, where it lies: it has no room on the stack.
#[inline(always)]
fn tell<F: Ip>(work: &mut Work<F>, time_ns: u64) {
    let wide = |a: &F::Addr| Addr6 {
        be: [a.word(0), a.word(1), a.word(2), a.word(3)],
    };
    work.event = Event::new(EventKind::NewFlow);
    work.event.time_ns = time_ns;
    work.event.family = if F::IS_V6 { 6 } else { 4 };
    work.event.ifindex = work.ifindex;
    let dial = work.original();
    work.event.proto = dial.proto();
    work.event.side = dial.side();
    work.event.saddr = wide(&dial.saddr());
    work.event.daddr = wide(&dial.daddr());
    work.event.sport = dial.sport();
    work.event.dport = dial.dport();
    work.event.backend_addr = wide(&work.record().backend_addr());
    work.event.backend_port = work.record().backend_port;
}
