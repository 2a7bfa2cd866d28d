//! What the agent's loop knows and others show: names of service ports, what is not served and why. The loop writes
//! it in passing; the state file and `/metrics` are made from it on another thread, page by page, so that the loop
//! never waits long for its lock.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use super::{
    services::Lacking,
    state::{Conflict, InterfaceReport, ManifestProblem, ServiceName, State, Unserved, Warning},
};
use crate::{desired::state::PortKey, kube::manifests::ManifestProblems};

/// Names copied in one go.
const PAGE: usize = 512;

#[derive(Debug, Default)]
pub(crate) struct Board {
    names: Mutex<BTreeMap<PortKey, u32>>,
    shown: Mutex<Shown>,
    problems: Mutex<Option<ManifestProblems>>,
    has_changed: AtomicBool,
    wake: Notify,
}

/// What is small and replaced whole.
#[derive(Clone, Debug, Default)]
struct Shown {
    unserved: BTreeMap<PortKey, Lacking>,
    conflicts: Vec<Conflict>,
    warnings: Vec<Warning>,
    interfaces: Vec<InterfaceReport>,
    sockets: Vec<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    pub(crate) fn touch(&self) {
        self.has_changed.store(true, Ordering::Release);
        self.wake.notify_one();
    }
    /// Whether something changed since the last call.
    pub(crate) fn take_changed(&self) -> bool {
        self.has_changed.swap(false, Ordering::AcqRel)
    }
    /// Waits until something changes.
    pub(crate) async fn changed(&self) {
        self.wake.notified().await;
    }
    /// Takes ids of service ports; `None`: it has none any more.
    pub(crate) fn name(&self, ids: impl IntoIterator<Item = (PortKey, Option<u32>)>) {
        let mut names = lock(&self.names);
        let mut changed = false;
        for (port, id) in ids {
            changed |= match id {
                Some(id) => names.insert(port, id) != Some(id),
                None => names.remove(&port).is_some(),
            };
        }
        drop(names);
        if changed {
            self.touch();
        }
    }
    /// The service ports that are not served as wanted.
    pub(crate) fn set_unserved(&self, unserved: &BTreeMap<PortKey, Lacking>) {
        lock(&self.shown).unserved.clone_from(unserved);
        self.touch();
    }
    /// Frontends with several claims, and what else a person should know.
    pub(crate) fn set_warnings(&self, conflicts: Vec<Conflict>, warnings: Vec<Warning>) {
        let mut shown = lock(&self.shown);
        if shown.conflicts != conflicts || shown.warnings != warnings {
            (shown.conflicts, shown.warnings) = (conflicts, warnings);
            drop(shown);
            self.touch();
        }
    }
    /// The interfaces as they are served.
    pub(crate) fn set_interfaces(&self, interfaces: Vec<InterfaceReport>) {
        lock(&self.shown).interfaces = interfaces;
        self.touch();
    }
    /// Socket hooks that are not attached.
    pub(crate) fn set_socket_problems(&self, problems: Vec<String>) {
        lock(&self.shown).sockets = problems;
        self.touch();
    }
    /// Where the present problems of manifests are.
    pub(crate) fn set_manifest_problems(&self, problems: ManifestProblems) {
        *lock(&self.problems) = Some(problems);
        self.touch();
    }

    /// Every named service port with its id, sorted.
    pub(crate) fn names(&self) -> Vec<(PortKey, u32)> {
        let mut all: Vec<(PortKey, u32)> = Vec::new();
        loop {
            let names = lock(&self.names);
            let from = all
                .last()
                .map_or(Bound::Unbounded, |(last, _)| Bound::Excluded(last.clone()));
            let before = all.len();
            all.extend(
                names
                    .range((from, Bound::Unbounded))
                    .take(PAGE)
                    .map(|(port, id)| (port.clone(), *id)),
            );
            if all.len() - before < PAGE {
                return all;
            }
        }
    }
    /// The service ports that are not served as wanted.
    pub(crate) fn unserved(&self) -> BTreeMap<PortKey, Lacking> {
        lock(&self.shown).unserved.clone()
    }
    /// The interfaces as they are served.
    pub(crate) fn interfaces(&self) -> Vec<InterfaceReport> {
        lock(&self.shown).interfaces.clone()
    }
    /// Broken manifest files.
    pub(crate) fn manifest_problems(&self) -> Vec<ManifestProblem> {
        let list = lock(&self.problems)
            .as_ref()
            .map(ManifestProblems::list)
            .unwrap_or_default();
        list.into_iter()
            .map(|problem| ManifestProblem {
                file: problem.file,
                message: problem.message,
            })
            .collect()
    }

    /// Fills in a state.
    pub(crate) fn fill(&self, state: &mut State) {
        let name = |(port, id): (PortKey, u32)| ServiceName {
            id,
            namespace: port.name.namespace.to_string(),
            name: port.name.service.to_string(),
            port: port.name.port.to_string(),
            protocol: port.name.protocol.name().to_owned(),
            family: port.family.name().to_owned(),
        };
        state.services = self.names().into_iter().map(name).collect();
        state.manifest_problems = self.manifest_problems();
        let shown = lock(&self.shown).clone();
        let unserved = |(port, lacking): (PortKey, Lacking)| Unserved {
            service: port.name.to_string(),
            family: port.family.name().to_owned(),
            map: lacking.map.map(str::to_owned),
            message: lacking.message,
        };
        state.unserved = shown.unserved.into_iter().map(unserved).collect();
        state.conflicts = shown.conflicts;
        state.warnings = shown.warnings;
        state.interfaces = shown.interfaces;
        state.socket_problems = shown.sockets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::state::ServicePortName,
        net::{IpFamily, Protocol},
    };

    fn port(number: usize) -> PortKey {
        PortKey {
            name: ServicePortName {
                namespace: "shop".into(),
                service: format!("s{number:05}").into(),
                port: "".into(),
                protocol: Protocol::Udp,
            },
            family: IpFamily::V6,
        }
    }

    #[test]
    fn every_page_of_names_is_copied() {
        let board = Board::default();
        board.name((0..2 * PAGE + 3).map(|number| (port(number), Some(1))));
        let names = board.names();
        assert_eq!(names.len(), 2 * PAGE + 3);
        assert_eq!(names[PAGE].0, port(PAGE));
        let exact = Board::default();
        exact.name((0..PAGE).map(|number| (port(number), Some(1))));
        assert_eq!(exact.names().len(), PAGE);
    }

    #[test]
    fn only_what_differs_counts_as_a_change() {
        let board = Board::default();
        board.name([(port(1), Some(7))]);
        assert!(board.take_changed());
        board.name([(port(1), Some(7)), (port(2), None)]);
        board.set_warnings(Vec::new(), Vec::new());
        assert!(!board.take_changed());
        board.name([(port(1), None)]);
        assert!(board.take_changed());
        assert!(board.names().is_empty());
    }

    #[test]
    fn a_state_holds_names_and_reasons() {
        let board = Board::default();
        board.name([(port(1), Some(7))]);
        let lacking = Lacking {
            map: Some("services_v6"),
            message: "no room".into(),
            left_out: None,
        };
        board.set_unserved(&BTreeMap::from([(port(2), lacking)]));
        let mut state = State::default();
        board.fill(&mut state);
        assert_eq!(
            (state.services[0].id, state.services[0].full().as_str()),
            (7, "shop/s00001")
        );
        assert_eq!(state.unserved[0].service, "shop/s00002/UDP");
        assert_eq!(state.unserved[0].map.as_deref(), Some("services_v6"));
    }
}
