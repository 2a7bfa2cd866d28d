//! Pinned maps → what they held before the start. Service ids, backend ids, generations and row ranges
//! stay; the first complete desired state writes differences only, and what it does not name is removed
//! then, not before (semantics 2.10, 25.4).
//!
//! Maps hold no names: a service port is known again by its frontends, the ClusterIP first.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use lb_common::{
    abi::{
        BackendState, Be16, PORT_FILTER_ENTRIES, PORT_FILTER_WORDS, PortFilter, SelectionList,
        Service, ServiceKey, SrcRangeKey, port_filter_slot,
    },
    family::Family,
};

use super::{
    apply::{Dataplane, FamilyState, Filter, Port, Replaced, Shared},
    frontends::FrontendMap,
    ids::Ids,
    maglev::{Maglev, rows_for},
    model::{self, DataplaneConfig, Tables},
    report::ApplyReport,
    slab::Slab,
    span::Span,
    store::{Capacities, FamilyMaps, MapStore, StoreFamily, StoreResult},
};
use crate::desired::state::{Endpoint, FrontendKindOrd, ServicePort};

/// What was in the maps of a family before the start and is nobody's yet.
#[derive(Debug)]
pub(super) struct Left<F: StoreFamily> {
    service_ids: HashSet<u32>,
    keys: HashMap<u32, Vec<ServiceKey<F>>>,
    backends: HashMap<u32, Vec<(F::Addr, Be16, u32)>>,
    tables: HashSet<SelectionList>,
    ranges: HashMap<u32, Vec<SrcRangeKey<F>>>,
}

/// What a family's maps hold.
struct Present<F: Family> {
    services: FrontendMap<F, Service>,
    states: Vec<u32>,
    backends: HashMap<u32, Vec<(F::Addr, Be16, u32)>>,
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
            if backend.state == 0 {
                continue;
            }
            states.resize(id as usize, 0);
            states.push(backend.state);
            if backend.state & model::ALIVE != 0 {
                backends.entry(backend.service_id).or_default().push((
                    backend.addr,
                    backend.port,
                    id,
                ));
            }
        }
        let mut ranges = HashMap::<u32, Vec<_>>::new();
        maps.each_source_range(&mut |key| {
            ranges
                .entry(key.service_id.to_host())
                .or_default()
                .push(*key)
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

    fn into_state(
        self,
        sizes: &Capacities,
        service_ids: HashSet<u32>,
        sound: &HashSet<SelectionList>,
        filter: &mut Filter,
    ) -> FamilyState<F> {
        let mut tables = self.tables();
        tables.retain(|t| sound.contains(t));
        let used = self.backends.values().flatten().map(|b| b.2).collect();
        let mut state = FamilyState::new(
            Ids::new(sizes.max_backends, used),
            self.states,
            self.services,
        );
        let mut keys = HashMap::<u32, Vec<_>>::new();
        for (key, value) in state.services.clone().iter() {
            keys.entry(value.id).or_default().push(key);
            state.count_cluster_ip(key.addr, false, value.is_internal() && value.id != 0);
            if let Some(slot) = port_filter_slot(key.proto) {
                *filter.uses.entry((slot, key.port.to_host())).or_default() += 1;
            }
        }
        state.left = Some(Left {
            service_ids,
            keys,
            backends: self.backends,
            tables,
            ranges: self.ranges,
        });
        state
    }
}

impl<S: MapStore> Dataplane<S> {
    /// Reads back what the maps hold. Nothing is written before the first [`Dataplane::apply`], which
    /// takes the complete desired state; [`Dataplane::set_local_addresses`] goes before it.
    pub fn new(store: S, config: DataplaneConfig) -> StoreResult<Self> {
        let sizes = store.capacities();
        let v4 = Present::<lb_common::V4>::read(&store, &sizes)?;
        let v6 = Present::<lb_common::V6>::read(&store, &sizes)?;
        let mut filter = Filter {
            words: std::array::from_fn(|_| {
                Box::new(PortFilter {
                    words: [0; PORT_FILTER_WORDS],
                })
            }),
            uses: HashMap::new(),
        };
        for slot in 0..PORT_FILTER_ENTRIES {
            store.read_ports(slot, &mut filter.words[slot as usize])?;
        }

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

        let mut dataplane = Dataplane {
            v4: v4.into_state(&sizes, ids_v4, &sound, &mut filter),
            v6: v6.into_state(&sizes, ids_v6, &sound, &mut filter),
            shared: Shared {
                slab: Slab::new(sizes.selection_rows, &used_tables),
                service_ids: Ids::new(sizes.max_services, used_ids),
                store,
                config,
                filter,
                local_addrs: HashSet::new(),
                report: ApplyReport::default(),
                maglev: Maglev::default(),
                has_snat_ports: false,
            },
            is_started: false,
        };
        let (mut span_v4, mut span_v6) = (None, None);
        dataplane.shared.store.update_config(&mut |config| {
            span_v4 =
                Span::from_words::<lb_common::V4>(&config.cluster_net_v4, &config.cluster_mask_v4);
            span_v6 =
                Span::from_words::<lb_common::V6>(&config.cluster_net_v6, &config.cluster_mask_v6);
        })?;
        dataplane.v4.adopt_span(span_v4);
        dataplane.v6.adopt_span(span_v6);
        Ok(dataplane)
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

impl<F: StoreFamily> FamilyState<F> {
    /// Without a ClusterIP in the maps the configuration says nothing: it is new.
    fn adopt_span(&mut self, span: Option<Span>) {
        if !self.cluster_ips.is_empty() {
            self.span = span;
            self.is_span_written = span.is_some();
        }
    }

    /// The service port as the maps held it before the start, known by its frontends.
    pub(super) fn adopt<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        want: &ServicePort,
    ) -> Option<Port<F>> {
        let left = self.left.as_mut()?;
        let proto = want.key.name.protocol.number();
        let cluster_ips = want
            .frontends
            .iter()
            .filter(|f| f.kind == FrontendKindOrd::ClusterIp);
        let others = want
            .frontends
            .iter()
            .filter(|f| f.kind != FrontendKindOrd::ClusterIp);
        let shown = cluster_ips
            .chain(others)
            .filter_map(|f| self.services.get(&model::service_key::<F>(f, proto)?))
            .find(|s| left.service_ids.contains(&s.id))?;
        let id = shown.id;
        left.service_ids.remove(&id);

        let mut present = left.backends.remove(&id).unwrap_or_default();
        present.sort_unstable_by_key(|(addr, port, id)| {
            (model::to_ip::<F>(addr), port.to_host(), *id)
        });
        // Those that it does not want any more still show its tables.
        let keys = left.keys.remove(&id).unwrap_or_default();
        let mut replaced = Replaced {
            keys,
            ..Replaced::default()
        };
        present.dedup_by(|again, first| {
            let is_double = (again.0, again.1) == (first.0, first.1);
            if is_double {
                replaced.ids.push(again.2);
            }
            is_double
        });
        let mut was = model::nothing(&want.key);
        let has = |id: u32, flag: u32| self.states.get(id as usize).is_some_and(|s| s & flag != 0);
        was.endpoints = present
            .iter()
            .map(|(addr, port, id)| Endpoint {
                addr: model::to_ip::<F>(addr),
                port: port.to_host(),
                local: has(*id, BackendState::LOCAL),
                in_cluster: has(*id, BackendState::IN_CLUSTER),
                in_local: has(*id, BackendState::IN_LOCAL),
                usable: has(*id, BackendState::USABLE),
                zone: None,
            })
            .collect();
        let ids: Box<[u32]> = present.iter().map(|b| b.2).collect();

        let mut tables = Tables::default();
        let mut list = Vec::new();
        let mut rows = Vec::new();
        let mut sound = |table: SelectionList, local: bool| {
            model::members(&was, &ids, local, &mut list);
            if list.is_empty() {
                return Some(SelectionList::default());
            }
            let has_size = [false, true]
                .iter()
                .any(|external| rows_for(list.len(), *external) == table.len);
            if !has_size || !left.tables.contains(&table) {
                return None;
            }
            rows.resize(table.len as usize, 0);
            shared.store.read_rows(table.offset, &mut rows).ok()?;
            (rows == shared.maglev.build(&mut list, table.len)).then_some(table)
        };
        tables.cluster = sound(shown.cluster, false);
        tables.local = sound(shown.local, true);
        for table in [tables.cluster, tables.local].into_iter().flatten() {
            left.tables.remove(&table);
        }
        let ranges = left
            .ranges
            .remove(&id)
            .unwrap_or_default()
            .into_boxed_slice();
        Some(Port {
            want: Arc::new(was),
            id,
            ids,
            tables,
            ranges,
            replaced: Some(Box::new(replaced)),
            is_removed: true,
        })
    }

    /// Lays to rest what nobody has adopted; no frontend shows it any more.
    pub(super) fn sweep_left<S: MapStore>(&mut self, shared: &mut Shared<S>) {
        let Some(mut left) = self.left.take() else {
            return;
        };
        let mut failed = None;
        for (service_id, ranges) in std::mem::take(&mut left.ranges) {
            for range in ranges {
                match F::maps_mut(&mut shared.store).remove_source_range(&range) {
                    Ok(_) => shared.report.ranges_changed += 1,
                    Err(error) => {
                        left.ranges.entry(service_id).or_default().push(range);
                        failed = Some(error);
                    }
                }
            }
        }
        for (service_id, backends) in std::mem::take(&mut left.backends) {
            for backend in backends {
                if let Err(error) = self.retire_id(shared, backend.2) {
                    left.backends.entry(service_id).or_default().push(backend);
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed {
            shared.report.errors.push(error.into());
            self.left = Some(left);
            return;
        }
        for table in left.tables {
            shared.slab.rest(table);
        }
        for id in left.service_ids {
            shared.service_ids.rest(id);
        }
    }
}
