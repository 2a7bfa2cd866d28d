//! Equal names and placements become one allocation: a cluster repeats few node, zone and port names
//! in very many endpoints.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use super::objects::Placement;

/// How many values a table may hold before it first forgets those that nobody uses.
const FIRST_SWEEP: usize = 1024;

#[derive(Debug)]
struct Table<T: ?Sized> {
    values: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized + Hash + Eq> Table<T> {
    fn new() -> Self {
        Table {
            values: HashSet::new(),
            sweep_at: FIRST_SWEEP,
        }
    }
    fn insert(&mut self, value: Arc<T>) {
        if self.values.len() >= self.sweep_at {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = (self.values.len() * 2).max(FIRST_SWEEP);
        }
        self.values.insert(value);
    }
}

/// Shares equal values. Values that nobody else holds are forgotten from time to time.
#[derive(Debug)]
pub struct Interner {
    names: Table<str>,
    placements: Table<Placement>,
}

impl Default for Interner {
    fn default() -> Self {
        Interner {
            names: Table::new(),
            placements: Table::new(),
        }
    }
}

impl Interner {
    /// The shared name.
    pub fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.values.get(name) {
            return known.clone();
        }
        let new: Arc<str> = name.into();
        self.names.insert(new.clone());
        new
    }

    /// The shared placement.
    pub fn placement(&mut self, placement: Placement) -> Arc<Placement> {
        if let Some(known) = self.placements.values.get(&placement) {
            return known.clone();
        }
        let new = Arc::new(placement);
        self.placements.insert(new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_one_allocation_and_unused_ones_are_forgotten() {
        let mut interner = Interner::default();
        let kept = interner.name("zone-a");
        assert!(Arc::ptr_eq(&kept, &interner.name("zone-a")));
        for i in 0..10_000 {
            interner.name(&format!("pod-{i}"));
        }
        assert!(interner.names.values.len() <= FIRST_SWEEP + 1);
        assert!(Arc::ptr_eq(&kept, &interner.name("zone-a")));
    }
}
