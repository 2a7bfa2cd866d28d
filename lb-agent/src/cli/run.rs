//! `lb-agent run`: the rooms of the agent, joined. What arrives (objects, netlink, time, signals) goes downhill: store,
//! desired, dataplane, maps.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lb_common::{
    Family,
    abi::{Clock, ModeFlags, NodeAddrFlags, NodeAddrKey},
};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::{
    bpf::{
        attach::TcMode,
        features::Features,
        load::{Loaded, Sizes, memory_bytes},
        maps::{ClockReader, MapResult, TypedMap},
        store::{ConfigEntry, PinnedStore},
    },
    cli::cleanup,
    config::{
        Config, Masquerade, ObjectSource, RunArgs, SocketLb, TcAttach, conntrack, file::Look,
    },
    dataplane::{
        ApplyReport, Dataplane, DataplaneConfig,
        gc::{FlowGc, Now, Timeouts},
    },
    desired::{
        Desired, NodeView,
        node::accepted,
        state::{Change, IpFamily},
    },
    health::BindFailure,
    hooks::{Hooks, chain},
    kube::{
        api::{
            ApiSource,
            events::{Note, Subject},
        },
        manifests::ManifestSource,
        objects::ObjectEvent,
        source::{Batch, Source},
        store::{Dirty, List, Store},
    },
    node::{
        self, Rules, Snapshot, Watch, cgroup2_mount, netns_cookie, reserved,
        sock_destroy::StaleSockets,
    },
    shutdown::Signals,
    telemetry::{
        log::{self, wants_events},
        metrics::Extent,
        observer::Observer,
        server::Telemetry,
    },
};

/// Between two looks at flows: a fourth of a second, so that one look stays under a millisecond.
const GC_INTERVAL: Duration = Duration::from_millis(250);
/// Between two rounds over all flows: a round walks every bucket, also of empty tables.
const GC_ROUND: Duration = Duration::from_secs(2);
/// Entries a look.
const GC_ENTRIES: usize = 8_192;
/// Between two audits.
const AUDIT_INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks whether the hooks are still attached.
const HOOKS_INTERVAL: Duration = Duration::from_secs(10);
/// Between two tries of what failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// An Event that the agent ends with has this long to get out.
const EVENT_PATIENCE: Duration = Duration::from_secs(3);

/// After so long without complete lists the agent serves what it finds in the maps.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the agent until a signal ends it.
pub fn run(args: &RunArgs) -> Result<()> {
    let started = Instant::now();
    log::init(args.log_format)?;
    let config = args.validate()?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(path) = &args.write_config_to {
        return Ok(config.write_to(path)?);
    }
    if args.cleanup {
        return super::clean_up(&config.bpffs);
    }
    if args.init_only {
        return init_only(&config);
    }
    let unset = prepare(&config);
    let telemetry = Telemetry::start(&config, super::run_flags())
        .context("cannot start the thread of health and metrics")?;
    let observer = Observer::new(telemetry.shared());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new().context("cannot catch signals")?;
        let (mut agent, source) = Agent::start(args, config, unset, observer)?;
        let Some(source) = agent.begin(source, &mut signals).await? else {
            return Ok(());
        };
        tracing::info!(elapsed_ms = started.elapsed().as_millis(), "ready");
        agent.follow(source, &mut signals).await
    });
    telemetry.stop();
    result
}

/// What the flags ask of the process and the kernel. A node without Services would be worse than one where this fails
/// (semantics 24.9, 24.11). Gives the settings of a conntrack that is not loaded yet.
fn prepare(config: &Config) -> Vec<conntrack::Setting> {
    if let Some(score) = config.oom_score_adj
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        tracing::error!(score, "--oom-score-adj is not applied: {error}");
    }
    let unset = set_conntrack(&config.conntrack);
    if !unset.is_empty() {
        tracing::info!("the kernel's conntrack is not loaded; it is set as asked when it is");
    }
    unset
}

/// Sets what can be set; gives back what the kernel does not have now.
fn set_conntrack(settings: &[conntrack::Setting]) -> Vec<conntrack::Setting> {
    let mut absent = Vec::new();
    if settings.is_empty() {
        return absent;
    }
    let written = conntrack::write(settings, &conntrack::proc_sys(), conntrack::host_cpus());
    let unset = written.unwrap_or_else(|error| {
        tracing::error!("conntrack is not set: {error}");
        Vec::new()
    });
    for unset in unset {
        if unset.is_absent() {
            absent.push(unset.setting);
        } else {
            tracing::error!("{}", chain(&unset));
        }
    }
    absent
}

/// `--init-only`: everything that needs a writable `/proc/sys` (semantics 25.6). Here what cannot be set is an error: it is
/// all that was asked for.
fn init_only(config: &Config) -> Result<()> {
    for unset in conntrack::write(
        &config.conntrack,
        &conntrack::proc_sys(),
        conntrack::host_cpus(),
    )? {
        if !unset.is_absent() {
            return Err(unset.into());
        }
        tracing::warn!("{}", chain(&unset));
    }
    reserved::reserve(config.snat_ports).context(
        "cannot keep the ports for source translation out of the host's ephemeral ports",
    )?;
    Ok(())
}

/// Everything that the agent holds.
struct Agent {
    /// As they were given.
    args: RunArgs,
    config: Config,
    objects: Store,
    desired: Desired,
    dataplane: Dataplane<PinnedStore>,
    entry: ConfigEntry,
    hooks: Hooks,
    watch: Watch,
    snapshot: Snapshot,
    gc: FlowGc,
    /// When the next round over all flows begins.
    gc_rest: Option<Instant>,
    stale_sockets: StaleSockets,
    clock: ClockReader,
    hz: Hz,
    cookie: u64,
    /// Settings of a conntrack that is not loaded yet.
    conntrack: Vec<conntrack::Setting>,
    /// The Node object exists; one that is gone is remembered for its zone and addresses (semantics 2.6).
    is_node_there: bool,
    observer: Observer,
}

impl Agent {
    /// From nothing, or from what an earlier agent left, to an agent that knows its maps and waits for objects.
    fn start(
        args: &RunArgs,
        config: Config,
        conntrack: Vec<conntrack::Setting>,
        mut observer: Observer,
    ) -> Result<(Agent, Source)> {
        let source = match &config.source {
            ObjectSource::Manifests(dir) => {
                Source::Manifests(Box::new(ManifestSource::open(dir, &config.node_name)?))
            }
            ObjectSource::Api(access) => {
                let source = ApiSource::start(access, &config.node_name, observer.api_metrics())?;
                observer.set_events(source.events());
                Source::Api(source)
            }
        };
        let features = Features::probe();
        tracing::info!(
            kernel = features.release,
            tcx = features.tcx,
            csum_ipv6 = features.csum_ipv6,
            "kernel probed"
        );
        let mut loaded = Loaded::new(
            &config.bpffs,
            &Sizes::new(&config, memory_bytes()),
            &features,
        )?;
        for (map, has, asked) in &loaded.kept_sizes {
            tracing::warn!(
                map,
                has,
                asked,
                "the pinned map keeps its size; run `lb-agent cleanup` first to change it (flows are lost)"
            );
        }
        loaded.program(lb_common::names::programs::CLOCK)?;
        let clock = ClockReader::open_pinned(loaded.dir())?;
        let entry = ConfigEntry::open(loaded.dir())?;
        let translates = config.socket_lb != SocketLb::Off;
        let stale_sockets = StaleSockets::open(loaded.dir(), translates)?;
        observer.maps_opened(loaded.dir())?;
        let store = PinnedStore::open(loaded.dir(), entry.clone())?;
        let tc = tc_mode(config.tc_attach, &features)?;
        let dataplane_config = DataplaneConfig {
            snat_ports: config.snat_ports,
        };
        let dataplane =
            Dataplane::new(store, dataplane_config).context("cannot read the pinned maps back")?;
        let cookie = netns_cookie().context("cannot tell this network namespace's cookie")?;
        if cookie.is_none() && config.socket_lb == SocketLb::Host {
            bail!(
                "--socket-lb host needs network namespace cookies (kernel 5.14); pass --socket-lb off or all"
            );
        }
        let mut watch = Watch::new().context("cannot follow the interfaces")?;
        let snapshot = watch.snapshot().context("cannot list the interfaces")?;
        let agent = Agent {
            args: args.clone(),
            hooks: Hooks::new(loaded, tc, config.xdp)?,
            objects: Store::new(),
            desired: Desired::new(NodeView::default()),
            dataplane,
            entry,
            watch,
            snapshot,
            gc: FlowGc::new(Timeouts::default()),
            gc_rest: None,
            stale_sockets,
            clock,
            hz: Hz::default(),
            cookie: cookie.unwrap_or(0),
            conntrack,
            is_node_there: false,
            config,
            observer,
        };
        Ok((agent, source))
    }

    /// Waits for the first complete state and serves it; `None`: a signal came before.
    async fn begin(&mut self, mut source: Source, signals: &mut Signals) -> Result<Option<Source>> {
        let mut gc = ticks(GC_INTERVAL);
        let mut surroundings = ticks(HOOKS_INTERVAL);
        surroundings.reset();
        let mut patience = pin!(sleep(PATIENCE));
        let mut is_waiting = false;
        if self.dataplane.usage().service_ports != 0 {
            self.observer.serving();
        }
        self.hooks.preload(self.config.socket_lb);
        let events = loop {
            tokio::select! {
                biased;
                signal = signals.stop() => {
                    log_stop(signal);
                    return Ok(None);
                }
                failure = self.observer.unbound() => return Err(self.refuse(failure).await),
                events = source.initial() => break events?,
                () = &mut patience, if !is_waiting => {
                    is_waiting = true;
                    tracing::info!("no complete lists yet; what an earlier agent left in the maps is served meanwhile");
                    self.serve_pinned()?;
                }
                changed = self.watch.changed() => {
                    changed.context("cannot hear of changes of the interfaces")?;
                    self.snapshot = self.watch.snapshot().context("cannot list the interfaces")?;
                    if is_waiting {
                        self.serve_pinned()?;
                    }
                }
                _ = gc.tick() => self.collect(),
                // The lists may be waited for because the file is wrong.
                _ = surroundings.tick() => self.follow_surroundings().await?,
            }
        };
        self.first(events)?;
        let (source, problems) = source.follow()?;
        for problem in problems.list() {
            tracing::error!(file = problem.file, "{}", problem.message);
        }
        self.observer.manifest_problems(problems);
        self.observer.ready(&self.desired, &self.dataplane);
        Ok(Some(source))
    }

    /// Objects are long in coming: what an earlier agent left is served as it is, new interfaces included.
    fn serve_pinned(&mut self) -> Result<()> {
        if self.dataplane.usage().service_ports == 0 {
            return Ok(());
        }
        self.serve_interfaces()
    }

    /// The first complete state: maps, then hooks.
    fn first(&mut self, events: Vec<ObjectEvent>) -> Result<()> {
        if let Err(error) = reserved::reserve(self.config.snat_ports) {
            tracing::warn!(%error, "cannot keep the ports for source translation out of the host's ephemeral ports");
        }
        let begun = self.observer.arrived(events.iter());
        let dirty = self.objects.initial(events);
        self.is_node_there = self.objects.node().is_some();
        if let Some(node) = self.objects.node() {
            for warning in self.config.check_node(node)? {
                tracing::warn!("{warning}");
            }
        }
        self.desired = Desired::new(self.view());
        let changes = self.desired.apply(&self.objects, &dirty);
        self.write_node()?;
        log_errors(
            &self
                .dataplane
                .set_local_addresses(&self.snapshot.local_addresses()),
        );
        self.write("first state", Extent::Full, begun, &changes);
        // Its XDP programs would be in the way of ours.
        let removed = cleanup::remove_other_versions(&self.config.bpffs)?;
        if removed != 0 {
            tracing::warn!(
                pins = removed,
                "removed what an agent of another version left; its connections are lost"
            );
        }
        self.serve_interfaces()?;
        self.serve_sockets()
    }

    /// Takes what arrives until a signal ends it.
    async fn follow(&mut self, mut source: Source, signals: &mut Signals) -> Result<()> {
        let mut gc = ticks(GC_INTERVAL);
        let mut retry = ticks(RETRY_INTERVAL);
        let mut audit = ticks(AUDIT_INTERVAL);
        audit.reset();
        let mut hooks = ticks(HOOKS_INTERVAL);
        hooks.reset();
        let mut events_open = true;
        loop {
            tokio::select! {
                biased;
                signal = signals.stop() => {
                    log_stop(signal);
                    return Ok(());
                }
                failure = self.observer.unbound() => return Err(self.refuse(failure).await),
                batch = source.next(), if events_open => match batch {
                    Some(batch) => self.objects_changed(batch)?,
                    None => {
                        events_open = false;
                        tracing::error!("objects are not followed any more; what is known stays served");
                    }
                },
                changed = self.watch.changed() => {
                    changed.context("cannot hear of changes of the interfaces")?;
                    self.network_changed()?;
                }
                _ = gc.tick() => {
                    self.collect();
                    self.end_stale_sockets();
                }
                _ = retry.tick() => {
                    if self.dataplane.is_pending() {
                        let report = self.dataplane.retry();
                        self.stale_sockets.changed();
                        self.observer.settled(&report, &self.dataplane);
                        self.observer.health_checks(&self.desired);
                    }
                    self.observer.tick(&self.desired, &self.dataplane, self.gc.entries());
                }
                _ = audit.tick() => self.audit(),
                _ = hooks.tick() => {
                    self.repair_hooks()?;
                    self.follow_surroundings().await?;
                }
            }
        }
    }

    /// An address cannot be bound, and the flags want the agent to end then (semantics 16.10).
    async fn refuse(&self, failure: BindFailure) -> anyhow::Error {
        let text = chain(&failure);
        self.observer.events().write(Note {
            subject: Subject::Node,
            is_warning: true,
            reason: failure.reason,
            action: "StartKubeProxy",
            text,
        });
        self.observer.events_settled(EVENT_PATIENCE).await;
        anyhow::Error::from(failure).context("--bind-address-hard-fail")
    }

    /// What changes without anybody saying so: whether conntrack is loaded, and the file of `--config`. Another file takes
    /// effect when the agent is started anew, which whoever runs it does (semantics 24.1). One that no agent could start
    /// with would leave the node without changes, so it is only told.
    async fn follow_surroundings(&mut self) -> Result<()> {
        self.conntrack = set_conntrack(&self.conntrack);
        let Some(file) = &mut self.config.file else {
            return Ok(());
        };
        match file.look(&self.args).await {
            Look::Same => Ok(()),
            Look::Changed(path) => bail!(
                "{} has changed: start the agent again to use it; the dataplane stays attached",
                path.display()
            ),
            Look::Refused(why) => {
                tracing::error!("the changed configuration is not used: {why}");
                Ok(())
            }
        }
    }

    fn objects_changed(&mut self, batch: Batch) -> Result<()> {
        let begun = self.observer.arrived(batch.events());
        if let Some(is_there) = tells_node(&batch) {
            self.is_node_there = is_there;
            self.observer.node_eligible(self.is_eligible());
        }
        let mut dirty = Dirty::default();
        let extent = match batch.lists.is_empty() {
            true => Extent::Partial,
            false => Extent::Full,
        };
        for relist in batch.lists {
            dirty.extend(
                self.objects
                    .relist(relist.list, relist.events, &relist.keep),
            );
        }
        dirty.extend(self.objects.apply(batch.changes));
        if dirty.node {
            self.node_changed(extent, begun, &dirty)?;
        } else {
            let changes = self.desired.apply(&self.objects, &dirty);
            self.write("change", extent, begun, &changes);
        }
        self.observer.programmed(&batch.triggers);
        Ok(())
    }

    /// Brings changes to the maps.
    fn write(&mut self, what: &str, extent: Extent, begun: Instant, changes: &[Change]) {
        let report = self.dataplane.apply(changes);
        self.stale_sockets.changed();
        self.observer
            .applied(what, extent, begun, changes, &report, &self.dataplane);
        self.observer.health_checks(&self.desired);
    }

    fn network_changed(&mut self) -> Result<()> {
        let snapshot = self
            .watch
            .snapshot()
            .context("cannot list the interfaces")?;
        if snapshot == self.snapshot {
            return Ok(());
        }
        self.snapshot = snapshot;
        let begun = self.observer.begin();
        log_errors(
            &self
                .dataplane
                .set_local_addresses(&self.snapshot.local_addresses()),
        );
        self.node_changed(Extent::Full, begun, &Dirty::default())?;
        self.serve_interfaces()
    }

    /// The Node object or the addresses changed.
    fn node_changed(&mut self, extent: Extent, begun: Instant, dirty: &Dirty) -> Result<()> {
        let mut changes = self.desired.set_node(&self.objects, self.view());
        changes.extend(self.desired.apply(&self.objects, dirty));
        self.write_node()?;
        self.write("node", extent, begun, &changes);
        Ok(())
    }

    /// Whether load balancers may send to this node (semantics 16.5). Manifests need no Node object; where there is an
    /// API server, a node without one is none of the cluster's.
    fn is_eligible(&self) -> bool {
        let by_api = matches!(self.config.source, ObjectSource::Api(_));
        let is_leaving = self.objects.node().is_some_and(|node| node.leaving);
        !is_leaving && (self.is_node_there || !by_api)
    }

    /// This node as the decisions see it. Without a Node object its addresses are those of the default routes.
    fn view(&self) -> NodeView {
        let node = self.objects.node();
        NodeView {
            name: self.config.node_name.clone(),
            zone: node.and_then(|node| node.zone.clone()),
            object_addresses: with_bind_address(
                self.config.bind_address,
                node.map(|node| node.addresses.clone())
                    .filter(|addresses| !addresses.is_empty())
                    .unwrap_or_else(|| self.snapshot.default_addresses()),
            ),
            local_addresses: self.snapshot.local_addresses(),
            node_port_addresses: self.config.node_port_addresses.clone(),
            allow_external_ips: self.config.allow_external_ips,
        }
    }

    /// Own address of a family: the Node object's, the default route's, or any external interface's.
    fn primary(&self, family: IpFamily) -> Option<IpAddr> {
        let of = |addr: &IpAddr| IpFamily::of(addr) == family;
        let external = |interface: node::Interface| match family {
            IpFamily::V4 => interface.saddr_v4.map(IpAddr::V4),
            IpFamily::V6 => interface.saddr_v6.map(IpAddr::V6),
        };
        let outside =
            |interface: &node::Interface| interface.role == lb_common::abi::InterfaceRole::External;
        let declared = self.desired.node().primary(family);
        declared
            .or_else(|| self.snapshot.default_addresses().into_iter().find(of))
            .or_else(|| {
                node::interfaces(&self.snapshot, &self.rules())
                    .into_iter()
                    .filter(outside)
                    .find_map(external)
            })
    }

    fn rules(&self) -> Rules {
        Rules {
            external: self.config.external_interfaces.clone(),
            pod: self.config.pod_interfaces.clone(),
            xdp: self.config.xdp,
        }
    }

    fn serve_interfaces(&mut self) -> Result<()> {
        let wanted = node::interfaces(&self.snapshot, &self.rules());
        if self.hooks.reconcile(wanted)? {
            self.observer.interfaces(self.hooks.states());
        }
        Ok(())
    }

    fn serve_sockets(&mut self) -> Result<()> {
        let cgroup: Option<PathBuf> = self.config.cgroup.clone().or_else(cgroup2_mount);
        let mut problems = Vec::new();
        if cgroup.is_none() && self.config.socket_lb != SocketLb::Off {
            problems.push(String::from(
                "no mount of type cgroup2: connections of host processes are not translated; mount one or name it with --cgroup",
            ));
        }
        for reason in self
            .hooks
            .sockets(self.config.socket_lb, cgroup.as_deref())?
        {
            problems.push(format!("socket hook not attached: {reason}"));
        }
        for problem in &problems {
            tracing::error!("{problem}");
        }
        self.observer.sockets(problems);
        Ok(())
    }

    /// Writes the node's part of `config`, and `node_addrs_*`.
    fn write_node(&mut self) -> Result<()> {
        self.observer.node_eligible(self.is_eligible());
        let (v4, v6) = (self.primary(IpFamily::V4), self.primary(IpFamily::V6));
        let modes = self.modes();
        let hz = self
            .clock
            .now()
            .map(|clock| self.hz.measure(&clock))
            .unwrap_or(0);
        let (config, cookie) = (&self.config, self.cookie);
        self.entry.update(&mut |entry| {
            entry.node_v4 = if let Some(IpAddr::V4(addr)) = v4 {
                addr.into()
            } else {
                entry.node_v4
            };
            entry.node_v6 = if let Some(IpAddr::V6(addr)) = v6 {
                addr.into()
            } else {
                entry.node_v6
            };
            (entry.snat_port_min, entry.snat_port_max) = config.snat_ports;
            entry.modes = modes;
            entry.netns_cookie = cookie;
            entry.hz = hz;
            entry.refusals_per_sec = config.refusals_per_sec;
        })?;
        let view = self.desired.node();
        let maps = self.dataplane.store().maps();
        let flags = |family| addr_flags(view, family, if family == IpFamily::V4 { v4 } else { v6 });
        sync(
            &maps.v4.node_addrs,
            &flags(IpFamily::V4),
            |addr| match addr {
                IpAddr::V4(addr) => Some((*addr).into()),
                IpAddr::V6(_) => None,
            },
        )?;
        sync(
            &maps.v6.node_addrs,
            &flags(IpFamily::V6),
            |addr| match addr {
                IpAddr::V6(addr) => Some((*addr).into()),
                IpAddr::V4(_) => None,
            },
        )?;
        Ok(())
    }

    fn modes(&self) -> u32 {
        let flags = [
            (
                self.config.masquerade == Masquerade::KubeProxy,
                ModeFlags::MASQUERADE_KUBE_PROXY,
            ),
            (self.config.masquerade_all, ModeFlags::MASQUERADE_ALL),
            (
                self.config.socket_lb == SocketLb::All,
                ModeFlags::SOCKET_ALL,
            ),
            (wants_events(), ModeFlags::DEBUG_EVENTS),
        ];
        flags
            .into_iter()
            .filter(|(on, _)| *on)
            .fold(0, |modes, (_, flag)| modes | flag)
    }

    fn collect(&mut self) {
        if self.gc_rest.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let clock = match self.clock.now() {
            Ok(clock) => clock,
            Err(error) => return tracing::error!("flows are not aged: {}", chain(&error)),
        };
        let now = Now {
            stamp: clock.stamp(),
            hz: self.hz.measure(&clock),
        };
        match self.gc.tick(self.dataplane.store_mut(), now, GC_ENTRIES) {
            Ok(report) => {
                self.gc_rest = report.is_round_complete.then(|| Instant::now() + GC_ROUND);
                if report.removed > 0 {
                    tracing::debug!(removed = report.removed, "flows aged");
                }
            }
            Err(error) => tracing::error!("flows are not aged: {}", chain(&error)),
        }
    }

    /// Once the maps are as wanted (semantics 17.6).
    fn end_stale_sockets(&mut self) {
        match self.stale_sockets.sweep(self.dataplane.store().maps()) {
            Ok(0) => {}
            Ok(ended) => tracing::info!(ended, "connected UDP sockets lost their backend"),
            Err(error) => tracing::error!("{}", chain(&error)),
        }
    }

    /// Attaches again what somebody detached (semantics 22.6).
    fn repair_hooks(&mut self) -> Result<()> {
        // Those of an interface that went are gone, too.
        self.network_changed()?;
        for interface in self.hooks.forget_detached() {
            tracing::warn!(
                interface,
                "its programs were detached by somebody else; attached again"
            );
        }
        self.serve_interfaces()?;
        if !self.hooks.are_sockets_attached() {
            tracing::warn!("the socket hooks were detached by somebody else; attached again");
            self.serve_sockets()?;
        }
        Ok(())
    }

    fn audit(&mut self) {
        // For a socket that was being connected when its backend went.
        self.stale_sockets.changed();
        let fresh: Vec<_> = self.desired.current().cloned().collect();
        match self.dataplane.audit(&fresh) {
            Ok(report) if report.differences() > 0 => {
                tracing::warn!(
                    differences = report.differences(),
                    "the audit found maps that were not as wanted, and repaired them"
                );
            }
            Ok(_) => {}
            Err(error) => tracing::error!("audit failed: {}", chain(&error)),
        }
    }
}

/// Whether the Node exists, as far as a batch tells.
fn tells_node(batch: &Batch) -> Option<bool> {
    let listed = batch.lists.iter().rfind(|relist| relist.list == List::Node);
    let is_there = |event: &ObjectEvent| matches!(event, ObjectEvent::Node(Some(_)));
    let listed = listed.map(|relist| relist.events.iter().any(is_there));
    let changed = batch.changes.iter().rev().find_map(|event| match event {
        ObjectEvent::Node(node) => Some(node.is_some()),
        _ => None,
    });
    changed.or(listed)
}

/// `--bind-address` takes the place of the node's addresses of its family (semantics 12.5).
fn with_bind_address(bind: Option<IpAddr>, known: Vec<IpAddr>) -> Vec<IpAddr> {
    let Some(bind) = bind else { return known };
    let others = known
        .into_iter()
        .filter(|addr| IpFamily::of(addr) != IpFamily::of(&bind));
    std::iter::once(bind).chain(others).collect()
}

/// Flags of each local address of a family.
fn addr_flags(view: &NodeView, family: IpFamily, primary: Option<IpAddr>) -> HashMap<IpAddr, u32> {
    let local = view
        .local_addresses
        .iter()
        .copied()
        .filter(|addr| IpFamily::of(addr) == family);
    let mut flags: HashMap<IpAddr, u32> = local.map(|addr| (addr, 0)).collect();
    for addr in accepted(view, family) {
        *flags.entry(addr).or_default() |= NodeAddrFlags::NODE_PORT;
    }
    if let Some(addr) = primary {
        *flags.entry(addr).or_default() |= NodeAddrFlags::PRIMARY;
    }
    flags
}

/// Makes a map hold exactly these addresses.
fn sync<F: Family>(
    map: &TypedMap<NodeAddrKey<F>, u32>,
    wanted: &HashMap<IpAddr, u32>,
    of_family: impl Fn(&IpAddr) -> Option<F::Addr>,
) -> MapResult<()> {
    let wanted: HashMap<F::Addr, u32> = wanted
        .iter()
        .filter_map(|(addr, flags)| Some((of_family(addr)?, *flags)))
        .collect();
    let present: HashMap<F::Addr, u32> = map
        .entries()?
        .into_iter()
        .map(|(key, flags)| (key.addr, flags))
        .collect();
    for addr in present.keys().filter(|addr| !wanted.contains_key(addr)) {
        map.delete(&NodeAddrKey { addr: *addr })?;
    }
    for (addr, flags) in &wanted {
        if present.get(addr) != Some(flags) {
            map.update(&NodeAddrKey { addr: *addr }, flags)?;
        }
    }
    Ok(())
}

fn tc_mode(choice: TcAttach, features: &Features) -> Result<TcMode> {
    match choice {
        TcAttach::Tcx if !features.tcx => bail!(
            "kernel {} has no TCX (6.6); pass --tc-attach auto",
            features.release
        ),
        TcAttach::Clsact => Ok(TcMode::Clsact),
        _ if features.tcx => Ok(TcMode::Tcx),
        _ => Ok(TcMode::Clsact),
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn log_stop(signal: &str) {
    tracing::info!(
        signal,
        "stopped; the dataplane stays attached, `lb-agent cleanup` removes it"
    );
}

fn log_errors(report: &ApplyReport) {
    for error in &report.errors {
        tracing::error!("{}", chain(error));
    }
}

/// Jiffies a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Hz(u32);

impl Hz {
    const USUAL: [u32; 4] = [100, 250, 300, 1000];

    /// The rate that explains a reading best, found once. The kernel starts `jiffies` five minutes before 32 bits
    /// are full, so one reading is enough but around these five minutes; there the default of the time answers.
    fn measure(&mut self, clock: &Clock) -> u32 {
        let seconds = clock.monotonic_ns / 1_000_000_000;
        if self.0 == 0 && !(240..360).contains(&seconds) {
            let seconds = i128::from(seconds) - 300;
            let ticks = i128::from(clock.jiffies) - (1 << 32);
            let miss = |hz: &u32| (ticks - i128::from(*hz) * seconds).abs();
            self.0 = Self::USUAL.into_iter().min_by_key(miss).unwrap_or(250);
        }
        if self.0 == 0 { 250 } else { self.0 }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use super::*;
    use crate::kube::source::Relist;

    #[test]
    fn one_reading_of_the_clock_tells_its_rate() {
        for hz in Hz::USUAL {
            for seconds in [1u64, 60, 400, 100_000] {
                let jiffies = (1u64 << 32) - 300 * u64::from(hz) + u64::from(hz) * seconds;
                let clock = Clock {
                    jiffies,
                    monotonic_ns: seconds * 1_000_000_000,
                };
                assert_eq!(
                    Hz::default().measure(&clock),
                    hz,
                    "{hz} Hz after {seconds} s"
                );
            }
        }
    }

    // semantics 2.6, 16.5
    #[test]
    fn a_batch_tells_whether_the_node_exists() {
        let node = |there: bool| ObjectEvent::Node(there.then(Arc::default));
        let list = |events| Relist {
            list: List::Node,
            events,
            keep: HashSet::default(),
        };
        let batch = |lists, changes| Batch {
            lists,
            changes,
            ..Batch::default()
        };
        let told = |lists, changes| tells_node(&batch(lists, changes));
        assert_eq!(told(vec![], vec![]), None);
        assert_eq!(told(vec![list(vec![])], vec![]), Some(false));
        assert_eq!(told(vec![list(vec![node(false)])], vec![]), Some(false));
        assert_eq!(told(vec![list(vec![node(true)])], vec![]), Some(true));
        assert_eq!(told(vec![], vec![node(true), node(false)]), Some(false));
        assert_eq!(told(vec![list(vec![])], vec![node(true)]), Some(true));
    }

    // semantics 12.5, 24.3
    #[test]
    fn a_bind_address_is_the_primary_one_of_its_family() {
        let addresses = ["192.0.2.1", "192.0.2.2", "fd00::1"].map(|addr| addr.parse().unwrap());
        let bind: IpAddr = "198.51.100.1".parse().unwrap();
        assert_eq!(
            with_bind_address(Some(bind), addresses.to_vec()),
            [bind, addresses[2]]
        );
        assert_eq!(with_bind_address(None, addresses.to_vec()), addresses);
    }

    #[test]
    fn addresses_carry_what_they_are_good_for() {
        let view = NodeView {
            object_addresses: vec!["192.0.2.1".parse().unwrap()],
            local_addresses: vec![
                "127.0.0.1".parse().unwrap(),
                "192.0.2.1".parse().unwrap(),
                "::1".parse().unwrap(),
            ],
            ..NodeView::default()
        };
        let flags = addr_flags(&view, IpFamily::V4, view.primary(IpFamily::V4));
        let own: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(
            flags[&own],
            NodeAddrFlags::NODE_PORT | NodeAddrFlags::PRIMARY
        );
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(flags[&loopback], 0);
        assert_eq!(flags.len(), 2);
    }
}
