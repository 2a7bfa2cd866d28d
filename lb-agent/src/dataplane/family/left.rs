//! What was in the maps before the start → the service ports that claim it, by their frontends, because maps
//! hold no names. What nobody has claimed after the first complete desired state goes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use lb_common::{
    abi::{BackendFlags, Be16, SelectionList, ServiceKey, SrcRangeKey},
    family::Family,
};

use super::{
    backends::Backends,
    frontends::Frontends,
    held::{HeldPort, Replaced},
};
use crate::{
    dataplane::{
        maglev::is_size,
        model::{self, Table, Tables},
        shared::Shared,
        store::{FamilyMaps, MapStore, StoreFamily},
    },
    desired::state::{Endpoint, FrontendKindOrd, PortKey, ServicePort},
};

/// What was in the maps of a family before the start and is nobody's yet.
#[derive(Debug)]
pub(crate) struct Left<F: StoreFamily> {
    pub(crate) service_ids: HashSet<u32>,
    /// Frontends by service id.
    pub(crate) keys: HashMap<u32, Vec<ServiceKey<F>>>,
    /// Backends in use by service id.
    pub(crate) backends: HashMap<u32, Vec<LeftBackend<F>>>,
    /// Tables that may be used as they are.
    pub(crate) tables: HashSet<SelectionList>,
    /// Source ranges by service id.
    pub(crate) ranges: HashMap<u32, Vec<SrcRangeKey<F>>>,
}

/// A backend that was in the maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeftBackend<F: Family> {
    pub(crate) addr: F::Addr,
    pub(crate) port: Be16,
    pub(crate) id: u32,
}

impl<F: StoreFamily> Left<F> {
    /// The service port as the maps held it, known by its frontends, the ClusterIP first.
    pub(super) fn claim<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        frontends: &Frontends<F>,
        backends: &Backends<F>,
        want: &ServicePort,
    ) -> Option<HeldPort<F>> {
        let proto = want.key.name.protocol.number();
        let (cluster_ips, others): (Vec<_>, Vec<_>) = want
            .frontends
            .iter()
            .partition(|f| f.kind == FrontendKindOrd::ClusterIp);
        let shown = cluster_ips
            .into_iter()
            .chain(others)
            .filter_map(|f| frontends.get(&model::service_key::<F>(f, proto)?))
            .find(|s| self.service_ids.contains(&s.id))?;
        let service_id = shown.id;
        self.service_ids.remove(&service_id);

        let mut replaced = Replaced {
            // Those that it does not want any more still show its tables.
            keys: self.keys.remove(&service_id).unwrap_or_default(),
            ..Replaced::default()
        };
        let (was, ids) = self.claim_endpoints(backends, &want.key, service_id, &mut replaced);
        let tables = Tables {
            cluster: self.claim_table(shared, shown.cluster, &was, &ids, false),
            local: self.claim_table(shared, shown.local, &was, &ids, true),
        };
        for table in tables.with_rows() {
            self.tables.remove(&table);
        }
        let ranges = self.ranges.remove(&service_id).unwrap_or_default();
        Some(HeldPort {
            want: Arc::new(was),
            service_id,
            ids,
            tables,
            ranges: ranges.into_boxed_slice(),
            replaced: Some(Box::new(replaced)),
            is_removed: true,
        })
    }

    /// The endpoints that it had, with their ids. An endpoint that is there twice keeps one of them.
    fn claim_endpoints(
        &mut self,
        backends: &Backends<F>,
        key: &PortKey,
        service_id: u32,
        replaced: &mut Replaced<F>,
    ) -> (ServicePort, Box<[u32]>) {
        let mut present = self.backends.remove(&service_id).unwrap_or_default();
        present.sort_unstable_by_key(|b| (model::to_ip::<F>(&b.addr), b.port.to_host(), b.id));
        present.dedup_by(|again, first| {
            let is_double = (again.addr, again.port) == (first.addr, first.port);
            if is_double {
                replaced.ids.push(again.id);
            }
            is_double
        });
        let mut was = model::nothing(key);
        was.endpoints = present
            .iter()
            .map(|b| Endpoint {
                addr: model::to_ip::<F>(&b.addr),
                port: b.port.to_host(),
                local: backends.has(b.id, BackendFlags::LOCAL),
                in_cluster: backends.has(b.id, BackendFlags::IN_CLUSTER),
                in_local: backends.has(b.id, BackendFlags::IN_LOCAL),
                usable: backends.has(b.id, BackendFlags::USABLE),
                zone: None,
            })
            .collect();
        (was, present.iter().map(|b| b.id).collect())
    }

    /// The table of one of its lists. One whose rows are not those of the list is made anew, or where rows are short
    /// mended.
    fn claim_table<S: MapStore>(
        &self,
        shared: &mut Shared<S>,
        range: SelectionList,
        was: &ServicePort,
        ids: &[u32],
        local: bool,
    ) -> Table {
        let mut list = Vec::new();
        model::members(was, ids, local, &mut list);
        let endpoints = u32::try_from(list.len()).unwrap_or(u32::MAX);
        if !self.tables.contains(&range) {
            return Table {
                endpoints,
                ..Table::default()
            };
        }
        let Shared {
            selection, store, ..
        } = shared;
        // One that cannot be read is made anew.
        let is_whole = is_size(range.len, list.len())
            && selection
                .holds(store, range, &mut list)
                .is_ok_and(|same| same);
        Table {
            range,
            endpoints,
            is_whole,
        }
    }

    /// Lays to rest what nobody has claimed; no frontend shows it any more. What could not be removed is left
    /// for the next time.
    pub(super) fn sweep<S: MapStore>(
        mut self,
        shared: &mut Shared<S>,
        backends: &mut Backends<F>,
    ) -> Option<Self> {
        let mut failed = None;
        self.ranges.values_mut().for_each(|ranges| {
            ranges.retain(
                |range| match shared.maps_mut::<F>().remove_source_range(range) {
                    Ok(_) => {
                        shared.report.ranges_changed += 1;
                        false
                    }
                    Err(error) => {
                        failed = Some(error);
                        true
                    }
                },
            );
        });
        self.backends.values_mut().for_each(|left| {
            left.retain(|backend| match backends.retire(shared, backend.id) {
                Ok(()) => false,
                Err(error) => {
                    failed = Some(error);
                    true
                }
            });
        });
        if let Some(error) = failed {
            shared.report.errors.push(error.into());
            return Some(self);
        }
        for table in self.tables {
            shared.selection.rest(table);
        }
        for id in self.service_ids {
            shared.service_ids.rest(id);
        }
        None
    }
}
