//! A service port as its backends, tables and source ranges stand in the maps, and what it has replaced but
//! some frontend may still show.

use std::sync::Arc;

use lb_common::abi::{SelectionList, ServiceKey, SrcRangeKey};

use crate::{
    dataplane::{
        frontend_map::FrontendMap,
        model::{self, Tables},
        store::StoreFamily,
    },
    desired::state::{PortKey, ServicePort},
};

/// A service port as it stands in the maps.
#[derive(Debug)]
pub(super) struct HeldPort<F: StoreFamily> {
    /// What its backends, tables and source ranges are made for; its frontends follow.
    pub(super) want: Arc<ServicePort>,
    pub(super) service_id: u32,
    /// Backend ids, parallel to the endpoints of `want`.
    pub(super) ids: Box<[u32]>,
    pub(super) tables: Tables,
    pub(super) ranges: Box<[SrcRangeKey<F>]>,
    pub(super) replaced: Option<Box<Replaced<F>>>,
    /// Removed from the desired state; goes when nothing of it is left in the maps.
    pub(super) is_removed: bool,
}

/// What a service port has replaced and some frontend may still show.
#[derive(Debug)]
pub(super) struct Replaced<F: StoreFamily> {
    pub(super) keys: Vec<ServiceKey<F>>,
    pub(super) ids: Vec<u32>,
    pub(super) tables: Vec<SelectionList>,
    pub(super) ranges: Vec<SrcRangeKey<F>>,
}

/// What a service port has in the maps once it is prepared.
#[derive(Debug)]
pub(super) struct Prepared<F: StoreFamily> {
    /// Backend ids, parallel to the wanted endpoints.
    pub(super) ids: Vec<u32>,
    /// Ids that it has no use for any more.
    pub(super) gone: Vec<u32>,
    pub(super) tables: Tables,
    pub(super) ranges: Vec<SrcRangeKey<F>>,
}

impl<F: StoreFamily> HeldPort<F> {
    /// One of which nothing is in the maps.
    pub(super) fn blank(key: &PortKey, service_id: u32) -> Self {
        HeldPort {
            want: Arc::new(model::nothing(key)),
            service_id,
            ids: Box::default(),
            tables: Tables::default(),
            ranges: Box::default(),
            replaced: None,
            is_removed: true,
        }
    }

    /// Whether nothing of it is in the maps.
    pub(super) fn is_blank(&self) -> bool {
        self.ids.is_empty()
            && self.ranges.is_empty()
            && self.replaced.is_none()
            && self.want.frontends.is_empty()
    }

    /// What the desired state says of it: itself, or that it is removed.
    pub(super) fn desired(&self) -> Option<Arc<ServicePort>> {
        (!self.is_removed).then(|| self.want.clone())
    }

    /// Takes on what was prepared for it; what it had is replaced.
    pub(super) fn change(
        &mut self,
        want: Arc<ServicePort>,
        prepared: Prepared<F>,
        is_removed: bool,
    ) {
        let Prepared {
            ids,
            gone,
            tables,
            ranges,
        } = prepared;
        let replaced = self.replaced.get_or_insert_default();
        replaced.ids.extend(gone);
        for old in self.tables.with_rows() {
            if !tables.with_rows().any(|new| new == old) && !replaced.tables.contains(&old) {
                replaced.tables.push(old);
            }
        }
        replaced.ranges.extend(self.ranges.iter().copied());
        replaced.ranges.retain(|range| !ranges.contains(range));
        replaced.keys.extend(model::service_keys::<F>(&self.want));
        let shown: FrontendMap<F, ()> = model::service_keys::<F>(&want).collect();
        replaced.keys.retain(|key| !shown.contains_key(key));

        self.want = want;
        self.ids = ids.into_boxed_slice();
        self.tables = tables;
        self.ranges = ranges.into_boxed_slice();
        self.is_removed = is_removed;
    }
}

impl<F: StoreFamily> Replaced<F> {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
            && self.ids.is_empty()
            && self.tables.is_empty()
            && self.ranges.is_empty()
    }
}

impl<F: StoreFamily> Default for Replaced<F> {
    fn default() -> Self {
        Replaced {
            keys: Vec::new(),
            ids: Vec::new(),
            tables: Vec::new(),
            ranges: Vec::new(),
        }
    }
}
