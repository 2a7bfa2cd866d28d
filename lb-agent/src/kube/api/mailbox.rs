//! What arrived and was not taken yet: of each object its newest state. So the reader never waits
//! for the agent, and what is kept is bounded by the number of objects.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::sync::Notify;

use crate::{
    kube::{
        batch::{Batch, Relist},
        objects::{EndpointSlice, Key, Node, ObjectEvent, Service},
        store::List,
    },
    net::IpFamily,
};

/// One kind of object.
#[derive(Debug)]
struct Pile<T> {
    newest: HashMap<Key, Option<Arc<T>>>,
    /// It holds a complete list, but for these objects, whose state could not be read.
    complete: Option<HashSet<Key>>,
}

impl<T> Default for Pile<T> {
    fn default() -> Self {
        Pile {
            newest: HashMap::new(),
            complete: None,
        }
    }
}

impl<T> Pile<T> {
    fn is_empty(&self) -> bool {
        self.newest.is_empty() && self.complete.is_none()
    }
    fn empty(
        &mut self,
        list: List,
        event: impl Fn(Key, Option<Arc<T>>) -> ObjectEvent,
        batch: &mut Batch,
    ) {
        let newest = mem::take(&mut self.newest).into_iter();
        let events = newest.map(|(key, object)| event(key, object));
        match self.complete.take() {
            Some(keep) => batch.lists.push(Relist {
                list,
                events: events.collect(),
                keep,
            }),
            None => batch.changes.extend(events),
        }
    }
}

#[derive(Debug, Default)]
struct Pending {
    services: Pile<Service>,
    slices: Pile<EndpointSlice>,
    node: Option<Option<Arc<Node>>>,
    node_listed: bool,
    triggers: Vec<(IpFamily, SystemTime)>,
    closed: bool,
}

impl Pending {
    fn put(&mut self, event: ObjectEvent) {
        match event {
            ObjectEvent::Service(key, service) => {
                self.services.newest.insert(key, service);
            }
            ObjectEvent::Slice(key, slice) => {
                self.slices.newest.insert(key, slice);
            }
            ObjectEvent::Node(node) => self.node = Some(node),
        }
    }
}

/// How much of the first state is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum First {
    /// Lists are missing.
    Incomplete,
    /// Only this node's addresses are missing.
    Addresses,
    Complete,
}

/// The mailbox of the agent's loop.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    pending: Mutex<Pending>,
    pub(super) filled: Notify,
}

impl Mailbox {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One object changed; `trigger`: when what led to the change happened.
    pub(super) fn change(&self, event: ObjectEvent, trigger: Option<(IpFamily, SystemTime)>) {
        let mut pending = self.pending();
        pending.put(event);
        pending.triggers.extend(trigger);
        drop(pending);
        self.filled.notify_one();
    }

    /// A complete list. `keep`: objects that are there, but could not be read.
    pub(super) fn list(
        &self,
        list: List,
        events: Vec<ObjectEvent>,
        keep: HashSet<Key>,
        triggers: Vec<(IpFamily, SystemTime)>,
    ) {
        let mut pending = self.pending();
        pending.triggers.extend(triggers);
        match list {
            List::Services => {
                pending.services.newest.clear();
                pending.services.complete = Some(keep);
            }
            List::Slices => {
                pending.slices.newest.clear();
                pending.slices.complete = Some(keep);
            }
            List::Node => {
                pending.node = Some(None);
                pending.node_listed = true;
            }
        }
        for event in events {
            pending.put(event);
        }
        drop(pending);
        self.filled.notify_one();
    }

    /// Nothing more will come.
    pub(super) fn close(&self) {
        self.pending().closed = true;
        self.filled.notify_one();
    }

    /// Whether nothing more will come.
    pub(super) fn is_closed(&self) -> bool {
        self.pending().closed
    }

    /// How much of the first state is there.
    pub(super) fn first(&self) -> First {
        let pending = self.pending();
        let lists = pending.services.complete.is_some() && pending.slices.complete.is_some();
        let node = pending.node.as_ref().and_then(Option::as_ref);
        match lists && pending.node_listed {
            false => First::Incomplete,
            true if node.is_none_or(|node| node.addresses.is_empty()) => First::Addresses,
            true => First::Complete,
        }
    }

    /// Takes everything that is there.
    pub(super) fn take(&self) -> Option<Batch> {
        let mut pending = self.pending();
        if pending.services.is_empty() && pending.slices.is_empty() && pending.node.is_none() {
            return None;
        }
        let mut batch = Batch {
            triggers: mem::take(&mut pending.triggers),
            ..Batch::default()
        };
        pending
            .services
            .empty(List::Services, ObjectEvent::Service, &mut batch);
        pending
            .slices
            .empty(List::Slices, ObjectEvent::Slice, &mut batch);
        let node = pending.node.take().map(ObjectEvent::Node);
        if mem::take(&mut pending.node_listed) {
            batch.lists.push(Relist {
                list: List::Node,
                events: node.into_iter().collect(),
                keep: HashSet::new(),
            });
        } else {
            batch.changes.extend(node);
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::testing::service;

    fn event(name: &str, port: u16) -> ObjectEvent {
        let mut service = service(name);
        service.ports[0].port = port;
        ObjectEvent::Service(service.key.clone(), Some(Arc::new(service)))
    }

    #[test]
    fn of_each_object_the_newest_state_is_kept() {
        // semantics 22.1, 22.2
        let mailbox = Mailbox::default();
        assert!(mailbox.take().is_none());
        for port in 1..1000 {
            mailbox.change(event("web", port), None);
        }
        let gone = ObjectEvent::Service(Key::new("default", "old"), None);
        mailbox.change(event("old", 1), None);
        mailbox.change(gone.clone(), None);
        let batch = mailbox.take().unwrap();
        assert_eq!(batch.changes.len(), 2);
        assert!(batch.changes.contains(&event("web", 999)) && batch.changes.contains(&gone));
        assert!(mailbox.take().is_none());
    }

    #[test]
    fn a_list_replaces_what_came_before_and_takes_what_comes_after() {
        let mailbox = Mailbox::default();
        mailbox.change(event("before", 1), None);
        mailbox.list(
            List::Services,
            vec![event("listed", 1)],
            HashSet::new(),
            Vec::new(),
        );
        mailbox.change(event("after", 1), None);
        let batch = mailbox.take().unwrap();
        assert!(batch.changes.is_empty());
        let mut events = batch.lists[0].events.clone();
        events.sort_by_key(|event| format!("{event:?}"));
        assert_eq!(events, [event("after", 1), event("listed", 1)]);
    }

    #[test]
    fn the_first_state_needs_all_lists_and_waits_for_addresses() {
        // semantics 2.10, 25.1
        let mailbox = Mailbox::default();
        mailbox.list(List::Services, Vec::new(), HashSet::new(), Vec::new());
        mailbox.list(List::Node, Vec::new(), HashSet::new(), Vec::new());
        assert_eq!(mailbox.first(), First::Incomplete);
        mailbox.list(List::Slices, Vec::new(), HashSet::new(), Vec::new());
        assert_eq!(mailbox.first(), First::Addresses);
        let node = Node {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            ..Node::default()
        };
        mailbox.change(ObjectEvent::Node(Some(Arc::new(node))), None);
        assert_eq!(mailbox.first(), First::Complete);
    }
}
