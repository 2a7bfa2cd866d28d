//! Service ports that have less of the maps than they ask for: which, of what, and when they are taken up again. They
//! are served as far as there is room, and nothing of them waits for a try.

use lb_common::names::maps;

use super::{FamilyState, held::HeldPort};
use crate::{
    dataplane::{
        model,
        report::{ApplyError, LeftOut, NamedKey},
        shared::Shared,
        store::{MapStore, StoreFamily},
    },
    desired::state::{Endpoint, PortKey},
};

impl<F: StoreFamily> HeldPort<F> {
    /// Whether it has less than it asks for.
    fn is_short(&self) -> bool {
        let external = self.want.external;
        let tables = [self.tables.cluster, self.tables.local];
        !tables.iter().all(|table| table.is_proper(external)) || self.lacks_ids()
    }

    /// Whether an endpoint that a list names has no id.
    fn lacks_ids(&self) -> bool {
        self.count(|endpoint, id| id == 0 && (endpoint.in_cluster || endpoint.in_local)) > 0
    }

    /// Endpoints of this family that are so.
    fn count(&self, is_so: impl Fn(&Endpoint, u32) -> bool) -> u32 {
        let endpoints = self.want.endpoints.iter().zip(&self.ids);
        let counted = endpoints
            .filter(|(endpoint, id)| is_so(endpoint, **id))
            .filter(|(endpoint, _)| model::to_addr::<F>(endpoint.addr).is_some())
            .count();
        u32::try_from(counted).unwrap_or(u32::MAX)
    }

    fn left_out(&self) -> LeftOut {
        let cluster = self.count(|endpoint, _| endpoint.in_cluster);
        let local = self.count(|endpoint, _| endpoint.in_local);
        let of_cluster = cluster.saturating_sub(self.tables.cluster.served());
        let of_local = local.saturating_sub(self.tables.local.served());
        let (endpoints, listed) = if of_cluster < of_local {
            (of_local, local)
        } else {
            (of_cluster, cluster)
        };
        LeftOut {
            endpoints,
            listed,
            local: of_local,
        }
    }
}

impl<F: StoreFamily> FamilyState<F> {
    /// Remembers whether a service port has less than it asks for.
    pub(super) fn note_short(&mut self, key: &PortKey, port: &HeldPort<F>) {
        if port.is_short() {
            self.short.insert(key.clone());
        } else {
            self.short.remove(key);
        }
    }

    /// Takes up those that would get more of what is free now.
    pub(crate) fn take_up_short<S: MapStore>(&mut self, shared: &Shared<S>) {
        let has_id = !self.backends.is_exhausted();
        for key in &self.short {
            let Some(port) = self.held.get(key) else {
                continue;
            };
            let tables = [port.tables.cluster, port.tables.local];
            let is_due = has_id && port.lacks_ids()
                || tables
                    .iter()
                    .any(|table| shared.selection.better(table, port.want.external).is_some());
            if is_due {
                let want = port.desired();
                self.pending.entry(key.clone()).or_insert(want);
            }
        }
    }

    /// Number of service ports that have less of the maps than they ask for.
    pub(crate) fn short(&self) -> usize {
        self.short.len()
    }

    /// Names those of which endpoints are not served.
    pub(crate) fn report_short<S: MapStore>(&self, shared: &mut Shared<S>) {
        for key in &self.short {
            let Some(port) = self.held.get(key) else {
                continue;
            };
            let left_out = port.left_out();
            if left_out.endpoints == 0 {
                continue;
            }
            let map = if port.lacks_ids() {
                maps::BACKENDS[F::INDEX]
            } else {
                maps::SELECTION
            };
            let port = NamedKey(key.clone());
            shared.report.errors.push(ApplyError::LeftOut {
                port,
                map,
                left_out,
            });
        }
    }
}
