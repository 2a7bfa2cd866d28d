//! The agent and the real kube-proxy (nftables) at one real API server with many Services, one after the other: how long
//! until everything is in the maps, how long one change takes from the write to the map entry, and what each weighs.
//!
//! Every start is a cold one: its node is new, and so are its maps and its nftables.

mod nft;

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_agent::bpf::maps::{Access, MappedArray, TypedMap, pin_dir};
use lb_common::{
    V4,
    abi::{
        Backend, Be16, FrontendKind, SELECTION_BLOCK_ROWS, SelectionBlock, Service as Frontend,
        ServiceFlags, ServiceKey, proto,
    },
    names::maps as names,
};
use serde_json::{Value, json};

use super::{Report, Row, median, progress, quantile};
use crate::{
    agent::{Agent, AgentOptions},
    control_plane::{self, Api, ControlPlane, KubeProxy, Mode, Role, program},
    manifest::NAMESPACE,
    topology::{Place, World, WorldOptions},
};

/// Endpoints of each Service.
const ENDPOINTS: usize = 10;
/// One of so many endpoints is on the node.
const NODES: usize = 100;
/// Requests at once while the API server is filled.
const WRITERS: usize = 16;
const PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;
/// Services that the API server has by itself: `kubernetes`.
const BUILT_IN: usize = 1;
/// As many as fit between the first address and the end of the range.
pub const MOST: usize = 50_000;
/// kube-proxy's default: so long lie between the begins of two of its syncs.
const PERIOD: &str = "1s";
/// Between two changes for the agent: it has done all that follows from the last one.
const PAUSE: Duration = Duration::from_millis(200);
/// The same for kube-proxy: longer than its period, so that a change never waits for that.
const LONG_PAUSE: Duration = Duration::from_millis(1500);
/// Between two looks at the map.
const LOOK: Duration = Duration::from_micros(200);
/// How long a start or a change may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long to wait for a machine that is quiet.
const QUIET: Duration = Duration::from_secs(30);
const MIB: f64 = 1024.0;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Services.
    pub services: usize,
    /// Starts of each.
    pub starts: usize,
    /// Changes that the agent is timed with.
    pub updates: usize,
    /// Changes that kube-proxy is timed with.
    pub kube_proxy_updates: usize,
}

impl Scale {
    /// The whole measurement.
    pub const WHOLE: Scale = Scale {
        services: 10_000,
        starts: 3,
        updates: 300,
        kube_proxy_updates: 25,
    };
    /// A look at it.
    pub const QUICK: Scale = Scale {
        services: 1_000,
        starts: 1,
        updates: 100,
        kube_proxy_updates: 20,
    };
}

/// What one of the two came to.
#[derive(Default)]
struct Measured {
    /// Our maps are complete; what reads them need not be attached.
    maps: Vec<f64>,
    /// Everything is served.
    complete: Vec<f64>,
    after_lists: Vec<f64>,
    cpu_start: Vec<f64>,
    updates: Vec<f64>,
    /// How long the API server took for the same changes.
    writes: Vec<f64>,
    cpu_updates: f64,
    usage: Usage,
}

/// Measures both and notes rows and goals.
pub fn measure(report: &mut Report, scale: &Scale) -> Result<()> {
    ensure!(
        (1..=MOST).contains(&scale.services),
        "--services must be 1 to {MOST}"
    );
    progress(&versions());
    progress("control plane: starting");
    let plane = ControlPlane::start()?;
    fill(plane.api(), scale.services)?;
    let changes = Changes {
        api: plane.api(),
        services: scale.services,
        next: AtomicUsize::new(0),
    };
    let (mut ours, mut kube_proxy) = (Measured::default(), Measured::default());
    for round in 1..=scale.starts {
        let is_last = round == scale.starts;
        let count = |count: usize| if is_last { count } else { 0 };
        let label = format!("start {round} of {}", scale.starts);
        measure_ours(&plane, &changes, &label, count(scale.updates), &mut ours)
            .with_context(|| format!("our agent, {label}"))?;
        measure_kube_proxy(
            &plane,
            &changes,
            &label,
            count(scale.kube_proxy_updates),
            &mut kube_proxy,
        )
        .with_context(|| format!("kube-proxy, {label}"))?;
    }
    rows(report, "ours", &ours);
    rows(report, "kube_proxy", &kube_proxy);
    goals(report);
    Ok(())
}

/// What is compared, by version.
fn versions() -> String {
    let ask = |mut command: Command| {
        let output = command.arg("--version").output().ok();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.unwrap_or_default().trim().to_owned()
    };
    let kube_proxy = program("kube-proxy").map(Command::new).map(ask);
    format!(
        "kube-proxy: {}; {}",
        kube_proxy.unwrap_or_default(),
        ask(Command::new("nft"))
    )
}

/// Writes all Services and their slices.
fn fill(api: &Api, services: usize) -> Result<()> {
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    let write = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= services {
                return Ok(());
            }
            if number > 0 && number.is_multiple_of(1_000) {
                progress(&format!(
                    "control plane: {number} of {services} Services written"
                ));
            }
            api.create(&service(number))?;
            api.create(&slice(number, &endpoints(number, None)))?;
        }
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(write)).collect();
        writers.into_iter().try_for_each(joined)
    })?;
    progress(&format!(
        "control plane: {services} Services of {ENDPOINTS} endpoints written in {:.0} s",
        begun.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_panic| anyhow!("a thread of the benchmark panicked"))?
}

fn service_name(number: usize) -> String {
    format!("svc-{number:05}")
}

fn cluster_ip(number: usize) -> Ipv4Addr {
    nth(Ipv4Addr::new(10, 96, 16, 0), number)
}

fn nth(base: Ipv4Addr, number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(base) + u32::try_from(number).unwrap_or(u32::MAX))
}

fn service(number: usize) -> Value {
    let name = service_name(number);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "app": name } },
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip(number), "ipFamilyPolicy": "SingleStack",
            "selector": { "app": name },
            "ports": [{ "name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT }],
        },
    })
}

/// As the EndpointSlice controller writes it.
fn slice(number: usize, endpoints: &Value) -> Value {
    let service = service_name(number);
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-1"), "namespace": NAMESPACE,
            "labels": {
                "app": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service,
            },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "protocol": "TCP", "port": TARGET_PORT }],
        "endpoints": endpoints,
    })
}

/// Endpoints of a Service; `other` stands in the first one's place.
fn endpoints(service: usize, other: Option<Ipv4Addr>) -> Value {
    (0..ENDPOINTS)
        .map(|endpoint| {
            let number = service * ENDPOINTS + endpoint;
            let first = other.filter(|_| endpoint == 0);
            let addr = first.unwrap_or_else(|| nth(Ipv4Addr::new(10, 128, 0, 0), number));
            let node = match number % NODES {
                0 => "node-a".to_owned(),
                other => format!("node-{other}"),
            };
            json!({
                "addresses": [addr],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": node,
                "targetRef": {
                    "kind": "Pod", "namespace": NAMESPACE,
                    "name": format!("{}-{endpoint}", service_name(service)),
                    "uid": format!("00000000-0000-4000-8000-{number:012}"),
                },
            })
        })
        .collect()
}

/// Writes one change after the other.
struct Changes<'a> {
    api: &'a Api,
    services: usize,
    /// Every change has a number, and its endpoint an address that no other has.
    next: AtomicUsize,
}

/// One endpoint of one Service gives its place to another.
struct Change {
    service: usize,
    endpoint: Ipv4Addr,
    slice: Value,
    patch: Value,
}

impl Changes<'_> {
    fn next(&self) -> Change {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Far apart, and never the same twice in a row.
        let service = number * 7_919 % self.services;
        let endpoint = nth(Ipv4Addr::new(10, 224, 0, 0), number);
        let endpoints = endpoints(service, Some(endpoint));
        Change {
            service,
            endpoint,
            slice: slice(service, &Value::Null),
            patch: json!({ "endpoints": endpoints }),
        }
    }
}

/// A dataplane's tables.
trait Tables {
    /// What changes when a Service's endpoints do.
    type Entry: PartialEq;
    /// A Service's entry, once it has one.
    fn entry(&mut self, service: usize) -> Result<Option<Self::Entry>>;
    /// Whether an entry leads to an endpoint.
    fn leads_to(&mut self, entry: &Self::Entry, endpoint: Ipv4Addr) -> Result<bool>;
    /// Services that have an entry.
    fn services(&mut self) -> Result<usize>;
}

/// What the agent pinned, as far as Services of IPv4 go.
struct Maps {
    services: TypedMap<ServiceKey<V4>, Frontend>,
    backends: MappedArray<Backend<V4>>,
    selection: MappedArray<SelectionBlock>,
}

impl Maps {
    fn open(pins: &Path) -> Result<Maps> {
        Ok(Maps {
            services: TypedMap::open(pins, names::SERVICES[0], Access::Read)?,
            backends: MappedArray::open(pins, names::BACKENDS[0], Access::Read)?,
            selection: MappedArray::open(pins, names::SELECTION, Access::Read)?,
        })
    }
}

impl Tables for Maps {
    type Entry = Frontend;

    fn entry(&mut self, service: usize) -> Result<Option<Frontend>> {
        let addr = cluster_ip(service).into();
        let key = ServiceKey::<V4>::new(addr, Be16::from_host(PORT), proto::TCP);
        Ok(self.services.lookup(&key)?)
    }

    fn leads_to(&mut self, entry: &Frontend, endpoint: Ipv4Addr) -> Result<bool> {
        let rows = entry.cluster.offset..entry.cluster.offset + entry.cluster.len;
        for row in rows {
            let (block, word) = (
                row / u32::try_from(SELECTION_BLOCK_ROWS)?,
                row as usize % SELECTION_BLOCK_ROWS,
            );
            let backend = self.selection.read_word(block, word)?;
            if self.backends.read(backend)?.addr == endpoint.into() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn services(&mut self) -> Result<usize> {
        let mut count = 0;
        self.services.each(|_, service| {
            let is_port = !service.has(ServiceFlags::ADDRESS_ONLY);
            count += usize::from(is_port && service.kind == FrontendKind::ClusterIp as u8);
        })?;
        Ok(count)
    }
}

/// A Service's chain and the rules in it, which change whole.
#[derive(PartialEq)]
struct Chain {
    name: String,
    rules: Vec<Vec<u8>>,
}

impl Tables for nft::Table {
    type Entry = Chain;

    fn entry(&mut self, service: usize) -> Result<Option<Chain>> {
        let Some(name) = self.service_chain(cluster_ip(service), PORT)? else {
            return Ok(None);
        };
        let rules = self.rules(&name)?;
        Ok(Some(Chain { name, rules }))
    }

    fn leads_to(&mut self, entry: &Chain, endpoint: Ipv4Addr) -> Result<bool> {
        Ok(self
            .targets(&entry.rules)?
            .contains(&(endpoint, TARGET_PORT)))
    }

    fn services(&mut self) -> Result<usize> {
        self.services()
    }
}

fn world(plane: &ControlPlane) -> Result<World> {
    let world = World::new(WorldOptions {
        pods_per_node: 1,
        ..WorldOptions::default()
    })?;
    control_plane::join(plane, &world)?;
    Ok(world)
}

fn measure_ours(
    plane: &ControlPlane,
    changes: &Changes<'_>,
    label: &str,
    updates: usize,
    measured: &mut Measured,
) -> Result<()> {
    let world = world(plane)?;
    quiet();
    let options = AgentOptions {
        is_quiet: std::env::var_os("LB_TEST_LOG").is_none(),
        ..AgentOptions::default()
    };
    let mut agent = Agent::prepare_api(world.a(), &plane.kubeconfig(Role::Agent), options)?;
    let begun = Instant::now();
    agent.run()?;
    let mut maps = wait_maps(&mut agent, changes.services)?;
    measured.maps.push(begun.elapsed().as_secs_f64());
    agent.wait_ready()?;
    let (complete, at) = (begun.elapsed(), clock());
    let found = Tables::services(&mut maps)?;
    ensure!(
        found == changes.services + BUILT_IN,
        "{found} Services are in the maps of a ready agent, not {}\n{}",
        changes.services + BUILT_IN,
        agent.log()
    );
    let pid = agent.pid().context("the agent does not run")?;
    let lists = last_time(&agent.log(), "list complete", 0)?;
    started(measured, "ours", label, pid, complete, at - lists)?;
    time_updates(&mut maps, changes, updates, PAUSE, pid, measured).with_context(|| agent.log())
}

/// The agent's maps, once all Services are in them; programs come after that.
fn wait_maps(agent: &mut Agent, services: usize) -> Result<Maps> {
    let pins = pin_dir(agent.bpffs());
    let end = Instant::now() + PATIENCE;
    let mut opened = None;
    loop {
        // Pinned before anything is written to them.
        opened = opened.or_else(|| Maps::open(&pins).ok());
        if let Some(maps) = &mut opened
            // Counted only then: that takes a while, on one of few processors.
            && maps.entry(services - 1)?.is_some()
            && maps.services()? == services + BUILT_IN
        {
            return opened.context("no maps");
        }
        if let Some(status) = agent.exited()? {
            bail!("the agent has ended: {status}\n{}", agent.log());
        }
        ensure!(
            Instant::now() < end,
            "the maps are not complete after {PATIENCE:?}\n{}",
            agent.log()
        );
        thread::sleep(Duration::from_millis(1));
    }
}

fn measure_kube_proxy(
    plane: &ControlPlane,
    changes: &Changes<'_>,
    label: &str,
    updates: usize,
    measured: &mut Measured,
) -> Result<()> {
    let world = world(plane)?;
    let host: &Place = &world.a().host;
    let mut table = nft::Table::open(&host.ns)?;
    quiet();
    let begun = Instant::now();
    let mut proxy = KubeProxy::start_with_period(plane, host, Mode::Nftables, PERIOD)?;
    // All of it comes in one transaction; counting is for whoever does it otherwise.
    let last = changes.services - 1;
    let (complete, at) = loop {
        if table.entry(last)?.is_some() {
            let (seen, at) = (begun.elapsed(), clock());
            let found = Tables::services(&mut table)?;
            if found == changes.services + BUILT_IN {
                break (seen, at);
            }
        }
        proxy.check()?;
        ensure!(
            begun.elapsed() < PATIENCE,
            "not complete after {PATIENCE:?}\n{}",
            proxy.log()
        );
        thread::sleep(Duration::from_millis(1));
    };
    // Its times of day are the second word of a line.
    let lists = last_time(&proxy.whole_log(), "Caches are synced", 1)?;
    let pid = proxy.pid();
    started(measured, "kube-proxy", label, pid, complete, at - lists)?;
    time_updates(&mut table, changes, updates, LONG_PAUSE, pid, measured)
        .with_context(|| proxy.log())
}

/// Notes a start, once what follows from it is done.
fn started(
    measured: &mut Measured,
    who: &str,
    label: &str,
    pid: u32,
    complete: Duration,
    after_lists: f64,
) -> Result<()> {
    let usage = settled(pid)?;
    progress(&format!(
        "{who}: {label}: complete after {:.2} s, {after_lists:.2} s after the lists; {:.2} s CPU, RssAnon {:.1} MiB, VmRSS {:.1} MiB",
        complete.as_secs_f64(),
        usage.cpu,
        usage.rss_anon,
        usage.rss,
    ));
    measured.complete.push(complete.as_secs_f64());
    measured.after_lists.push(after_lists);
    measured.cpu_start.push(usage.cpu);
    measured.usage = usage;
    Ok(())
}

/// Milliseconds from the begin of a write to the API server to the entry that leads to the new endpoint.
fn time_updates<T: Tables>(
    tables: &mut T,
    changes: &Changes<'_>,
    count: usize,
    pause: Duration,
    pid: u32,
    measured: &mut Measured,
) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    progress(&format!("  {count} changes of one endpoint"));
    let before = settled(pid)?;
    for _ in 0..count {
        thread::sleep(pause);
        let change = changes.next();
        let entry = tables
            .entry(change.service)?
            .with_context(|| format!("Service {} has no entry", change.service))?;
        let begun = Instant::now();
        // A thread of its own: the entry may be there before the answer is.
        let new = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                changes.api.patch(&change.slice, &change.patch)?;
                Ok(millis(begun.elapsed()))
            });
            let new = loop {
                match tables.entry(change.service)? {
                    Some(new) if new != entry => break new,
                    _ if begun.elapsed() > PATIENCE => {
                        bail!("a change is not there after {PATIENCE:?}")
                    }
                    _ => thread::sleep(LOOK),
                }
            };
            measured.updates.push(millis(begun.elapsed()));
            measured.writes.push(joined(writer)?);
            Ok(new)
        })?;
        ensure!(
            tables.leads_to(&new, change.endpoint)?,
            "the new entry of Service {} does not lead to {}",
            change.service,
            change.endpoint
        );
    }
    let after = settled(pid)?;
    let quantiles = |values: &[f64]| {
        let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(|q| quantile(values, q));
        format!("p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}, most {most:.1} ms")
    };
    progress(&format!(
        "  from write to entry {}; the write alone {}",
        quantiles(&measured.updates),
        quantiles(&measured.writes)
    ));
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let changes = count as f64;
    measured.cpu_updates = (after.cpu - before.cpu) / changes * 1e3;
    measured.usage = after;
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What a process weighs: MiB, and seconds of CPU with those of its children that have ended.
#[derive(Clone, Copy, Default)]
struct Usage {
    rss_anon: f64,
    rss: f64,
    peak: f64,
    cpu: f64,
}

impl Usage {
    fn read(pid: u32) -> Result<Usage> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |field: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kib = line.and_then(|line| line.split_whitespace().next());
            let kib: f64 = kib
                .with_context(|| format!("no {field} in /proc/{pid}/status"))?
                .parse()?;
            Ok(kib / MIB)
        };
        Ok(Usage {
            rss_anon: mib("RssAnon:")?,
            rss: mib("VmRSS:")?,
            peak: mib("VmHWM:")?,
            cpu: cpu(pid)?,
        })
    }
}

/// Seconds of CPU of a process and of its children that have ended.
fn cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold blanks; state is the first field behind it.
    let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat is cut")?;
    let ticks: f64 = fields
        .split(' ')
        .skip(11)
        .take(4)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    // SAFETY: a library call without pointers.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks / f64::from(i32::try_from(hertz)?))
}

/// What a process weighs, once it has hardly worked for a second.
fn settled(pid: u32) -> Result<Usage> {
    const STEP: Duration = Duration::from_secs(1);
    let end = Instant::now() + QUIET;
    let mut last = cpu(pid)?;
    loop {
        thread::sleep(STEP);
        let now = cpu(pid)?;
        if now - last <= 0.05 || Instant::now() > end {
            return Usage::read(pid);
        }
        last = now;
    }
}

/// Waits until most of the machine has been idle for a second: the kernel still takes the last node's tables apart, and
/// others work here, too.
fn quiet() {
    let read = || -> Option<(f64, f64)> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let fields: Vec<f64> = stat
            .lines()
            .next()?
            .split_whitespace()
            .skip(1)
            .filter_map(|field| field.parse().ok())
            .collect();
        Some((fields.get(3)? + fields.get(4)?, fields.iter().sum()))
    };
    let end = Instant::now() + QUIET;
    while let Some((idle, all)) = read() {
        thread::sleep(Duration::from_secs(1));
        let Some((idle_now, all_now)) = read() else {
            return;
        };
        let share = (idle_now - idle) / (all_now - all).max(1.0);
        if share > 0.85 {
            return;
        }
        if Instant::now() > end {
            progress(&format!(
                "  the machine does not come to rest: only {:.0} % of it is idle",
                share * 100.0
            ));
            return;
        }
    }
}

const DAY: f64 = 86_400.0;

/// Seconds since midnight, universal time.
fn clock() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64() % DAY
}

/// When the last line with a text was logged; `word`: where in the line its time stands.
fn last_time(log: &str, text: &str, word: usize) -> Result<f64> {
    let line = log.lines().rfind(|line| line.contains(text));
    line.and_then(|line| line.split_whitespace().nth(word))
        .and_then(time_of_day)
        .with_context(|| format!("no time of `{text}` in:\n{log}"))
}

/// `11:06:23.123456`, also behind a date and before a `Z`, as seconds since midnight.
fn time_of_day(text: &str) -> Option<f64> {
    let text = text.rsplit('T').next()?.trim_end_matches('Z');
    let mut parts = text.split(':').map(|part| part.parse::<f64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some(hours * 3_600.0 + minutes * 60.0 + seconds)
}

fn rows(report: &mut Report, who: &str, measured: &Measured) {
    let (starts, updates) = (measured.complete.len(), measured.updates.len());
    let usage = measured.usage;
    let starts_of_maps = measured.maps.len();
    if starts_of_maps > 0 {
        let id = format!("control_plane.{who}.maps_complete");
        note(report, id, median(&measured.maps), "s", starts_of_maps);
    }
    let figures = [
        ("complete", median(&measured.complete), "s", starts),
        (
            "complete_after_lists",
            median(&measured.after_lists),
            "s",
            starts,
        ),
        (
            "update.p50",
            quantile(&measured.updates, 0.5),
            "ms",
            updates,
        ),
        (
            "update.p99",
            quantile(&measured.updates, 0.99),
            "ms",
            updates,
        ),
        ("write.p50", quantile(&measured.writes, 0.5), "ms", updates),
        ("write.p99", quantile(&measured.writes, 0.99), "ms", updates),
        ("rss_anon", usage.rss_anon, "MiB", 1),
        ("rss", usage.rss, "MiB", 1),
        ("rss_peak", usage.peak, "MiB", 1),
        ("cpu.start", median(&measured.cpu_start), "s", starts),
        ("cpu.update", measured.cpu_updates, "ms", updates),
        ("cpu", usage.cpu, "s", 1),
    ];
    for (what, value, unit, runs) in figures {
        note(
            report,
            format!("control_plane.{who}.{what}"),
            value,
            unit,
            runs,
        );
    }
}

fn note(report: &mut Report, id: String, value: f64, unit: &'static str, runs: usize) {
    report.rows.push(Row {
        id,
        value,
        unit,
        floor: None,
        own: None,
        runs,
    });
}

/// The numbers that the agent is to reach beside kube-proxy.
fn goals(report: &mut Report) {
    let value = |what: &str| {
        report
            .row(&format!("control_plane.{what}"))
            .map(|row| row.value)
    };
    let ratio = |what: &str| {
        let under = value(&format!("kube_proxy.{what}")).filter(|under| *under > 0.0)?;
        Some(value(&format!("ours.{what}"))? / under)
    };
    let goals = [
        (
            "ours.complete_after_lists [s]",
            value("ours.complete_after_lists"),
            3.0,
        ),
        (
            "ours.maps_complete / kube_proxy.complete",
            value("ours.maps_complete")
                .zip(value("kube_proxy.complete"))
                .map(|(ours, kube_proxy)| ours / kube_proxy),
            0.1,
        ),
        ("ours.complete / kube_proxy", ratio("complete"), 0.1),
        ("ours.update.p99 / kube_proxy", ratio("update.p99"), 0.2),
        ("ours.rss_anon [MiB]", value("ours.rss_anon"), 100.0),
        ("ours.rss_anon / kube_proxy", ratio("rss_anon"), 1.0),
        ("ours.rss / kube_proxy", ratio("rss"), 1.0),
    ];
    for (what, value, bound) in goals {
        report.goal(&format!("control_plane.{what}"), value, bound);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_both_logs_are_read() {
        let ours = "2026-01-02T03:04:05.500000Z  INFO lb_agent: list complete kind=Service\n\
                    2026-01-02T03:04:06.250000Z  INFO lb_agent: list complete kind=EndpointSlice\n\
                    2026-01-02T03:04:09.000000Z  INFO lb_agent: ready\n";
        let expected = 3.0 * 3_600.0 + 4.0 * 60.0 + 6.25;
        assert_eq!(last_time(ours, "list complete", 0).unwrap(), expected);
        let theirs = "I0102 03:04:06.250000   77 shared_informer.go:1] \"Caches are synced\" controller=\"x\"\n";
        assert_eq!(last_time(theirs, "Caches are synced", 1).unwrap(), expected);
        assert!(last_time(theirs, "list complete", 0).is_err());
    }

    #[test]
    fn a_change_replaces_the_first_endpoint() {
        let other = Ipv4Addr::new(10, 224, 0, 1);
        let (before, after) = (endpoints(7, None), endpoints(7, Some(other)));
        assert_eq!(before[0]["addresses"][0], "10.128.0.70");
        assert_eq!(after[0]["addresses"][0], "10.224.0.1");
        assert_eq!(before[9], after[9]);
        assert_eq!(before.as_array().map(Vec::len), Some(ENDPOINTS));
    }

    #[test]
    fn goals_are_those_of_the_rows() {
        let mut report = Report::default();
        let measured = |scale: f64| Measured {
            maps: vec![scale],
            complete: vec![scale],
            after_lists: vec![scale],
            updates: vec![scale],
            usage: Usage {
                rss_anon: scale,
                rss: scale,
                ..Usage::default()
            },
            ..Measured::default()
        };
        rows(&mut report, "ours", &measured(2.0));
        rows(&mut report, "kube_proxy", &measured(40.0));
        goals(&mut report);
        let found: Vec<f64> = report.goals.iter().map(|(_, value, _)| *value).collect();
        assert_eq!(found, [2.0, 0.05, 0.05, 0.05, 2.0, 0.05, 0.05]);
    }
}
