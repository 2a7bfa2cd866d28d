//! What a stage wants done → the table changed, and the packet on its way.

use super::affinity;
use super::ip::Ip;
use super::tables::Tables;
use super::verdict::Outcome;
use super::work::Todo;
use crate::abi::{Counter, DropReason, FlowFlags};
use crate::flow_table::Insert;

/// Tries of a change for which a lock has to be had.
const TRIES: u32 = 4;

/// Tries until it is done, or gives up. Busy is not failure: the holder of a lock needs less than a microsecond.
#[inline(always)]
fn in_time(mut is_done: impl FnMut() -> bool) -> bool {
    let mut tries = 0;
    while tries < TRIES {
        if is_done() {
            return true;
        }
        tries += 1;
    }
    false
}

/// Does what the flow in work asks for; gives the step that was left.
#[inline(always)]
pub fn commit<F: Ip, T: Tables<F>>(tables: &T) -> Outcome {
    let mut guard = tables.scratch().ok_or(DropReason::FlowBusy)?;
    let work = &mut *guard;
    let (todo, stamp) = (work.todo, tables.stamp());
    let original = work.original();
    if todo.contains(Todo::DELETE)
        && !in_time(|| tables.delete_flow(&original))
        // Gone already, by another CPU; else what it was deleted for would find it again.
        && tables.look(&original, work).is_some()
    {
        return Err(DropReason::FlowBusy);
    }
    if todo.contains(Todo::RESERVE) {
        tables.reserve(&original, stamp);
    }
    if todo.contains(Todo::CHANGE) {
        let is_done = in_time(|| tables.change_flow(&original, work.change, stamp));
        if !is_done && todo.contains(Todo::MUST) {
            return Err(DropReason::FlowBusy);
        }
        if is_done && work.change.sets(FlowFlags::CONFIRMED) {
            tables.count(Counter::FlowConfirmed);
            affinity::remember_flow(tables, &work.record());
        }
    }
    if todo.contains(Todo::HALVE) {
        let mut result = Insert::Busy;
        in_time(|| {
            result = tables.halve_flow(&original);
            result != Insert::Busy
        });
        match result {
            Insert::Done => {}
            Insert::Busy => return Err(DropReason::FlowBusy),
            _ => return Err(DropReason::FlowInsert),
        }
    }
    Ok(work.step())
}
