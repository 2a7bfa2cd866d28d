//! What a source of objects hands over at once: complete lists and single changes.

use std::{collections::HashSet, time::SystemTime};

use super::{
    objects::{Key, ObjectEvent},
    store::List,
};
use crate::net::IpFamily;

/// A fresh complete list of one kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Relist {
    pub list: List,
    pub events: Vec<ObjectEvent>,
    /// Objects that are there, but cannot be read: what is known of them stays.
    pub keep: HashSet<Key>,
}

/// What arrived since the last look.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Batch {
    /// Complete lists; they come before `changes`.
    pub lists: Vec<Relist>,
    pub changes: Vec<ObjectEvent>,
    /// When what led to a changed slice happened (semantics 23.1).
    pub triggers: Vec<(IpFamily, SystemTime)>,
}

impl Batch {
    /// All its events.
    pub(crate) fn events(&self) -> impl Iterator<Item = &ObjectEvent> {
        let listed = self.lists.iter().flat_map(|relist| &relist.events);
        listed.chain(&self.changes)
    }
}
