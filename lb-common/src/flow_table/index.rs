//! Derived tuples → index entries: added unless the tuple is taken, removed with their record.
//!
//! A removal that does not get its lock leaves its entry behind. Such an entry is found by nobody, since the record it
//! names has another tuple or none, and gives way when its line is full.

use super::find::{at, first_way};
use super::geometry::INDEX_WAYS;
use super::layout::{Entry, Insert, RecordNumber};
use super::memory::{Head, LineCells, Memory, RecordCells};
use super::tuple::{Derived, Hashed, TableFamily, Tuple};

/// From so many entries on, the less loaded of both lines is taken.
const SPILL_FROM: u32 = 5;

/// Bits of the time in a reservation.
const TIME: u32 = (1 << 28) - 1;

/// Adds the entry of a record's derived tuple, unless the tuple is another record's or reserved.
#[inline(always)]
pub fn add_entry<F: TableFamily, M: Memory<F>>(
    memory: &M,
    tuple: &Tuple<F>,
    kind: Derived,
    number: RecordNumber,
) -> Insert {
    let geometry = memory.geometry();
    let hashed = tuple.hashed(&geometry.seeds);
    let (first, fingerprint) = (hashed.first(geometry.line_mask), hashed.fingerprint());
    let entry = Entry::new(fingerprint, kind, number);
    let Some(line) = memory.line(first) else {
        return Insert::Full;
    };
    if !line.lock() {
        return Insert::Busy;
    }
    let second = Hashed::other(first, fingerprint, geometry.line_mask);
    let result = add_locked(memory, tuple, entry, line, first, second);
    line.unlock();
    result
}

/// Under the first line's lock.
#[inline(always)]
fn add_locked<F: TableFamily, M: Memory<F>>(
    memory: &M,
    tuple: &Tuple<F>,
    entry: Entry,
    line: M::Line,
    first: u32,
    second: u32,
) -> Insert {
    match look::<F, M>(memory, line, entry, tuple) {
        Look::Same => return Insert::Done,
        Look::Taken => return Insert::Exists,
        Look::Absent => {}
    }
    let has_spilled = line.spill() != 0;
    let used = used::<F, M>(line);
    if !has_spilled && used < SPILL_FROM {
        return put::<F, M>(line, entry);
    }
    let Some(other) = memory.line(second) else {
        return Insert::Full;
    };
    if !other.lock() {
        // What has spilled may be the tuple itself.
        return if has_spilled {
            Insert::Busy
        } else {
            put_or_sweep(memory, line, first, entry)
        };
    }
    let result = match if has_spilled {
        look::<F, M>(memory, other, entry, tuple)
    } else {
        Look::Absent
    } {
        Look::Same => Insert::Done,
        Look::Taken => Insert::Exists,
        Look::Absent => {
            let is_second = used >= SPILL_FROM && self::used::<F, M>(other) < used;
            if is_second {
                line.add_spill(1);
                put::<F, M>(other, Entry(entry.0 | Entry::SPILLED))
            } else {
                put_or_sweep(memory, line, first, entry)
            }
        }
    };
    other.unlock();
    result
}

/// Removes the entry of a record's derived tuple, if its lock can be had.
#[inline(always)]
pub fn remove_entry<F: TableFamily, M: Memory<F>>(
    memory: &M,
    tuple: &Tuple<F>,
    kind: Derived,
    number: RecordNumber,
) {
    let geometry = memory.geometry();
    let hashed = tuple.hashed(&geometry.seeds);
    let (first, fingerprint) = (hashed.first(geometry.line_mask), hashed.fingerprint());
    let entry = Entry::new(fingerprint, kind, number);
    let Some(line) = memory.line(first) else {
        return;
    };
    if !line.lock() {
        return;
    }
    if !clear::<F, M>(line, entry)
        && line.spill() != 0
        && let Some(other) = memory.line(Hashed::other(first, fingerprint, geometry.line_mask))
        && other.lock()
    {
        if clear::<F, M>(other, entry) {
            line.add_spill(-1);
        }
        other.unlock();
    }
    line.unlock();
}

/// Reserves a tuple: while the reservation stands no record can take it. One that stands gets the new time.
///
/// A reservation lies in its first line always. Only its fingerprint is kept. Another tuple of the same fingerprint in the
/// same line counts as taken, too, once in 4 billion: then a new flow takes another port.
#[inline(always)]
pub fn reserve<F: TableFamily, M: Memory<F>>(memory: &M, tuple: &Tuple<F>, now: u32) -> Insert {
    let geometry = memory.geometry();
    let hashed = tuple.hashed(&geometry.seeds);
    let (first, fingerprint) = (hashed.first(geometry.line_mask), hashed.fingerprint());
    let Some(line) = memory.line(first) else {
        return Insert::Full;
    };
    if !line.lock() {
        return Insert::Busy;
    }
    let entry = Entry::new(fingerprint, Derived::Reserved, RecordNumber(now & TIME));
    let result = match look::<F, M>(memory, line, entry, tuple) {
        Look::Same => {
            renew::<F, M>(line, entry);
            Insert::Done
        }
        Look::Taken => Insert::Exists,
        Look::Absent if line.spill() == 0 => put_or_sweep(memory, line, first, entry),
        Look::Absent => {
            let second = Hashed::other(first, fingerprint, geometry.line_mask);
            match memory.line(second) {
                Some(other) if other.lock() => {
                    let is_taken = look::<F, M>(memory, other, entry, tuple) != Look::Absent;
                    other.unlock();
                    if is_taken {
                        Insert::Exists
                    } else {
                        put_or_sweep(memory, line, first, entry)
                    }
                }
                _ => Insert::Busy,
            }
        }
    };
    line.unlock();
    result
}

/// Whether a tuple is reserved. Looks without a lock.
#[inline(always)]
pub fn is_reserved<F: TableFamily, M: Memory<F>>(memory: &M, tuple: &Tuple<F>) -> bool {
    let geometry = memory.geometry();
    let hashed = tuple.hashed(&geometry.seeds);
    let Some(line) = memory.line(hashed.first(geometry.line_mask)) else {
        return false;
    };
    let sought = Entry::new(hashed.fingerprint(), Derived::Reserved, RecordNumber(0));
    let way = first_way::<F, M>(0, INDEX_WAYS, |way| {
        Entry(line.entry(way)).without_number() ^ sought.without_number()
    });
    way < INDEX_WAYS
}

/// Removes the entries of a line that name no record any more, and reservations older than `age`. Gives how many.
#[inline(always)]
pub fn sweep<F: TableFamily, M: Memory<F>>(memory: &M, index: u32, now: u32, age: u32) -> u32 {
    let Some(line) = memory.line(index) else {
        return 0;
    };
    if !line.lock() {
        return 0;
    }
    let mut swept = 0;
    let mut way = 0;
    while way < INDEX_WAYS {
        let entry = Entry(line.entry(way));
        let is_old =
            entry.kind() == Derived::Reserved && now.wrapping_sub(entry.number().0) & TIME >= age;
        if entry.0 != 0 && (is_old || is_dead(memory, entry)) {
            take(memory, line, index, way, entry);
            swept += 1;
        }
        way += 1;
    }
    line.unlock();
    swept
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Look {
    /// Nobody has the tuple.
    Absent,
    /// This very entry is there: a removal had not got its lock, or a reservation stands.
    Same,
    /// The tuple is another record's, or reserved.
    Taken,
}

/// Entries of one fingerprint that are looked at: of records that are gone a line may hold several, seldom as many.
const CANDIDATES: u32 = 2;

#[inline(always)]
fn look<F: TableFamily, M: Memory<F>>(
    memory: &M,
    line: M::Line,
    entry: Entry,
    tuple: &Tuple<F>,
) -> Look {
    let same = |way| Entry(line.entry(way)).without_place() ^ entry.0;
    if entry.kind() != Derived::Reserved && first_way::<F, M>(0, INDEX_WAYS, same) < INDEX_WAYS {
        return Look::Same;
    }
    let mut from = 0;
    let mut tries = 0;
    while tries < CANDIDATES {
        let way = by_fingerprint::<F, M>(line, entry, from);
        if way >= INDEX_WAYS {
            return Look::Absent;
        }
        let present = Entry(line.entry(way));
        if present.kind() == Derived::Reserved {
            return if entry.kind() == Derived::Reserved {
                Look::Same
            } else {
                Look::Taken
            };
        }
        // A record that is not published yet has its tuples, too.
        if let Some(cells) = at(memory, present.number())
            && cells.read().derived(present.kind()) == *tuple
        {
            return Look::Taken;
        }
        from = way + 1;
        tries += 1;
    }
    // Too many to tell: another port costs less than two records with one tuple.
    if by_fingerprint::<F, M>(line, entry, from) < INDEX_WAYS {
        Look::Taken
    } else {
        Look::Absent
    }
}

#[inline(always)]
fn by_fingerprint<F: TableFamily, M: Memory<F>>(line: M::Line, entry: Entry, from: u32) -> u32 {
    first_way::<F, M>(from, INDEX_WAYS, |way| {
        (Entry(line.entry(way)).fingerprint() ^ entry.fingerprint()) as u64
    })
}

/// Number of entries.
#[inline(always)]
fn used<F: TableFamily, M: Memory<F>>(line: M::Line) -> u32 {
    let (mut used, mut way) = (0, 0);
    while way < INDEX_WAYS {
        let entry = line.entry(way);
        // The uppermost bit of what is not 0, or of its negation.
        used += (M::opaque(entry | entry.wrapping_neg()) >> 63) as u32;
        way += 1;
    }
    used
}

/// Puts an entry into a free way.
#[inline(always)]
fn put<F: TableFamily, M: Memory<F>>(line: M::Line, entry: Entry) -> Insert {
    let way = first_way::<F, M>(0, INDEX_WAYS, |way| line.entry(way));
    if way >= INDEX_WAYS {
        return Insert::Full;
    }
    line.set_entry(way, entry.0);
    Insert::Done
}

/// The same; in a full line what is dead gives way, then a reservation.
#[inline(always)]
fn put_or_sweep<F: TableFamily, M: Memory<F>>(
    memory: &M,
    line: M::Line,
    index: u32,
    entry: Entry,
) -> Insert {
    if put::<F, M>(line, entry) == Insert::Done {
        return Insert::Done;
    }
    let way = memory.make_room(index, entry.kind() == Derived::Reserved);
    if way >= INDEX_WAYS {
        return Insert::Full;
    }
    line.set_entry(way, entry.0);
    Insert::Done
}

/// Frees a way of a full line whose lock the caller holds: one whose record is gone, or, unless `keep_reserved`, that
/// of a reservation. Gives the way, [`INDEX_WAYS`] if there is none.
#[inline(always)]
pub fn make_room<F: TableFamily, M: Memory<F>>(memory: &M, index: u32, keep_reserved: bool) -> u32 {
    let Some(line) = memory.line(index) else {
        return INDEX_WAYS;
    };
    let mut way = 0;
    while way < INDEX_WAYS {
        let present = Entry(line.entry(way));
        let is_reserved = present.kind() == Derived::Reserved;
        if (is_reserved && !keep_reserved) || (!is_reserved && is_dead(memory, present)) {
            take(memory, line, index, way, present);
            return way;
        }
        way += 1;
    }
    INDEX_WAYS
}

/// Removes the entry of a way, and forgets that it had spilled.
#[inline(always)]
fn take<F: TableFamily, M: Memory<F>>(
    memory: &M,
    line: M::Line,
    index: u32,
    way: u32,
    entry: Entry,
) {
    line.set_entry(way, 0);
    if entry.is_spilled()
        && let Some(first) = memory.line(Hashed::other(
            index,
            entry.fingerprint(),
            memory.geometry().line_mask,
        ))
    {
        first.add_spill(-1);
    }
}

/// Whether the record that an entry names has another tuple by now, or is gone.
#[inline(always)]
fn is_dead<F: TableFamily, M: Memory<F>>(memory: &M, entry: Entry) -> bool {
    if entry.kind() == Derived::Reserved {
        return false;
    }
    let Some(cells) = at(memory, entry.number()) else {
        return true;
    };
    let record = cells.read();
    record.is_gone()
        || record
            .derived(entry.kind())
            .hashed(&memory.geometry().seeds)
            .fingerprint()
            != entry.fingerprint()
}

/// Removes this very entry.
#[inline(always)]
fn clear<F: TableFamily, M: Memory<F>>(line: M::Line, entry: Entry) -> bool {
    let way = first_way::<F, M>(0, INDEX_WAYS, |way| {
        Entry(line.entry(way)).without_place() ^ entry.0
    });
    if way >= INDEX_WAYS {
        return false;
    }
    line.set_entry(way, 0);
    true
}

/// Gives a reservation a new time.
#[inline(always)]
fn renew<F: TableFamily, M: Memory<F>>(line: M::Line, entry: Entry) {
    let way = by_fingerprint::<F, M>(line, entry, 0);
    if way < INDEX_WAYS && Entry(line.entry(way)).kind() == Derived::Reserved {
        line.set_entry(way, entry.0);
    }
}
