//! `/metrics` in Prometheus' text format. The agent's loop tells what it does; counters of the dataplane are summed
//! over CPUs at each scrape. Rows of kube-proxy that belong to no mode keep their names (semantics 23).

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lb_common::{
    abi::{Counter, DropReason, PacketCount, ServiceStats},
    names,
};

use crate::{
    bpf::maps::{Access, MapResult, PerCpuMap},
    desired::state::PortKey,
    exposition::Text,
    net::IpFamily,
};

/// The dataplane's counters.
#[derive(Debug)]
pub struct Counters {
    counters: PerCpuMap<PacketCount>,
    stats: PerCpuMap<ServiceStats>,
}

impl Counters {
    /// Opens them below a pin directory.
    pub fn open(dir: &Path) -> MapResult<Counters> {
        Ok(Counters {
            counters: PerCpuMap::open(dir, names::maps::COUNTERS, Access::Read)?,
            stats: PerCpuMap::open(dir, names::maps::SERVICE_STATS, Access::Read)?,
        })
    }
    /// Every drop reason and every other counter with its sum.
    pub fn read(&self) -> MapResult<CounterValues> {
        CounterValues::read(&self.counters)
    }
    /// Traffic of a service port.
    pub fn service(&self, id: u32) -> MapResult<ServiceStats> {
        service_stats(&self.stats, id)
    }
}

/// Traffic of a service port, summed over CPUs.
pub fn service_stats(map: &PerCpuMap<ServiceStats>, id: u32) -> MapResult<ServiceStats> {
    Ok(map
        .lookup(id)?
        .iter()
        .fold(ServiceStats::default(), |sum, cpu| ServiceStats {
            flows: sum.flows.wrapping_add(cpu.flows),
            packets: sum.packets.wrapping_add(cpu.packets),
            bytes: sum.bytes.wrapping_add(cpu.bytes),
        }))
}

/// Counters at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CounterValues {
    /// Dropped packets by reason.
    pub drops: Vec<(&'static str, u64)>,
    /// Everything else that is counted.
    pub counters: Vec<(&'static str, u64)>,
}

impl CounterValues {
    /// Sums every counter over CPUs.
    pub fn read(map: &PerCpuMap<PacketCount>) -> MapResult<CounterValues> {
        let sum = |index: u32| -> MapResult<u64> {
            let cpus = map.lookup(index)?;
            Ok(cpus
                .iter()
                .fold(0, |sum, count| sum.wrapping_add(count.packets)))
        };
        let drops = DropReason::ALL
            .iter()
            .map(|reason| Ok((reason.label(), sum(*reason as u32)?)));
        let others = Counter::ALL
            .iter()
            .map(|counter| Ok((counter.label(), sum(*counter as u32)?)));
        Ok(CounterValues {
            drops: drops.collect::<MapResult<_>>()?,
            counters: others.collect::<MapResult<_>>()?,
        })
    }
    /// Appends `lb_drops_total{reason}` and `lb_events_total{event}`.
    pub fn render(&self, out: &mut Text) {
        out.head(
            "lb_drops_total",
            "counter",
            "Packets of Services that were dropped.",
        );
        for (reason, count) in &self.drops {
            out.row("lb_drops_total", &[("reason", reason)], count);
        }
        out.head("lb_events_total", "counter", "What the dataplane did.");
        for (event, count) in &self.counters {
            out.row("lb_events_total", &[("event", event)], count);
        }
    }
}

/// Upper bounds of kube-proxy's sync durations: 1 ms, doubled up to 16.384 s.
fn sync_bounds() -> Vec<f64> {
    std::iter::successors(Some(0.001), |bound| Some(bound * 2.0))
        .take(15)
        .collect()
}

/// Upper bounds of kube-proxy's network programming latency: 0.25 s to 5 minutes.
fn programming_bounds() -> Vec<f64> {
    let minute = (1..60).map(f64::from);
    let two = (60..120).step_by(5).map(f64::from);
    let rest = (120..=300).step_by(30).map(f64::from);
    [0.25, 0.5]
        .into_iter()
        .chain(minute)
        .chain(two)
        .chain(rest)
        .collect()
}

/// Upper bounds of our own updates: 0.1 ms to 2.5 s.
fn update_bounds() -> Vec<f64> {
    let steps = [
        1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    ];
    steps.to_vec()
}

/// Observations in buckets.
#[derive(Clone, Debug)]
struct Histogram {
    bounds: Vec<f64>,
    /// One more than bounds: the last has no bound.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: Vec<f64>) -> Histogram {
        Histogram {
            counts: vec![0; bounds.len() + 1],
            bounds,
            sum: 0.0,
        }
    }
    fn observe(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        self.counts[self.bounds.partition_point(|bound| *bound < seconds)] += 1;
        self.sum += seconds;
    }
    fn render(&self, out: &mut Text, name: &str, labels: &[(&str, &str)]) {
        let mut total = 0;
        let ends = self
            .bounds
            .iter()
            .map(f64::to_string)
            .chain(["+Inf".to_owned()]);
        for (end, count) in ends.zip(&self.counts) {
            total += count;
            let labels: Vec<_> = labels
                .iter()
                .copied()
                .chain([("le", end.as_str())])
                .collect();
            out.row(&format!("{name}_bucket"), &labels, total);
        }
        out.row(&format!("{name}_sum"), labels, self.sum);
        out.row(&format!("{name}_count"), labels, total);
    }
}

/// One family's passes.
#[derive(Debug)]
struct Passes {
    duration: Histogram,
    /// Of those that wrote everything, and of those that wrote what changed.
    by_extent: [Histogram; 2],
    programming: Histogram,
    last: Option<SystemTime>,
    last_queued: Option<SystemTime>,
    no_local: [usize; 2],
}

#[derive(Clone, Copy, Debug, Default)]
struct Changes {
    pending: usize,
    total: usize,
}

/// How much a pass looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// Complete lists.
    Full,
    /// What changed.
    Partial,
}

/// A service port without room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lacking {
    /// The full map, where that is the reason.
    pub map: Option<&'static str>,
    /// What the log says.
    pub message: String,
}

#[derive(Debug)]
struct Inner {
    passes: [Passes; 2],
    endpoint_changes: Changes,
    service_changes: Changes,
    update: Histogram,
    entries: BTreeMap<&'static str, (u64, u64)>,
    full: BTreeMap<&'static str, u64>,
}

/// What the agent's loop tells.
#[derive(Debug)]
pub struct Metrics(Mutex<Inner>);

impl Default for Metrics {
    fn default() -> Self {
        let passes = || Passes {
            duration: Histogram::new(sync_bounds()),
            by_extent: [(); 2].map(|()| Histogram::new(sync_bounds())),
            programming: Histogram::new(programming_bounds()),
            last: None,
            last_queued: None,
            no_local: [0; 2],
        };
        Metrics(Mutex::new(Inner {
            passes: [passes(), passes()],
            endpoint_changes: Changes::default(),
            service_changes: Changes::default(),
            update: Histogram::new(update_bounds()),
            entries: BTreeMap::new(),
            full: BTreeMap::new(),
        }))
    }
}

impl Metrics {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A family has work to do.
    pub fn queued(&self, family: IpFamily) {
        self.inner().passes[family.index()].last_queued = Some(SystemTime::now());
    }
    /// A pass over a family is through.
    pub fn passed(&self, family: IpFamily, extent: Extent, took: Duration) {
        let mut inner = self.inner();
        let passes = &mut inner.passes[family.index()];
        passes.duration.observe(took);
        passes.by_extent[extent as usize].observe(took);
        passes.last = Some(SystemTime::now());
    }
    /// Time from the change of an EndpointSlice (its annotation `last-change-trigger-time`) to the maps; manifests
    /// that people write have no such annotation.
    pub fn programmed(&self, family: IpFamily, took: Duration) {
        self.inner().passes[family.index()]
            .programming
            .observe(took);
    }
    /// Changes of slices and Services arrived.
    pub fn changes_arrived(&self, slices: usize, services: usize) {
        let mut inner = self.inner();
        inner.endpoint_changes.pending += slices;
        inner.endpoint_changes.total += slices;
        inner.service_changes.pending += services;
        inner.service_changes.total += services;
    }
    /// They are in the maps; from arrival it took so long.
    pub fn changes_done(&self, took: Duration) {
        let mut inner = self.inner();
        inner.endpoint_changes.pending = 0;
        inner.service_changes.pending = 0;
        inner.update.observe(took);
    }
    /// Service ports of a family whose policy Local finds no endpoint: internal, external (semantics 10.2).
    pub fn no_local_endpoints(&self, family: IpFamily, internal: usize, external: usize) {
        self.inner().passes[family.index()].no_local = [internal, external];
    }
    /// Entries of a map, and how many fit.
    pub fn map_entries(&self, map: &'static str, entries: usize, max: usize) {
        self.inner()
            .entries
            .insert(map, (entries as u64, max as u64));
    }
    /// One more service port did not fit into a map.
    pub fn map_full(&self, map: &'static str) {
        *self.inner().full.entry(map).or_default() += 1;
    }

    /// Appends kube-proxy's rows and our own.
    pub fn render(&self, out: &mut Text) {
        let inner = self.inner();
        let families = || IpFamily::BOTH.into_iter().zip(&inner.passes);
        let name = "kubeproxy_sync_proxy_rules_duration_seconds";
        out.head(name, "histogram", "Time of a pass.");
        for (family, passes) in families() {
            passes
                .duration
                .render(out, name, &[("ip_family", family.name())]);
        }
        for (index, extent) in ["full", "partial"].into_iter().enumerate() {
            let name = format!("kubeproxy_sync_{extent}_proxy_rules_duration_seconds");
            let help = "Time of a pass over complete lists (full) or over changes (partial).";
            out.head(&name, "histogram", help);
            for (family, passes) in families() {
                let labels = [("ip_family", family.name())];
                passes.by_extent[index].render(out, &name, &labels);
            }
        }
        let name = "kubeproxy_network_programming_duration_seconds";
        out.head(
            name,
            "histogram",
            "Time from the change of an EndpointSlice to the maps.",
        );
        for (family, passes) in families() {
            passes
                .programming
                .render(out, name, &[("ip_family", family.name())]);
        }
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        out.head(name, "gauge", "When the last pass succeeded.");
        for (family, passes) in families() {
            out.row(name, &[("ip_family", family.name())], unix(passes.last));
        }
        let name = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
        out.head(name, "gauge", "When a pass was last asked for.");
        for (family, passes) in families() {
            out.row(
                name,
                &[("ip_family", family.name())],
                unix(passes.last_queued),
            );
        }
        for (what, changes) in [
            ("endpoint", inner.endpoint_changes),
            ("service", inner.service_changes),
        ] {
            let name = format!("kubeproxy_sync_proxy_rules_{what}_changes");
            out.head(
                &format!("{name}_pending"),
                "gauge",
                "Changes since the last pass.",
            );
            out.row(&format!("{name}_pending"), &[], changes.pending);
            out.head(&format!("{name}_total"), "counter", "Changes.");
            out.row(&format!("{name}_total"), &[], changes.total);
        }
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        out.head(
            name,
            "gauge",
            "Service ports with policy Local that have endpoints on other nodes only.",
        );
        for (family, passes) in families() {
            for (policy, count) in ["internal", "external"].into_iter().zip(passes.no_local) {
                out.row(
                    name,
                    &[("traffic_policy", policy), ("ip_family", family.name())],
                    count,
                );
            }
        }
        out.head(
            "lb_update_seconds",
            "histogram",
            "Time from the arrival of changed objects to the maps.",
        );
        inner.update.render(out, "lb_update_seconds", &[]);
        out.head(
            "lb_map_entries",
            "gauge",
            "Entries of a map; of selection: rows.",
        );
        for (map, (entries, _)) in &inner.entries {
            out.row("lb_map_entries", &[("map", map)], entries);
        }
        out.head(
            "lb_map_max_entries",
            "gauge",
            "Most entries of a map; of selection: rows.",
        );
        for (map, (_, max)) in &inner.entries {
            out.row("lb_map_max_entries", &[("map", map)], max);
        }
        out.head(
            "lb_map_full_total",
            "counter",
            "Service ports that found no room in a map.",
        );
        for map in inner.entries.keys() {
            let count = inner.full.get(map).copied().unwrap_or(0);
            out.row("lb_map_full_total", &[("map", map)], count);
        }
    }
}

/// Appends traffic by service port; ports that never had any are left out.
pub fn render_services(out: &mut Text, services: &[(PortKey, ServiceStats)]) {
    type Count = fn(&ServiceStats) -> u64;
    let counts: [(&str, &str, Count); 3] = [
        (
            "lb_service_flows_total",
            "New flows of a service port.",
            |stats| stats.flows,
        ),
        (
            "lb_service_packets_total",
            "Packets of a service port, client to backend.",
            |stats| stats.packets,
        ),
        (
            "lb_service_bytes_total",
            "Bytes of a service port, client to backend.",
            |stats| stats.bytes,
        ),
    ];
    for (name, help, count) in counts {
        out.head(name, "counter", help);
        for (port, stats) in services {
            out.row(name, &port_labels(port), count(stats));
        }
    }
}

/// Appends service ports that are not, or not fully, served.
pub fn render_unserved(out: &mut Text, unserved: &BTreeMap<PortKey, Lacking>) {
    out.head(
        "lb_service_unserved",
        "gauge",
        "A service port that is not in the maps as wanted; map: the full one.",
    );
    for (port, lacking) in unserved {
        let map = [("map", lacking.map.unwrap_or_default())];
        let labels: Vec<_> = port_labels(port).into_iter().chain(map).collect();
        out.row("lb_service_unserved", &labels, 1);
    }
}

fn port_labels(port: &PortKey) -> [(&str, &str); 5] {
    [
        ("namespace", &port.name.namespace),
        ("service", &port.name.service),
        ("port", &port.name.port),
        ("protocol", port.name.protocol.name()),
        ("ip_family", port.family.name()),
    ]
}

fn unix(at: Option<SystemTime>) -> f64 {
    at.and_then(|at| at.duration_since(UNIX_EPOCH).ok())
        .map_or(0.0, |since| since.as_secs_f64())
}

/// The agent's own process: what dashboards of Kubernetes ask for.
pub fn render_process(out: &mut Text) {
    let Some(process) = Process::read() else {
        return;
    };
    let gauges = [
        (
            "resident_memory_bytes",
            "Resident memory",
            process.resident_bytes,
        ),
        (
            "virtual_memory_bytes",
            "Address space",
            process.virtual_bytes,
        ),
        (
            "start_time_seconds",
            "When the agent started",
            process.start_seconds,
        ),
        ("open_fds", "Open file descriptors", process.open_fds),
        ("max_fds", "Most open file descriptors", process.max_fds),
    ];
    let cpu = (
        "cpu_seconds_total",
        "CPU time of the agent",
        process.cpu_seconds,
    );
    let counter = [("counter", cpu)];
    let rows = gauges.map(|row| ("gauge", row));
    for (kind, (name, help, value)) in counter.into_iter().chain(rows) {
        let name = format!("process_{name}");
        out.head(&name, kind, &format!("{help}."));
        out.row(&name, &[], value);
    }
}

/// Which build this is. `kubernetes_build_info` would claim a version of Kubernetes.
pub fn render_build(out: &mut Text) {
    out.head("lb_build_info", "gauge", "Version of the agent.");
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    out.row("lb_build_info", &version, 1);
}

/// Gates that mean something here, as far as they are set (semantics 24.14).
pub fn render_gates(out: &mut Text, gates: &serde_json::Value) {
    let name = "kubernetes_feature_enabled";
    out.head(name, "gauge", "Feature gates: 1 on, 0 off.");
    let gate = "AllowServiceExternalIPs";
    let is_on = gates[gate].as_bool().unwrap_or(true);
    out.row(name, &[("name", gate), ("stage", "")], u8::from(is_on));
}

struct Process {
    cpu_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    start_seconds: f64,
    open_fds: f64,
    max_fds: f64,
}

impl Process {
    fn read() -> Option<Process> {
        // Clock ticks of /proc are a hundredth of a second on every machine that Linux supports.
        const TICKS: f64 = 100.0;
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let fields: Vec<f64> = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0.0))
            .collect();
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = boot
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let bytes = |field: &str| {
            let size = status.lines().find_map(|line| line.strip_prefix(field))?;
            let kib: f64 = size.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(kib * 1024.0)
        };
        let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
        let max_fds = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))?;
        let open_fds = std::fs::read_dir("/proc/self/fd").ok()?.count();
        // Fields count from the state, which is number 3 in proc(5): 14 utime, 15 stime, 22 starttime.
        Some(Process {
            cpu_seconds: (fields.get(11)? + fields.get(12)?) / TICKS,
            resident_bytes: bytes("VmRSS:")?,
            virtual_bytes: bytes("VmSize:")?,
            open_fds: u32::try_from(open_fds).ok()?.into(),
            max_fds: max_fds.split_whitespace().next()?.parse().ok()?,
            start_seconds: boot + fields.get(19)? / TICKS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::state::ServicePortName, net::Protocol};

    fn port() -> PortKey {
        PortKey {
            name: ServicePortName {
                namespace: "shop".into(),
                service: "web".into(),
                port: "http".into(),
                protocol: Protocol::Tcp,
            },
            family: IpFamily::V4,
        }
    }

    #[test]
    fn a_family_has_help_type_and_a_line_for_each_label() {
        let values = CounterValues {
            drops: vec![("malformed", 3), ("rewrite", 0)],
            counters: Vec::new(),
        };
        let mut out = Text::default();
        values.render(&mut out);
        let out = out.into_string();
        assert!(out.starts_with("# HELP lb_drops_total "), "{out}");
        assert!(
            out.contains("# TYPE lb_drops_total counter\nlb_drops_total{reason=\"malformed\"} 3\n"),
            "{out}"
        );
    }

    #[test]
    fn buckets_are_kube_proxys() {
        // semantics 23
        let sync = sync_bounds();
        assert_eq!((sync.len(), sync[14].to_string().as_str()), (15, "16.384"));
        let programming = programming_bounds();
        assert_eq!(programming.len(), 80);
        assert_eq!(&programming[..4], &[0.25, 0.5, 1.0, 2.0]);
        assert_eq!(&programming[60..63], &[59.0, 60.0, 65.0]);
        assert_eq!(
            &programming[72..],
            &[115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0]
        );
    }

    #[test]
    fn buckets_are_cumulative_and_hold_their_bound() {
        let mut histogram = Histogram::new(vec![0.5, 1.0]);
        for millis in [500, 700, 5000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut out = Text::default();
        histogram.render(&mut out, "x", &[("ip_family", "IPv4")]);
        assert_eq!(
            out.into_string(),
            "x_bucket{ip_family=\"IPv4\",le=\"0.5\"} 1\nx_bucket{ip_family=\"IPv4\",le=\"1\"} 2\n\
             x_bucket{ip_family=\"IPv4\",le=\"+Inf\"} 3\nx_sum{ip_family=\"IPv4\"} 6.2\nx_count{ip_family=\"IPv4\"} 3\n"
        );
    }

    #[test]
    fn rows_of_kube_proxy_that_belong_to_every_mode_are_there() {
        // semantics 23, 23.4
        let metrics = Metrics::default();
        metrics.changes_arrived(3, 2);
        metrics.no_local_endpoints(IpFamily::V6, 1, 4);
        metrics.passed(IpFamily::V4, Extent::Full, Duration::from_millis(3));
        let mut out = Text::default();
        metrics.render(&mut out);
        let out = out.into_string();
        for row in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.004\"} 1\n",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 0\n",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1\n",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 0\n",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"300\"} 0\n",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 0\n",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 3\n",
            "kubeproxy_sync_proxy_rules_service_changes_total 2\n",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv6\"} 4\n",
        ] {
            assert!(out.contains(row), "{row} in {out}");
        }
        metrics.changes_done(Duration::from_millis(3));
        let mut out = Text::default();
        metrics.render(&mut out);
        let out = out.into_string();
        assert!(
            out.contains("endpoint_changes_pending 0\n")
                && out.contains("endpoint_changes_total 3\n"),
            "{out}"
        );
    }

    /// Of kube-proxy's names: type and labels.
    const EXPOSED: [(&str, &str, &[&str]); 21] = [
        (
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "histogram",
            &["ip_family", "le"],
        ),
        (
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "histogram",
            &["ip_family", "le"],
        ),
        (
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "histogram",
            &["ip_family", "le"],
        ),
        (
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "gauge",
            &["ip_family"],
        ),
        (
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "gauge",
            &["ip_family"],
        ),
        (
            "kubeproxy_network_programming_duration_seconds",
            "histogram",
            &["ip_family", "le"],
        ),
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "gauge",
            &[],
        ),
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "counter",
            &[],
        ),
        (
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "gauge",
            &[],
        ),
        (
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "counter",
            &[],
        ),
        (
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "gauge",
            &["traffic_policy", "ip_family"],
        ),
        ("kubeproxy_proxy_healthz_total", "counter", &["code"]),
        ("kubeproxy_proxy_livez_total", "counter", &["code"]),
        (
            "rest_client_requests_total",
            "counter",
            &["code", "method", "host"],
        ),
        ("kubernetes_feature_enabled", "gauge", &["name", "stage"]),
        ("process_cpu_seconds_total", "counter", &[]),
        ("process_resident_memory_bytes", "gauge", &[]),
        ("process_virtual_memory_bytes", "gauge", &[]),
        ("process_start_time_seconds", "gauge", &[]),
        ("process_open_fds", "gauge", &[]),
        ("process_max_fds", "gauge", &[]),
    ];
    /// Those that would have nothing to say; docs/limits.md has the reason.
    const ABSENT: [&str; 8] = [
        "conntrack_reconciler_",
        "sync_proxy_rules_iptables_",
        "sync_proxy_rules_nftables_",
        "iptables_ct_state_invalid_dropped_packets_total",
        "iptables_localhost_nodeports_accepted_packets_total",
        "nftables_localhost_nodeport_",
        "kubernetes_build_info",
        "go_",
    ];

    // semantics 23, 23.2, 23.3, 23.4
    #[test]
    fn every_name_of_kube_proxy_is_exposed_or_a_known_limit() {
        let shared = crate::health::Shared::default();
        shared.api.connect("192.0.2.1:6443");
        shared.api.answered("GET", Some(200));
        let pages = crate::telemetry::pages::Pages {
            config: serde_json::Value::Null,
            flags: Vec::new(),
            started: SystemTime::now(),
        };
        shared.pages.set(pages).unwrap();
        let page = shared.page().unwrap();
        for (name, kind, labels) in EXPOSED {
            assert!(
                page.contains(&format!("# TYPE {name} {kind}\n")),
                "{name} in {page}"
            );
            let sample = if kind == "histogram" {
                format!("{name}_bucket")
            } else {
                name.into()
            };
            let is_sample = |line: &&str| {
                let rest = line.strip_prefix(sample.as_str());
                rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            };
            let samples: Vec<_> = page.lines().filter(is_sample).collect();
            assert!(!samples.is_empty(), "{name} in {page}");
            for sample in &samples {
                let inside = sample.split_once('{').map_or("", |(_, rest)| rest);
                let names = inside
                    .split("\",")
                    .filter_map(|label| label.split_once("=\""));
                let names: Vec<_> = names.map(|(name, _)| name).collect();
                assert_eq!(names, labels, "{sample}");
            }
            if labels.contains(&"ip_family") {
                for family in ["IPv4", "IPv6"] {
                    let family = format!("ip_family=\"{family}\"");
                    assert!(
                        samples.iter().any(|sample| sample.contains(&family)),
                        "{name}"
                    );
                }
            }
        }
        let limits = include_str!("../../../docs/limits.md");
        for name in ABSENT {
            let row = |line: &str| {
                line.starts_with(name) || line.starts_with(&format!("kubeproxy_{name}"))
            };
            assert!(!page.lines().any(row), "{name}");
            assert!(
                limits.contains(&format!("`{name}")),
                "{name} in docs/limits.md"
            );
        }
    }

    #[test]
    fn a_full_map_and_the_object_that_does_not_fit_are_named() {
        let metrics = Metrics::default();
        metrics.map_entries("services_v4", 4, 4);
        metrics.map_full("services_v4");
        let lacking = Lacking {
            map: Some("services_v4"),
            message: String::new(),
        };
        let mut out = Text::default();
        metrics.render(&mut out);
        render_unserved(&mut out, &BTreeMap::from([(port(), lacking)]));
        let out = out.into_string();
        for row in [
            "lb_map_entries{map=\"services_v4\"} 4\n",
            "lb_map_full_total{map=\"services_v4\"} 1\n",
            "lb_service_unserved{namespace=\"shop\",service=\"web\",port=\"http\",protocol=\"TCP\",ip_family=\"IPv4\",map=\"services_v4\"} 1\n",
        ] {
            assert!(out.contains(row), "{row} in {out}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let mut out = Text::default();
        out.row("x", &[("a", "say \"no\"\\")], 1);
        assert_eq!(out.into_string(), "x{a=\"say \\\"no\\\"\\\\\"} 1\n");
    }

    #[test]
    fn the_process_tells_of_itself() {
        let mut out = Text::default();
        render_process(&mut out);
        assert!(out.into_string().contains("\nprocess_start_time_seconds 1"));
    }
}
