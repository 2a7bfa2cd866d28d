//! The loop's notebook: what arrived, what was written, what does not fit → log, metrics and the board. Every call is
//! short; what takes longer is done once a second by [`Observer::tick`].

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use lb_common::abi::InterfaceRole;

use super::hooks::InterfaceState;
use crate::{
    bpf::maps::MapResult,
    dataplane::{
        ApplyReport, Dataplane, MapStore,
        gc::{ALARM, Found},
        pinned::PinnedMaps,
    },
    desired::{
        self, Desired, health,
        state::{Change, PortKey, ServicePort},
    },
    error::chain,
    health::{BindFailure, Plan, Shared},
    kube::{
        api::{
            events::{EventWriter, Note, Subject},
            metrics::ApiMetrics,
        },
        manifests::ManifestProblems,
        objects::{Key, ObjectEvent},
    },
    net::IpFamily,
    telemetry::{
        counters::Counters,
        events, log,
        metrics::Extent,
        services::Lacking,
        state::{Conflict, InterfaceReport, Warning},
    },
};

/// Most conflicts and warnings that are shown one by one.
const SHOWN: usize = 1_000;

#[derive(Debug, Default)]
pub(super) struct Observer {
    shared: Arc<Shared>,
    /// Service ports whose policy Local finds no endpoint, by family: internal, external.
    no_local: [[HashSet<PortKey>; 2]; 2],
    unserved: BTreeMap<PortKey, Lacking>,
    /// Service ports that had no id when they were last looked at.
    nameless: HashSet<PortKey>,
    /// Errors that have been logged and still stand.
    logged: HashSet<String>,
    are_warnings_stale: bool,
    /// Writes Events on objects, where there is an API server.
    events: EventWriter,
    /// Losers of conflicts that have their Event, with frontend and winner.
    told: HashSet<(PortKey, SocketAddr, PortKey)>,
    /// What load balancers hear: the revision it was made of, and whether ports were lacking in it.
    health: Health,
    /// Families whose table of flows was told to be filling up.
    flows_told: [bool; 2],
}

/// What was last told to those that answer health checks.
#[derive(Debug, Default)]
struct Health {
    revision: Option<u64>,
    unserved: BTreeMap<PortKey, Lacking>,
    plan: Plan,
}

impl Observer {
    /// Writes to what the servers show.
    pub(super) fn new(shared: Arc<Shared>) -> Observer {
        Observer {
            shared,
            ..Observer::default()
        }
    }

    /// What the API source is to count.
    pub(super) fn api_metrics(&self) -> Arc<ApiMetrics> {
        self.shared.api.clone()
    }

    /// From here on Events are written on objects.
    pub(super) fn set_events(&mut self, events: EventWriter) {
        self.events = events;
    }

    /// Writes Events on objects.
    pub(super) fn events(&self) -> &EventWriter {
        &self.events
    }

    /// Waits until an address of health or metrics cannot be bound and the flags want the agent to end then.
    pub(super) async fn unbound(&self) -> BindFailure {
        self.shared.unbound().await
    }

    /// Waits until nothing that [`Observer::events`] was given is on its way, or for so long.
    pub(super) async fn events_settled(&self, patience: Duration) {
        if !self.events.is_connected() {
            return;
        }
        let seen = self.shared.api.events_done();
        let end = Instant::now() + patience;
        while self.shared.api.events_done() == seen && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The maps are there: counters can be read, and events where the log wants them.
    pub(super) fn maps_opened(&self, dir: &Path) -> MapResult<()> {
        self.shared.set_counters(Counters::open(dir)?);
        if log::wants_events()
            && let Err(error) = events::follow(dir)
        {
            tracing::warn!("{}", chain(&error));
        }
        Ok(())
    }

    /// Objects arrived; the answer goes to [`Observer::applied`].
    pub(super) fn arrived<'a>(&self, events: impl Iterator<Item = &'a ObjectEvent>) -> Instant {
        let (mut slices, mut services) = (0, 0);
        for event in events {
            match event {
                ObjectEvent::Slice(..) => slices += 1,
                ObjectEvent::Service(..) => services += 1,
                ObjectEvent::Node(_) => {}
            }
        }
        // A Service is a change for each family (semantics 23.4).
        self.shared
            .metrics
            .changes_arrived(slices, services * IpFamily::BOTH.len());
        self.begin()
    }

    /// Work begins that no object asked for.
    pub(super) fn begin(&self) -> Instant {
        for family in IpFamily::BOTH {
            self.shared.queued(family);
        }
        Instant::now()
    }

    /// A step was written to the maps.
    pub(super) fn applied(
        &mut self,
        what: &str,
        extent: Extent,
        begun: Instant,
        changes: &[Change],
        report: &ApplyReport,
        dataplane: &Dataplane<PinnedMaps>,
    ) {
        let took = begun.elapsed();
        for family in IpFamily::BOTH {
            self.shared.metrics.passed(family, extent, took);
            self.shared.updated(family);
        }
        self.shared.metrics.changes_done(took);
        log_report(what, report);
        let mut has_local_policy = false;
        for change in changes {
            has_local_policy |= self.count_local(change);
        }
        if has_local_policy {
            for family in IpFamily::BOTH {
                let [internal, external] = &self.no_local[family.index()];
                self.shared
                    .metrics
                    .no_local_endpoints(family, internal.len(), external.len());
            }
        }
        let keys = changes.iter().map(|change| match change {
            Change::Set(port) => &port.key,
            Change::Remove(key) => key,
        });
        self.name(keys, dataplane);
        for change in changes {
            if let Change::Remove(key) = change {
                self.nameless.remove(key);
            }
        }
        self.settled(report, dataplane);
        self.are_warnings_stale |= !changes.is_empty();
    }

    /// What led to changes of slices happened then; they are in the maps now (semantics 23.1).
    pub(super) fn programmed(&self, triggers: &[(IpFamily, SystemTime)]) {
        for (family, at) in triggers {
            // A clock that runs ahead elsewhere gives no time below zero.
            let took = at.elapsed().unwrap_or_default();
            self.shared.metrics.programmed(*family, took);
        }
    }

    /// What was pending was tried again.
    pub(super) fn settled(&mut self, report: &ApplyReport, dataplane: &Dataplane<PinnedMaps>) {
        let mut errors = HashSet::new();
        let mut unserved = BTreeMap::new();
        for error in &report.errors {
            let message = chain(error);
            if !self.logged.contains(&message) {
                tracing::error!("{message}");
            }
            if let Some(port) = error.port() {
                unserved.entry(port.clone()).or_insert(Lacking {
                    map: error.full_map(),
                    message: message.clone(),
                    left_out: error.left_out(),
                });
            }
            errors.insert(message);
        }
        self.logged = errors;
        let nameless: Vec<_> = self.nameless.iter().cloned().collect();
        self.name(nameless.iter(), dataplane);
        if unserved == self.unserved {
            return;
        }
        for (port, lacking) in &unserved {
            let before = self.unserved.get(port).and_then(|lacking| lacking.map);
            if let Some(map) = lacking.map.filter(|map| before != Some(*map)) {
                self.shared.metrics.map_full(map);
            }
            if !self.unserved.contains_key(port) {
                let text = format!(
                    "port {} ({}): {}",
                    port.name,
                    port.family.name(),
                    lacking.message
                );
                self.events
                    .warn(&service_key(port), "NotServed", "Program", text);
            }
        }
        for port in self
            .unserved
            .keys()
            .filter(|port| !unserved.contains_key(port))
        {
            tracing::info!(
                "service port {} ({}) has found its room",
                port.name,
                port.family.name()
            );
        }
        self.shared.board.set_unserved(&unserved);
        self.unserved = unserved;
    }

    /// Load balancers hear of what is in the maps now. A Service with a port that found no room keeps the answer that it
    /// had; endpoints that are left out do not count (semantics 15.9).
    pub(super) fn health_checks(&mut self, desired: &Desired) {
        let addresses = IpFamily::BOTH.map(|family| health::addresses(desired.node(), family));
        let revision = Some(desired.health_revision());
        let same = self.health.revision == revision
            && self.health.plan.addresses == addresses
            && self.unserved == self.health.unserved;
        if same {
            return;
        }
        let mut checks = desired.health_checks().clone();
        for (port, lacking) in &self.unserved {
            let key = service_key(port);
            if let Some(check) = checks.get_mut(&key) {
                let index = port.family.index();
                let before = self.health.plan.checks.get(&key);
                let before = before.and_then(|before| before.local[index]).unwrap_or(0);
                check.local[index] = check.local[index].map(|count| match lacking.left_out {
                    Some(left_out) => count.saturating_sub(left_out.local as usize),
                    None => before,
                });
            }
        }
        self.health = Health {
            revision,
            unserved: self.unserved.clone(),
            plan: Plan { addresses, checks },
        };
        let health_checks = &self.shared.health_checks;
        health_checks.tell(&desired.node().name, self.events.clone());
        health_checks.set(self.health.plan.clone());
    }

    /// A table of flows that fills up is told of once, before new connections find no room.
    fn watch_flows(&mut self, flows: &Found) {
        for family in IpFamily::BOTH {
            let i = family.index();
            let load = flows.tables[i].usage.load();
            let was_told = self.flows_told[i];
            if load >= ALARM && !was_told {
                let text = format!(
                    "{} % of the places for {} connections are taken: from 70 % on new ones may find none; raise --flow-table-size, and run `lb-agent cleanup` before the next start",
                    load,
                    family.name()
                );
                tracing::warn!("{text}");
                self.events.write(Note {
                    subject: Subject::Node,
                    is_warning: true,
                    reason: "FlowTableFull",
                    action: "Program",
                    text,
                });
                self.flows_told[i] = true;
            } else if load + 5 < ALARM {
                self.flows_told[i] = false;
            }
        }
    }

    /// Service ports get their ids.
    fn name<'a>(
        &mut self,
        keys: impl Iterator<Item = &'a PortKey>,
        dataplane: &Dataplane<PinnedMaps>,
    ) {
        let ids: Vec<_> = keys
            .map(|key| (key.clone(), dataplane.service_id(key)))
            .collect();
        for (key, id) in &ids {
            match id {
                Some(_) => self.nameless.remove(key),
                None => self.nameless.insert(key.clone()),
            };
        }
        self.shared.board.name(ids);
    }

    /// Events on Services that lose a frontend to another one, each once while it lasts (semantics 21.5).
    fn tell_conflicts(&mut self, desired: &Desired) {
        let mut standing = HashSet::new();
        for conflict in desired.conflicts().take(SHOWN) {
            let frontend = SocketAddr::new(conflict.frontend.addr, conflict.frontend.port);
            for loser in &conflict.losers {
                let which = (loser.clone(), frontend, conflict.winner.clone());
                if !self.told.contains(&which) {
                    let text = format!(
                        "{frontend}/{} belongs to {}, which claims it, too, and goes before",
                        conflict.frontend.protocol.name(),
                        conflict.winner.name
                    );
                    self.events
                        .warn(&service_key(loser), "FrontendConflict", "Program", text);
                }
                standing.insert(which);
            }
        }
        self.told = standing;
    }

    /// Whether the change is of a port that has, or had, a policy Local without endpoints.
    fn count_local(&mut self, change: &Change) -> bool {
        let (key, lacks) = match change {
            Change::Set(port) => (&port.key, lacks_local(port)),
            Change::Remove(key) => (key, [false; 2]),
        };
        let mut differs = false;
        for (ports, lacks) in self.no_local[key.family.index()].iter_mut().zip(lacks) {
            differs |= if lacks {
                ports.insert(key.clone())
            } else {
                ports.remove(key)
            };
        }
        differs
    }

    /// The interfaces are served anew.
    pub(super) fn interfaces<'a>(&self, states: impl Iterator<Item = &'a InterfaceState>) {
        self.shared
            .board
            .set_interfaces(states.map(interface).collect());
    }

    /// Socket hooks that are not attached.
    pub(super) fn sockets(&self, problems: Vec<String>) {
        self.shared.board.set_socket_problems(problems);
    }

    /// Where problems of manifests are.
    pub(super) fn manifest_problems(&self, problems: ManifestProblems) {
        self.shared.board.set_manifest_problems(problems);
    }

    /// Load balancers may send to this node, or not.
    pub(super) fn node_eligible(&self, eligible: bool) {
        self.shared.set_eligible(eligible);
    }

    /// An earlier agent has left Services in the maps, which are served.
    pub(super) fn serving(&self) {
        self.shared.set_serving();
    }

    /// The first complete state is in the maps.
    pub(super) fn ready(
        &mut self,
        desired: &Desired,
        dataplane: &Dataplane<PinnedMaps>,
        flows: &Found,
    ) {
        self.tick(desired, dataplane, flows);
        self.shared.set_ready();
        // semantics 25.1
        self.events.write(Note {
            subject: Subject::Node,
            is_warning: false,
            reason: "Starting",
            action: "StartKubeProxy",
            text: format!("lb-agent {} serves Services", env!("CARGO_PKG_VERSION")),
        });
    }

    /// Once a second: what is too long for every step.
    pub(super) fn tick(
        &mut self,
        desired: &Desired,
        dataplane: &Dataplane<PinnedMaps>,
        flows: &Found,
    ) {
        use lb_common::names::maps;
        let (usage, room, pins) = (
            dataplane.usage(),
            dataplane.store().capacities(),
            dataplane.store().maps(),
        );
        let metrics = &self.shared.metrics;
        let frontends = [
            pins.v4.services.max_entries(),
            pins.v6.services.max_entries(),
        ];
        for family in IpFamily::BOTH {
            let i = family.index();
            metrics.map_entries(
                maps::SERVICES[i],
                usage.frontends[i] as u64,
                frontends[i].into(),
            );
            metrics.map_entries(
                maps::BACKENDS[i],
                usage.backends[i] as u64,
                room.max_backends.into(),
            );
            let usage = flows.tables[i].usage;
            metrics.map_entries(maps::FLOWS[i], usage.records(), usage.places);
            let index = flows.tables[i].index;
            metrics.map_entries(maps::FLOW_INDEX[i], index.entries, index.places);
        }
        metrics.flow_tables(flows.tables);
        metrics.map_entries(
            maps::SERVICE_STATS,
            usage.service_ports as u64,
            pins.service_stats.max_entries().into(),
        );
        metrics.map_entries(
            maps::SELECTION,
            usage.rows.into(),
            room.selection_rows.into(),
        );
        if metrics.ports_short(usage.short) {
            match usage.short {
                0 => {
                    tracing::info!("every service port has the rows and backends that it asks for")
                }
                short => tracing::warn!(
                    service_ports = short,
                    "tables are smaller than they should be: rows or backends are short; raise --selection-rows or --max-backends"
                ),
            }
        }
        self.watch_flows(flows);
        if std::mem::take(&mut self.are_warnings_stale) {
            if self.events.is_connected() {
                self.tell_conflicts(desired);
            }
            let conflicts = desired.conflicts().take(SHOWN).map(conflict).collect();
            let warning = |key: &crate::kube::objects::Key, text: &String| Warning {
                service: key.to_string(),
                message: text.clone(),
            };
            let warnings = desired
                .problems()
                .flat_map(|(key, texts)| texts.iter().map(move |text| warning(key, text)));
            self.shared
                .board
                .set_warnings(conflicts, warnings.take(SHOWN).collect());
        }
    }
}

/// Whether the policies Local that are in force, internal and external, find no endpoint although there are some
/// (semantics 10.2).
fn lacks_local(port: &ServicePort) -> [bool; 2] {
    let empty = port.has_endpoints && !port.endpoints.iter().any(|endpoint| endpoint.in_local);
    [port.internal_local && empty, port.external_local && empty]
}

fn service_key(port: &PortKey) -> Key {
    Key::new(&port.name.namespace, &port.name.service)
}

fn conflict(conflict: desired::Conflict) -> Conflict {
    let frontend = conflict.frontend;
    Conflict {
        frontend: SocketAddr::new(frontend.addr, frontend.port).to_string(),
        protocol: frontend.protocol.name().to_owned(),
        winner: conflict.winner.name.to_string(),
        losers: conflict
            .losers
            .iter()
            .map(|port| port.name.to_string())
            .collect(),
    }
}

fn interface(state: &InterfaceState) -> InterfaceReport {
    let pod = state.interface.role == InterfaceRole::Pod;
    let (tc, xdp) = (state.tc.as_ref(), state.xdp.as_ref());
    InterfaceReport {
        ifindex: state.interface.ifindex,
        name: state.interface.name.clone(),
        role: if pod { "pod" } else { "external" }.to_owned(),
        tc: tc.ok().map(|mode| mode.name().to_owned()),
        tc_problem: tc.err().cloned(),
        xdp: xdp.ok().map(|kind| kind.name().to_owned()),
        xdp_reason: xdp.err().cloned(),
    }
}

fn log_report(what: &str, report: &ApplyReport) {
    if !report.is_unchanged() {
        tracing::debug!(
            what,
            services = report.services_written,
            removed = report.services_removed,
            backends = report.backends_written,
            tables = report.tables_written,
            "maps written"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::state::{Endpoint, ServicePortName},
        net::Protocol,
    };

    fn port(local: bool, has_endpoints: bool) -> Arc<ServicePort> {
        let endpoint = Endpoint {
            addr: "10.0.0.1".parse().unwrap(),
            port: 80,
            local,
            in_cluster: true,
            in_local: local,
            usable: true,
            zone: None,
        };
        Arc::new(ServicePort {
            key: PortKey {
                name: ServicePortName {
                    namespace: "shop".into(),
                    service: "web".into(),
                    port: "".into(),
                    protocol: Protocol::Tcp,
                },
                family: IpFamily::V4,
            },
            frontends: Vec::new(),
            internal_local: false,
            external_local: true,
            affinity_secs: 0,
            source_ranges: Vec::new(),
            endpoints: if has_endpoints {
                vec![endpoint]
            } else {
                Vec::new()
            },
            has_endpoints,
            external: true,
        })
    }

    #[test]
    fn a_service_port_counts_only_where_others_have_its_endpoints() {
        // semantics 10.2, 23
        assert_eq!(lacks_local(&port(false, true)), [false, true]);
        assert_eq!(lacks_local(&port(true, true)), [false, false]);
        assert_eq!(lacks_local(&port(false, false)), [false, false]);
    }

    #[test]
    fn the_loser_of_a_frontend_hears_of_it_once_while_it_lasts() {
        // semantics 21.5
        let (events, mut queue) = EventWriter::new(Arc::default());
        let mut observer = Observer {
            events,
            ..Observer::default()
        };
        let with_vip = |name: &str, created_ns: i128| {
            let mut service = crate::kube::testing::service(name);
            service.cluster_ips = vec![format!("10.96.0.{created_ns}").parse().unwrap()];
            service.external_ips = vec!["203.0.113.7".parse().unwrap()];
            service.created_ns = Some(created_ns);
            ObjectEvent::Service(service.key.clone(), Some(Arc::new(service)))
        };
        let mut store = crate::kube::store::ObjectStore::new();
        let mut desired = Desired::new(crate::desired::testing::node());
        let dirty = store.initial([with_vip("old", 1), with_vip("young", 2)]);
        desired.apply(&store, &dirty);
        observer.tell_conflicts(&desired);
        observer.tell_conflicts(&desired);
        let note = queue.try_recv().unwrap();
        assert_eq!(
            (note.subject, note.reason),
            (
                Subject::Service(Key::new("default", "young")),
                "FrontendConflict"
            )
        );
        assert!(note.text.contains("default/old"), "{}", note.text);
        assert!(queue.try_recv().is_err(), "told once");
        // It goes and comes back.
        let gone = ObjectEvent::Service(Key::new("default", "old"), None);
        for events in [vec![gone], vec![with_vip("old", 1)]] {
            let dirty = store.apply(events);
            desired.apply(&store, &dirty);
            observer.tell_conflicts(&desired);
        }
        assert!(queue.try_recv().is_ok(), "told again");
    }

    #[test]
    fn a_table_of_flows_that_fills_up_is_told_of_once() {
        let (events, mut queue) = EventWriter::new(Arc::default());
        let mut observer = Observer {
            events,
            ..Observer::default()
        };
        let mut told = |confirmed: u64| {
            let mut found = Found::default();
            let usage = &mut found.tables[1].usage;
            (usage.places, usage.confirmed, usage.opening) = (100, confirmed, 100 - confirmed);
            observer.watch_flows(&found);
            queue.try_recv().map(|note| note.text).unwrap_or_default()
        };
        assert_eq!(told(64), "", "what is not confirmed gives way");
        assert!(told(65).starts_with("65 % of the places for IPv6"));
        for same in [66, 60, 65] {
            assert_eq!(told(same), "");
        }
        assert_eq!(told(59), "");
        assert!(told(70).starts_with("70 %"), "told again");
    }

    #[test]
    fn the_count_follows_changes() {
        let mut observer = Observer::default();
        let without = port(false, true);
        assert!(observer.count_local(&Change::Set(without.clone())));
        assert!(!observer.count_local(&Change::Set(without.clone())));
        assert_eq!(observer.no_local[0][1].len(), 1);
        assert!(observer.count_local(&Change::Remove(without.key.clone())));
        assert!(observer.no_local[0][1].is_empty());
    }
}
