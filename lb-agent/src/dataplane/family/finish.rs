//! Published service ports → what they have replaced is removed or laid to rest, once no frontend shows it.

use super::{FamilyState, backends::Backends, held::Replaced};
use crate::{
    dataplane::{
        frontend_map::FrontendMap,
        model,
        report::{ApplyError, NamedKey},
        shared::Shared,
        store::{FamilyMaps, MapStore, StoreFamily},
    },
    desired::state::PortKey,
};

impl<F: StoreFamily> FamilyState<F> {
    /// Takes away what published service ports show no more; then, after the first complete desired state, what
    /// was left from before the start; then what stood for the addresses of ClusterIPs that are gone.
    pub(crate) fn finish<S: MapStore>(&mut self, shared: &mut Shared<S>, keys: &[PortKey]) {
        for key in keys {
            if !self.pending.contains_key(key) && !self.finish_port(shared, key) {
                self.keep_pending(key);
            }
        }
        self.sweep(shared);
        self.frontends.remove_idle_addresses(shared);
        if self.pending.is_empty() {
            self.frontends.narrow_span(shared);
        }
    }

    /// `false`: something is left to remove.
    fn finish_port<S: MapStore>(&mut self, shared: &mut Shared<S>, key: &PortKey) -> bool {
        let Some(port) = self.held.get_mut(key) else {
            return true;
        };
        if let Some(replaced) = &mut port.replaced {
            replaced.keys.retain(|entry| {
                // Another service port may hold this frontend by now.
                let shown = self.frontends.get(entry);
                if shown.is_none_or(|shown| shown.id != port.service_id) {
                    return false;
                }
                match self.frontends.remove(shared, entry) {
                    Ok(()) => false,
                    Err(source) => {
                        let error = ApplyError::frontend(key, entry, source);
                        shared.report.errors.push(error);
                        true
                    }
                }
            });
            if replaced.keys.is_empty() {
                replaced.retire(shared, &mut self.backends, key);
            }
            if !replaced.is_empty() {
                return false;
            }
        }
        port.replaced = None;
        if port.is_removed {
            shared.service_ids.rest(port.service_id);
            self.held.remove(key);
            self.short.remove(key);
        }
        true
    }

    /// Removes what was in the maps before the start and nobody has claimed.
    fn sweep<S: MapStore>(&mut self, shared: &mut Shared<S>) {
        if self.left.is_none() {
            return;
        }
        let wanted = self.wanted_keys();
        let all = self.frontends.remove_unwanted(shared, &wanted);
        // A frontend that could not be changed still shows what it had.
        if all && self.pending.is_empty() {
            let left = self.left.take();
            self.left = left.and_then(|left| left.sweep(shared, &mut self.backends));
            shared.repair_ports();
        }
    }

    /// The frontends that service ports hold or are about to hold.
    fn wanted_keys(&self) -> FrontendMap<F, ()> {
        let held = self.held.values().map(|port| &port.want);
        let pending = self.pending.values().flatten();
        let replaced = self.held.values().filter_map(|p| p.replaced.as_ref());
        held.chain(pending)
            .flat_map(|want| model::service_keys::<F>(want))
            .chain(replaced.flat_map(|replaced| replaced.keys.iter().copied()))
            .collect()
    }
}

impl<F: StoreFamily> Replaced<F> {
    /// Lays to rest what no frontend shows any more; what fails stays.
    fn retire<S: MapStore>(
        &mut self,
        shared: &mut Shared<S>,
        backends: &mut Backends<F>,
        key: &PortKey,
    ) {
        let failed = |shared: &mut Shared<S>, source| {
            let port = NamedKey(key.clone());
            shared.report.errors.push(ApplyError::Port { port, source });
            true
        };
        self.ranges.retain(
            |range| match shared.maps_mut::<F>().remove_source_range(range) {
                Ok(_) => {
                    shared.report.ranges_changed += 1;
                    false
                }
                Err(source) => failed(shared, source),
            },
        );
        self.ids.retain(|id| match backends.retire(shared, *id) {
            Ok(()) => false,
            Err(source) => failed(shared, source),
        });
        for table in self.tables.drain(..) {
            shared.selection.rest(table);
        }
    }
}
