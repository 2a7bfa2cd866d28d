//! Pinned maps → what they held before the start. Service ids, backend ids, generations and row ranges
//! stay; the first complete desired state writes differences only, and what it does not name is removed
//! then, not before (semantics 2.10, 25.4).

use std::collections::{HashMap, HashSet};

use lb_common::{
    V4, V6,
    abi::{BackendState, SelectionList, Service, ServiceKey, SrcRangeKey},
};

use super::{
    apply::{Dataplane, DataplaneConfig},
    family::{ALIVE, Backends, FamilyState, Frontends, Left, LeftBackend},
    frontend_map::FrontendMap,
    ids::Ids,
    port_filter::UsedPorts,
    report::ApplyReport,
    selection::Selection,
    shared::Shared,
    store::{Capacities, FamilyMaps, MapStore, StoreFamily, StoreResult},
};

/// What a family's maps hold.
struct Present<F: StoreFamily> {
    services: FrontendMap<F, Service>,
    /// State words of the backends by id.
    states: Vec<BackendState>,
    /// Backends in use by service id.
    backends: HashMap<u32, Vec<LeftBackend<F>>>,
    /// Source ranges by service id.
    ranges: HashMap<u32, Vec<SrcRangeKey<F>>>,
}

impl<F: StoreFamily> Present<F> {
    fn read<S: MapStore>(store: &S, sizes: &Capacities) -> StoreResult<Self> {
        let maps = F::maps(store);
        let mut services = FrontendMap::default();
        maps.each_service(&mut |key, value| {
            services.insert(key, *value);
        })?;
        let mut states = Vec::new();
        let mut backends = HashMap::<u32, Vec<_>>::new();
        for id in 1..sizes.max_backends {
            let backend = maps.backend(id)?;
            if backend.state == BackendState::default() {
                continue;
            }
            states.resize(id as usize, BackendState::default());
            states.push(backend.state);
            if backend.state.flags().intersects(ALIVE) {
                let of_service = backends.entry(backend.service_id).or_default();
                of_service.push(LeftBackend {
                    addr: backend.addr,
                    port: backend.port,
                    id,
                });
            }
        }
        let mut ranges = HashMap::<u32, Vec<_>>::new();
        maps.each_source_range(&mut |key| {
            let of_service = ranges.entry(key.service_id.to_host()).or_default();
            of_service.push(*key);
        })?;
        Ok(Present {
            services,
            states,
            backends,
            ranges,
        })
    }

    fn service_ids(&self) -> HashSet<u32> {
        let services = self.services.values().map(|s| s.id);
        let ids = services
            .chain(self.backends.keys().copied())
            .chain(self.ranges.keys().copied());
        ids.filter(|id| *id != 0).collect()
    }

    fn tables(&self) -> HashSet<SelectionList> {
        self.services
            .values()
            .flat_map(|s| [s.cluster, s.local])
            .filter(|t| t.len > 0)
            .collect()
    }

    /// As nobody's yet: the service ports of the first complete desired state claim what is theirs.
    fn into_state<S: MapStore>(
        self,
        store: &mut S,
        sizes: &Capacities,
        service_ids: HashSet<u32>,
        sound: &HashSet<SelectionList>,
        used_ports: &mut UsedPorts,
    ) -> StoreResult<FamilyState<F>> {
        let mut tables = self.tables();
        tables.retain(|table| sound.contains(table));
        let mut keys = HashMap::<u32, Vec<ServiceKey<F>>>::new();
        for (key, value) in self.services.iter() {
            keys.entry(value.id).or_default().push(key);
        }
        let used = self.backends.values().flatten().map(|b| b.id).collect();
        let backends = Backends::adopt(Ids::new(sizes.max_backends, used), self.states);
        let frontends = Frontends::adopt(store, self.services, used_ports)?;
        let left = Left {
            service_ids,
            keys,
            backends: self.backends,
            tables,
            ranges: self.ranges,
        };
        Ok(FamilyState::adopt(frontends, backends, left))
    }
}

impl<S: MapStore> Dataplane<S> {
    /// Reads back what the maps hold. Nothing is written before the first [`Dataplane::apply`], which
    /// takes the complete desired state; [`Dataplane::set_local_addresses`] goes before it.
    pub(crate) fn new(mut store: S, config: DataplaneConfig) -> StoreResult<Self> {
        let sizes = store.capacities();
        let v4 = Present::<V4>::read(&store, &sizes)?;
        let v6 = Present::<V6>::read(&store, &sizes)?;
        let mut used_ports = UsedPorts::read(&store, config.snat_ports)?;

        let ids_v4 = v4.service_ids();
        let mut ids_v6 = v6.service_ids();
        // An id belongs to one family.
        ids_v6.retain(|id| !ids_v4.contains(id));
        let used_ids = ids_v4
            .union(&ids_v6)
            .copied()
            .filter(|id| *id < sizes.max_services)
            .collect();
        let used_tables: Vec<_> = v4.tables().into_iter().chain(v6.tables()).collect();
        let sound = sound_tables(used_tables.clone(), sizes.selection_rows);

        Ok(Dataplane {
            v4: v4.into_state(&mut store, &sizes, ids_v4, &sound, &mut used_ports)?,
            v6: v6.into_state(&mut store, &sizes, ids_v6, &sound, &mut used_ports)?,
            shared: Shared {
                store,
                service_ids: Ids::new(sizes.max_services, used_ids),
                used_ports,
                selection: Selection::new(sizes.selection_rows, &used_tables),
                local_addrs: HashSet::new(),
                report: ApplyReport::default(),
            },
            is_started: false,
        })
    }
}

/// The tables that lie in the slab and overlap no other; only these can be adopted. Rows of the others
/// stay unused until the next start.
fn sound_tables(mut tables: Vec<SelectionList>, rows: u32) -> HashSet<SelectionList> {
    tables.sort_unstable_by_key(|t| (t.offset, t.len));
    tables.dedup();
    let end = |t: &SelectionList| t.offset.saturating_add(t.len);
    let mut reach = 0;
    let mut sound = HashSet::new();
    for (i, table) in tables.iter().enumerate() {
        let is_alone = table.offset >= reach
            && tables
                .get(i + 1)
                .is_none_or(|next| next.offset >= end(table));
        if is_alone && end(table) <= rows {
            sound.insert(*table);
        }
        reach = reach.max(end(table));
    }
    sound
}
