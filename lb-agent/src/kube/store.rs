//! Everything that is known of Services, slices and the Node. It says nothing before the first
//! complete list of each (semantics 2.10), and afterwards which Services an event concerns.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    mem,
    sync::Arc,
};

use super::objects::{EndpointSlice, Key, Node, ObjectEvent, Service};

/// What events changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dirty {
    /// The Services whose object or slices changed; also those that are gone.
    pub services: BTreeSet<Key>,
    /// The Node object changed.
    pub node: bool,
}

impl Dirty {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node
    }
    /// Adds what else changed.
    pub fn extend(&mut self, more: Dirty) {
        self.services.extend(more.services);
        self.node |= more.node;
    }
}

/// One of the lists that a source delivers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum List {
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
    /// The Node.
    Node,
}

/// The state of all objects.
#[derive(Debug, Default)]
pub struct ObjectStore {
    services: HashMap<Key, Arc<Service>>,
    /// By the slice's own key (semantics 5.3).
    slices: HashMap<Key, Arc<EndpointSlice>>,
    /// By the Service's key, sorted by slice name.
    slices_of: HashMap<Key, Vec<Arc<EndpointSlice>>>,
    node: Option<Arc<Node>>,
    complete: [bool; 3],
    /// Changes from before all lists were complete.
    pending: Dirty,
}

impl ObjectStore {
    /// An empty store that waits for its lists.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether every list was complete once.
    pub fn is_complete(&self) -> bool {
        self.complete == [true; 3]
    }

    /// Takes the complete initial state of a source that delivers everything at once.
    pub fn initial(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> Dirty {
        let dirty = self.record(events);
        self.complete = [true; 3];
        self.emit(dirty)
    }

    /// Takes events. Nothing is dirty before all lists are complete; then everything since is.
    pub fn apply(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> Dirty {
        let dirty = self.record(events);
        self.emit(dirty)
    }

    /// Takes a fresh complete list of one kind: what it lacks is gone, what is equal is no change.
    /// `keep` is not in the list and stays nevertheless.
    pub fn relist(&mut self, list: List, events: Vec<ObjectEvent>, keep: &HashSet<Key>) -> Dirty {
        let mut gone: Vec<ObjectEvent> = Vec::new();
        let listed: BTreeSet<&Key> = events
            .iter()
            .filter_map(|event| match event {
                ObjectEvent::Service(key, Some(_)) | ObjectEvent::Slice(key, Some(_)) => Some(key),
                _ => None,
            })
            .chain(keep)
            .collect();
        match list {
            List::Services => gone.extend(
                self.services
                    .keys()
                    .filter(|key| !listed.contains(key))
                    .map(|key| ObjectEvent::Service(key.clone(), None)),
            ),
            List::Slices => gone.extend(
                self.slices
                    .keys()
                    .filter(|key| !listed.contains(key))
                    .map(|key| ObjectEvent::Slice(key.clone(), None)),
            ),
            List::Node => {
                if events.is_empty() {
                    gone.push(ObjectEvent::Node(None));
                }
            }
        }
        let dirty = self.record(gone.into_iter().chain(events));
        self.complete[list as usize] = true;
        self.emit(dirty)
    }

    /// The Service.
    pub fn service(&self, key: &Key) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// All Services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The slices of a Service, sorted by name.
    pub fn slices_of(&self, service: &Key) -> &[Arc<EndpointSlice>] {
        self.slices_of.get(service).map_or(&[], Vec::as_slice)
    }

    /// The Node. One that is deleted is remembered (semantics 2.6).
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    fn emit(&mut self, dirty: Dirty) -> Dirty {
        self.pending.services.extend(dirty.services);
        self.pending.node |= dirty.node;
        if self.is_complete() {
            mem::take(&mut self.pending)
        } else {
            Dirty::default()
        }
    }

    fn record(&mut self, events: impl IntoIterator<Item = ObjectEvent>) -> Dirty {
        let mut dirty = Dirty::default();
        for event in events {
            match event {
                ObjectEvent::Service(key, new) => {
                    if self.services.get(&key) != new.as_ref() {
                        match new {
                            Some(service) => self.services.insert(key.clone(), service),
                            None => self.services.remove(&key),
                        };
                        dirty.services.insert(key);
                    }
                }
                ObjectEvent::Slice(key, new) => self.record_slice(key, new, &mut dirty),
                ObjectEvent::Node(new) => {
                    if new.is_some() && self.node != new {
                        self.node = new;
                        dirty.node = true;
                    }
                }
            }
        }
        dirty
    }

    fn record_slice(&mut self, key: Key, new: Option<Arc<EndpointSlice>>, dirty: &mut Dirty) {
        let old = self.slices.get(&key);
        if old == new.as_ref() {
            return;
        }
        if let Some(old) = old {
            let service = old.service_key();
            if let Some(slices) = self.slices_of.get_mut(&service) {
                slices.retain(|slice| slice.key.name != key.name);
                if slices.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
            dirty.services.insert(service);
        }
        match new {
            Some(slice) => {
                let service = slice.service_key();
                let slices = self.slices_of.entry(service.clone()).or_default();
                let at = slices.partition_point(|other| other.key.name < key.name);
                slices.insert(at, slice.clone());
                dirty.services.insert(service);
                self.slices.insert(key, slice);
            }
            None => {
                self.slices.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::testing::{service, slice};

    fn service_event(name: &str) -> ObjectEvent {
        let service = service(name);
        ObjectEvent::Service(service.key.clone(), Some(Arc::new(service)))
    }
    fn slice_event(name: &str, service: &str) -> ObjectEvent {
        let slice = slice(name, service).build();
        ObjectEvent::Slice(slice.key.clone(), Some(Arc::new(slice)))
    }
    fn keys(dirty: &Dirty) -> Vec<String> {
        dirty.services.iter().map(Key::to_string).collect()
    }

    #[test]
    fn nothing_is_dirty_before_all_lists_are_complete() {
        // semantics 2.10: either order, slices of unknown Services are remembered
        let none = HashSet::new();
        let mut store = ObjectStore::new();
        assert!(store.apply([slice_event("web-1", "web")]).is_empty());
        let slices = vec![slice_event("web-1", "web")];
        assert!(store.relist(List::Slices, slices, &none).is_empty());
        assert!(store.apply([service_event("web")]).is_empty());
        assert!(store.relist(List::Node, Vec::new(), &none).is_empty());
        let services = vec![service_event("web")];
        let dirty = store.relist(List::Services, services, &none);
        assert_eq!(keys(&dirty), ["default/web"]);
        assert_eq!(store.slices_of(&Key::new("default", "web")).len(), 1);
    }

    #[test]
    fn an_equal_object_is_no_change() {
        // semantics 5.17
        let mut store = ObjectStore::new();
        assert!(
            !store
                .initial([service_event("web"), slice_event("web-1", "web")])
                .is_empty()
        );
        assert!(
            store
                .apply([service_event("web"), slice_event("web-1", "web")])
                .is_empty()
        );
    }

    #[test]
    fn a_slice_that_changes_its_service_makes_both_dirty() {
        // semantics 5.1
        let mut store = ObjectStore::new();
        store.initial([slice_event("s", "a")]);
        assert_eq!(
            keys(&store.apply([slice_event("s", "b")])),
            ["default/a", "default/b"]
        );
        assert!(store.slices_of(&Key::new("default", "a")).is_empty());
        let gone = ObjectEvent::Slice(Key::new("default", "s"), None);
        assert_eq!(keys(&store.apply([gone])), ["default/b"]);
        assert!(store.slices_of(&Key::new("default", "b")).is_empty());
    }

    #[test]
    fn a_relist_removes_what_it_lacks() {
        // semantics 2.9
        let mut store = ObjectStore::new();
        store.initial([service_event("a"), service_event("b")]);
        let dirty = store.relist(
            List::Services,
            vec![service_event("b"), service_event("c")],
            &HashSet::new(),
        );
        assert_eq!(keys(&dirty), ["default/a", "default/c"]);
        assert!(store.service(&Key::new("default", "a")).is_none());
        let keep = HashSet::from([Key::new("default", "b")]);
        let dirty = store.relist(List::Services, Vec::new(), &keep);
        assert_eq!(keys(&dirty), ["default/c"]);
        assert!(store.service(&Key::new("default", "b")).is_some());
    }

    #[test]
    fn a_deleted_node_is_remembered() {
        // semantics 2.6
        let mut store = ObjectStore::new();
        let node = Arc::new(Node {
            zone: Some("a".into()),
            ..Node::default()
        });
        assert!(store.initial([ObjectEvent::Node(Some(node.clone()))]).node);
        assert!(store.apply([ObjectEvent::Node(None)]).is_empty());
        assert_eq!(store.node(), Some(&node));
    }
}
