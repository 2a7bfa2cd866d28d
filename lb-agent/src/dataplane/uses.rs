//! Users of a thing → whether anybody uses it.

use std::{collections::HashMap, hash::Hash};

/// How many use each thing; one that nobody uses is not there.
#[derive(Clone, Debug)]
pub(crate) struct Uses<K>(HashMap<K, u32>);

impl<K> Default for Uses<K> {
    fn default() -> Self {
        Uses(HashMap::new())
    }
}

impl<K: Eq + Hash> Uses<K> {
    /// Counts one more user.
    pub(crate) fn acquire(&mut self, thing: K) {
        *self.0.entry(thing).or_default() += 1;
    }
    /// Counts one user less; `true`: that was the last.
    pub(crate) fn release(&mut self, thing: &K) -> bool {
        let Some(uses) = self.0.get_mut(thing) else {
            return false;
        };
        *uses -= 1;
        let is_last = *uses == 0;
        if is_last {
            self.0.remove(thing);
        }
        is_last
    }
    /// Whether somebody uses it.
    pub(crate) fn contains(&self, thing: &K) -> bool {
        self.0.contains_key(thing)
    }
    /// Whether nothing is used.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// What is used.
    pub(crate) fn things(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }
}
