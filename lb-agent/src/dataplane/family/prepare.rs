//! Pending service ports → backends, tables and source ranges that no frontend shows yet. A service port is
//! prepared whole or stays as it was.

use std::sync::Arc;

use lb_common::{
    abi::{SelectionList, SrcRangeKey},
    names::maps,
};

use super::{
    FamilyState, Lists, diff,
    held::{HeldPort, Prepared},
};
use crate::{
    dataplane::{
        maglev::Member,
        model::{self, Table, Tables},
        report::{ApplyError, NamedKey},
        shared::Shared,
        store::{FamilyMaps, MapStore, StoreError, StoreFamily, StoreResult},
    },
    desired::state::{Endpoint, PortKey, ServicePort},
};

/// What was made for a service port before it is known whether all of it fits.
#[derive(Debug)]
struct Made<F: StoreFamily> {
    ids: Vec<u32>,
    tables: Vec<SelectionList>,
    ranges: Vec<SrcRangeKey<F>>,
}

impl<F: StoreFamily> FamilyState<F> {
    /// Prepares every pending service port; returns those whose frontends can be published.
    pub(crate) fn prepare<S: MapStore>(&mut self, shared: &mut Shared<S>) -> Vec<PortKey> {
        let mut ready = Vec::with_capacity(self.pending.len());
        // One order for every run: the same objects fit, errors name the same ones.
        let mut pending: Vec<_> = self.pending.drain().collect();
        pending.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (key, want) in pending {
            match self.prepare_port(shared, &key, want.as_ref()) {
                Ok(true) => ready.push(key),
                Ok(false) => {}
                Err(source) => {
                    let port = NamedKey(key.clone());
                    shared.report.errors.push(match source {
                        StoreError::Full { map } => ApplyError::NoRoom { port, map },
                        source => ApplyError::Port { port, source },
                    });
                    self.pending.insert(key, want);
                }
            }
        }
        ready
    }

    /// `false`: there is nothing to do, it was never there.
    fn prepare_port<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        key: &PortKey,
        want: Option<&Arc<ServicePort>>,
    ) -> StoreResult<bool> {
        let mut port = match (self.held.remove(key), want) {
            (Some(port), _) => port,
            (None, Some(want)) => self.claim_or_begin(shared, want)?,
            (None, None) => return Ok(false),
        };
        let changed = self.change_port(shared, &mut port, want);
        if changed.is_err() && port.is_blank() {
            // Nothing of it was ever in the maps.
            shared.service_ids.give_back(port.service_id);
        } else {
            self.note_short(key, &port);
            self.held.insert(key.clone(), port);
        }
        changed.map(|()| true)
    }

    /// The service port as the maps held it before the start, or a new one with an id of its own.
    fn claim_or_begin<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        want: &ServicePort,
    ) -> StoreResult<HeldPort<F>> {
        if let Some(left) = &mut self.left
            && let Some(port) = left.claim(shared, &self.frontends, &self.backends, want)
        {
            return Ok(port);
        }
        let Some(id) = shared.service_ids.take() else {
            return Err(StoreError::Full {
                map: maps::SERVICE_STATS,
            });
        };
        if let Err(error) = shared.store.zero_service_stats(id) {
            shared.service_ids.give_back(id);
            return Err(error);
        }
        Ok(HeldPort::blank(&want.key, id))
    }

    /// Changes a service port's backends, tables and source ranges. On failure it is as before.
    fn change_port<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        port: &mut HeldPort<F>,
        want: Option<&Arc<ServicePort>>,
    ) -> StoreResult<()> {
        let is_removed = want.is_none();
        let want = match want {
            Some(want) => want.clone(),
            None => Arc::new(model::nothing(&port.want.key)),
        };
        let mut made = Made {
            ids: Vec::new(),
            tables: Vec::new(),
            ranges: Vec::new(),
        };
        match self.make(shared, port, &want, &mut made) {
            Ok(prepared) => {
                port.change(want, prepared, is_removed);
                Ok(())
            }
            Err(error) => {
                self.unmake(shared, port, made);
                Err(error)
            }
        }
    }

    /// The order within a service port: backends, the tables that name them, source ranges, and last the state
    /// words of backends that frontends show already.
    fn make<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        port: &HeldPort<F>,
        want: &ServicePort,
        made: &mut Made<F>,
    ) -> StoreResult<Prepared<F>> {
        let matched = diff::endpoints(&port.want.endpoints, &port.ids, &want.endpoints);
        let ids = self.make_backends(shared, port, want, matched.ids, made)?;
        let tables = make_tables(&mut self.lists, shared, port, want, &ids, made)?;
        let ranges = make_ranges(shared, port, want, made)?;
        for (endpoint, id) in want.endpoints.iter().zip(&ids) {
            self.backends.write_flags(shared, *id, endpoint)?;
        }
        Ok(Prepared {
            ids,
            gone: matched.gone,
            tables,
            ranges,
        })
    }

    /// Makes the backends of the endpoints whose id is 0. Where ids are short, those that a list names come first, of
    /// these the ones of this node; the others stay without.
    fn make_backends<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        port: &HeldPort<F>,
        want: &ServicePort,
        mut ids: Vec<u32>,
        made: &mut Made<F>,
    ) -> StoreResult<Vec<u32>> {
        let turns: [fn(&Endpoint) -> bool; 3] =
            [|e| e.in_local, |e| e.in_cluster, |_served_before| true];
        for is_due in turns {
            let endpoints = want.endpoints.iter().zip(&mut ids);
            for (endpoint, id) in endpoints.filter(|(e, id)| **id == 0 && is_due(e)) {
                match self.backends.create(shared, endpoint, port.service_id) {
                    Ok(None) => {}
                    Ok(Some(new)) => {
                        made.ids.push(new);
                        *id = new;
                    }
                    Err(StoreError::Full { .. }) => return Ok(ids),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(ids)
    }

    fn unmake<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        port: &mut HeldPort<F>,
        made: Made<F>,
    ) {
        for id in made.ids {
            self.backends.give_back(id);
        }
        for table in made.tables {
            shared.selection.give_back(table);
        }
        for range in made.ranges {
            let removed = shared.maps_mut::<F>().remove_source_range(&range);
            if removed.is_err() {
                // It stays an allowance of this service port until it can be removed.
                port.replaced.get_or_insert_default().ranges.push(range);
            } else if let Some(replaced) = &mut port.replaced {
                replaced.ranges.retain(|r| *r != range);
            }
        }
    }
}

/// Writes the tables of the lists that cannot keep theirs. A list for which no better table can be had stays with the
/// rows that it had, which are set one by one when it is published.
fn make_tables<F: StoreFamily, S: MapStore>(
    lists: &mut Lists,
    shared: &mut Shared<S>,
    port: &HeldPort<F>,
    want: &ServicePort,
    ids: &[u32],
    made: &mut Made<F>,
) -> StoreResult<Tables> {
    let Lists {
        cluster,
        local,
        old_cluster,
        old_local,
    } = lists;
    model::members(want, ids, false, cluster);
    model::members(want, ids, true, local);
    model::members(&port.want, &port.ids, false, old_cluster);
    model::members(&port.want, &port.ids, true, old_local);
    let Tables {
        cluster: had_cluster,
        local: had_local,
    } = port.tables;
    let whole = [(had_cluster, &*old_cluster), (had_local, &*old_local)];
    let mut table_of =
        |list: &mut [Member], had: &[SelectionList], taken: Option<SelectionList>| {
            let Ok(endpoints) = u32::try_from(list.len()) else {
                return Err(StoreError::Full {
                    map: maps::SELECTION,
                });
            };
            let is_free = |range: &SelectionList| range.len > 0 && Some(*range) != taken;
            let kept = whole.iter().find(|(table, old)| {
                table.is_whole && is_free(&table.range) && diff::same_members(list, old)
            });
            let has = kept.map_or_else(
                || Table {
                    range: had.iter().copied().find(is_free).unwrap_or_default(),
                    endpoints,
                    is_whole: false,
                },
                |(table, _)| *table,
            );
            match shared.selection.better(&has, want.external) {
                _ if list.is_empty() => Ok(Table::default()),
                None => Ok(has),
                Some(rows) => {
                    let range = shared.write_table(list, rows)?;
                    made.tables.push(range);
                    Ok(Table {
                        range,
                        endpoints,
                        is_whole: true,
                    })
                }
            }
        };
    let cluster_table = table_of(cluster, &[had_cluster.range], None)?;
    let local_table = if diff::same_members(cluster, local) {
        cluster_table
    } else {
        let had = [had_local.range, had_cluster.range];
        table_of(local, &had, Some(cluster_table.range))?
    };
    Ok(Tables {
        cluster: cluster_table,
        local: local_table,
    })
}

fn make_ranges<F: StoreFamily, S: MapStore>(
    shared: &mut Shared<S>,
    port: &HeldPort<F>,
    want: &ServicePort,
    made: &mut Made<F>,
) -> StoreResult<Vec<SrcRangeKey<F>>> {
    let ranges = model::source_range_keys::<F>(want, port.service_id);
    for range in &ranges {
        if port.ranges.contains(range) {
            continue;
        }
        let is_present = port
            .replaced
            .as_ref()
            .is_some_and(|replaced| replaced.ranges.contains(range));
        if !is_present {
            shared.maps_mut::<F>().write_source_range(range)?;
            shared.report.ranges_changed += 1;
        }
        made.ranges.push(*range);
    }
    Ok(ranges)
}
