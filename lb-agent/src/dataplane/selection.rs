//! Lists of members → Maglev tables in ranges of the map `selection`. A table never changes in place: a
//! changed list gets a free range, and the old range rests until no program can read it.

use lb_common::{abi::SelectionList, names::maps};

use super::{
    maglev::{Maglev, Member, rows_for},
    slab::Slab,
    store::{MapStore, StoreError, StoreResult},
};

/// The map `selection`: which rows are in use, and how they are made.
#[derive(Debug)]
pub(crate) struct Selection {
    slab: Slab,
    maglev: Maglev,
    /// Memory for rows that are read.
    rows: Vec<u32>,
}

impl Selection {
    /// Of a map with so many rows, of which `used` are taken.
    pub(crate) fn new(rows: u32, used: &[SelectionList]) -> Self {
        Selection {
            slab: Slab::new(rows, used),
            maglev: Maglev::default(),
            rows: Vec::new(),
        }
    }

    /// Writes the table of a list into a free range.
    pub(crate) fn write<S: MapStore>(
        &mut self,
        store: &mut S,
        list: &mut [Member],
        external: bool,
    ) -> StoreResult<SelectionList> {
        let rows = rows_for(list.len(), external);
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
