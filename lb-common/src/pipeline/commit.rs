//! What a stage wants done → the table changed, and the packet on its way.

use super::affinity;
use super::flow::TRIES;
use super::ip::Ip;
use super::tables::Tables;
use super::verdict::Outcome;
use super::work::Todo;
use crate::abi::{Counter, DropReason, FlowFlags};
use crate::flow_table::Insert;

/// Does what the flow in work asks for; gives the step that was left.
#[inline(always)]
pub fn commit<F: Ip, T: Tables<F>>(tables: &T) -> Outcome {
    let mut guard = tables.scratch().ok_or(DropReason::FlowBusy)?;
    let work = &mut *guard;
    let (todo, stamp) = (work.todo, tables.stamp());
    let original = work.original();
    if todo.contains(Todo::DELETE) {
        let mut is_gone = false;
        let mut tries = 0;
        while tries < TRIES && !is_gone {
            is_gone = tables.delete_flow(&original);
            tries += 1;
        }
        // Gone already, by another CPU; else what it was deleted for would find it again.
        if !is_gone && tables.look(&original, work).is_some() {
            return Err(DropReason::FlowBusy);
        }
    }
    if todo.contains(Todo::RESERVE) {
        tables.reserve(&original, stamp);
    }
    if todo.contains(Todo::CHANGE) {
        let mut is_done = false;
        let mut tries = 0;
        // Busy is not failure: the holder of the lock needs less than a microsecond.
        while tries < TRIES && !is_done {
            is_done = tables.change_flow(&original, work.change, stamp);
            tries += 1;
        }
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
        let mut tries = 0;
        while tries < TRIES && result == Insert::Busy {
            result = tables.halve_flow(&original);
            tries += 1;
        }
        match result {
            Insert::Done => {}
            Insert::Busy => return Err(DropReason::FlowBusy),
            _ => return Err(DropReason::FlowInsert),
        }
    }
    Ok(work.step())
}
