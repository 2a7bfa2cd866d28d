//! Lists of members → Maglev tables in ranges of the map `selection`. A changed list gets a free range, and the old
//! range rests until no program can read it. Where rows are short the table is smaller, down to a row an endpoint;
//! where there are none the rows of the table that the list had are set one by one.

use std::{collections::HashMap, iter};

use lb_common::{abi::SelectionList, names::maps};

use super::{
    maglev::{Maglev, Member, rows_for, rows_within},
    model::Table,
    slab::Slab,
    store::{MapStore, StoreError, StoreResult},
};

/// Of so many rows one is kept back for lists that else had less than a row an endpoint: no list goes unserved because
/// others have more than they need.
const KEPT_BACK: u32 = 16;

/// The map `selection`: which rows are in use, and how they are made.
#[derive(Debug)]
pub(crate) struct Selection {
    slab: Slab,
    /// Rows that only lists with less than a row an endpoint may take.
    kept_back: u32,
    maglev: Maglev,
    /// Memory for rows that are read.
    rows: Vec<u32>,
}

impl Selection {
    /// Of a map with so many rows, of which `used` are taken.
    pub(crate) fn new(rows: u32, used: &[SelectionList]) -> Self {
        Selection {
            slab: Slab::new(rows, used),
            kept_back: rows / KEPT_BACK,
            maglev: Maglev::default(),
            rows: Vec::new(),
        }
    }

    /// Rows of a table that is better than what a list has; `None`: none can be had.
    pub(crate) fn better(&self, has: &Table, external: bool) -> Option<u32> {
        if has.is_proper(external) {
            return None;
        }
        let endpoints = has.endpoints as usize;
        let proper = rows_for(endpoints, external);
        let roomy = self.slab.free_rows().saturating_sub(self.kept_back);
        let roomy = self.slab.longest().min(roomy);
        if proper <= roomy {
            return Some(proper);
        }
        let least = self.slab.longest().min(has.endpoints);
        let rows = rows_within(roomy, endpoints).max(least).min(proper);
        (rows > has.worth()).then_some(rows)
    }

    /// Writes the table of a list into a free range.
    pub(crate) fn write<S: MapStore>(
        &mut self,
        store: &mut S,
        list: &mut [Member],
        rows: u32,
    ) -> StoreResult<SelectionList> {
        let Some(range) = self.slab.take(rows) else {
            return Err(StoreError::Full {
                map: maps::SELECTION,
            });
        };
        if let Err(error) = store.write_rows(range.offset, self.maglev.build(list, rows)) {
            self.slab.give_back(range);
            return Err(error);
        }
        Ok(range)
    }

    /// Sets the rows of a table one by one, so that each names a member and all members as many rows as any other, but
    /// for one; a row that may stay does. Where there are fewer rows than members the first have one. Returns how many
    /// were set.
    pub(crate) fn mend<S: MapStore>(
        &mut self,
        store: &mut S,
        table: SelectionList,
        list: &[Member],
    ) -> StoreResult<usize> {
        if list.is_empty() {
            return Ok(0);
        }
        self.rows.resize(table.len as usize, 0);
        store.read_rows(table.offset, &mut self.rows)?;
        let (each, more) = (self.rows.len() / list.len(), self.rows.len() % list.len());
        let mut due: HashMap<u32, usize> = (0..)
            .zip(list)
            .map(|(at, member)| (member.id, each + usize::from(at < more)))
            .collect();
        let mut set = Vec::new();
        for (at, id) in (table.offset..).zip(&self.rows) {
            match due.get_mut(id) {
                Some(due) if *due > 0 => *due -= 1,
                _ => set.push(at),
            }
        }
        let ids = list
            .iter()
            .flat_map(|member| iter::repeat_n(member.id, due[&member.id]));
        for (at, id) in set.iter().zip(ids) {
            store.write_rows(*at, &[id])?;
        }
        Ok(set.len())
    }

    /// Whether the rows of a table are those of this list.
    pub(crate) fn holds<S: MapStore>(
        &mut self,
        store: &S,
        table: SelectionList,
        list: &mut [Member],
    ) -> StoreResult<bool> {
        self.rows.resize(table.len as usize, 0);
        store.read_rows(table.offset, &mut self.rows)?;
        Ok(self.rows == self.maglev.build(list, table.len))
    }

    /// Writes the rows of a table anew that somebody else has changed.
    pub(crate) fn repair<S: MapStore>(
        &mut self,
        store: &mut S,
        table: SelectionList,
        list: &mut [Member],
    ) -> StoreResult<()> {
        store.write_rows(table.offset, self.maglev.build(list, table.len))
    }

    /// Gives back a table that no program has seen.
    pub(crate) fn give_back(&mut self, table: SelectionList) {
        self.slab.give_back(table);
    }

    /// Lays a table to rest until the next grace period has passed.
    pub(crate) fn rest(&mut self, table: SelectionList) {
        self.slab.rest(table);
    }

    /// Whether some table rests.
    pub(crate) fn is_resting(&self) -> bool {
        self.slab.is_resting()
    }

    /// Frees what rests; a grace period has passed.
    pub(crate) fn release(&mut self) {
        self.slab.release();
    }

    /// Free rows, those at rest not among them.
    pub(crate) fn free_rows(&self) -> u32 {
        self.slab.free_rows()
    }
}

/// Lists of so many endpoints that have their proper tables at once in a map with so many rows.
#[cfg(test)]
pub(crate) fn tables_within(rows: u32, endpoints: usize, external: bool) -> u32 {
    (rows - rows / KEPT_BACK) / rows_for(endpoints, external)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_tables_fit_as_are_told() {
        for (rows, endpoints) in [(16_384, 3), (100_000, 10), (1 << 20, 100)] {
            let mut selection = Selection::new(rows, &[]);
            let list = Table {
                endpoints: u32::try_from(endpoints).unwrap(),
                ..Table::default()
            };
            let proper = rows_for(endpoints, true);
            let mut count = 0;
            while selection.better(&list, true) == Some(proper) {
                selection.slab.take(proper).unwrap();
                count += 1;
            }
            assert_eq!(count, tables_within(rows, endpoints, true));
            // What is left serves others, if with fewer rows.
            assert!(selection.better(&list, true) >= Some(list.endpoints));
        }
    }
}
