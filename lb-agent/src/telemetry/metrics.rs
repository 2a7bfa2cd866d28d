//! What the agent's loop does → kube-proxy's rows of `/metrics` and our own. Rows of kube-proxy that belong to no mode keep
//! their names (semantics 23).

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::histogram::Histogram;
use crate::{dataplane::gc::TableFound, exposition::Text, net::IpFamily};

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
pub(crate) enum Extent {
    Full,
    Partial,
}

#[derive(Debug)]
struct Inner {
    passes: [Passes; 2],
    endpoint_changes: Changes,
    service_changes: Changes,
    update: Histogram,
    entries: BTreeMap<&'static str, (u64, u64)>,
    flow_tables: [TableFound; 2],
    full: BTreeMap<&'static str, u64>,
    ports_short: usize,
}

/// What the agent's loop tells.
#[derive(Debug)]
pub(crate) struct Metrics(Mutex<Inner>);

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
            flow_tables: [TableFound::default(); 2],
            full: BTreeMap::new(),
            ports_short: 0,
        }))
    }
}

impl Metrics {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A family has work to do.
    pub(crate) fn queued(&self, family: IpFamily) {
        self.inner().passes[family.index()].last_queued = Some(SystemTime::now());
    }
    /// A pass over a family is through.
    pub(crate) fn passed(&self, family: IpFamily, extent: Extent, took: Duration) {
        let mut inner = self.inner();
        let passes = &mut inner.passes[family.index()];
        passes.duration.observe(took);
        passes.by_extent[extent as usize].observe(took);
        passes.last = Some(SystemTime::now());
    }
    /// Time from the change of an EndpointSlice (its annotation `last-change-trigger-time`) to the maps; manifests
    /// that people write have no such annotation.
    pub(crate) fn programmed(&self, family: IpFamily, took: Duration) {
        self.inner().passes[family.index()]
            .programming
            .observe(took);
    }
    /// Changes of slices and Services arrived.
    pub(crate) fn changes_arrived(&self, slices: usize, services: usize) {
        let mut inner = self.inner();
        inner.endpoint_changes.pending += slices;
        inner.endpoint_changes.total += slices;
        inner.service_changes.pending += services;
        inner.service_changes.total += services;
    }
    /// They are in the maps; from arrival it took so long.
    pub(crate) fn changes_done(&self, took: Duration) {
        let mut inner = self.inner();
        inner.endpoint_changes.pending = 0;
        inner.service_changes.pending = 0;
        inner.update.observe(took);
    }
    /// Service ports of a family whose policy Local finds no endpoint: internal, external (semantics 10.2).
    pub(crate) fn no_local_endpoints(&self, family: IpFamily, internal: usize, external: usize) {
        self.inner().passes[family.index()].no_local = [internal, external];
    }
    /// Entries of a map, and how many fit.
    pub(crate) fn map_entries(&self, map: &'static str, entries: u64, max: u64) {
        self.inner().entries.insert(map, (entries, max));
    }
    /// What the last round over the tables of flows has found, IPv4 and IPv6.
    pub(crate) fn flow_tables(&self, tables: [TableFound; 2]) {
        self.inner().flow_tables = tables;
    }
    /// One more service port did not fit into a map.
    pub(crate) fn map_full(&self, map: &'static str) {
        *self.inner().full.entry(map).or_default() += 1;
    }
    /// Service ports that have less of the maps than they ask for; `true`: some have and none had, or the other way
    /// round.
    pub(crate) fn ports_short(&self, count: usize) -> bool {
        let before = std::mem::replace(&mut self.inner().ports_short, count);
        (before == 0) != (count == 0)
    }

    /// Appends kube-proxy's rows and our own.
    pub(crate) fn render(&self, out: &mut Text) {
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
            "Entries of a map; of selection: rows; of flows_*: connections.",
        );
        for (map, (entries, _)) in &inner.entries {
            out.row("lb_map_entries", &[("map", map)], entries);
        }
        out.head(
            "lb_map_max_entries",
            "gauge",
            "Most entries of a map; of selection: rows; of flows_*: places for connections.",
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
        render_flow_tables(&inner.flow_tables, out);
        let name = "lb_service_ports_short";
        out.head(
            name,
            "gauge",
            "Service ports that have fewer rows or backends than they ask for.",
        );
        out.row(name, &[], inner.ports_short);
    }
}

/// A gauge or counter of each table of flows.
struct FlowRow {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&TableFound) -> u64,
}

const FLOW_ROWS: [FlowRow; 6] = [
    FlowRow {
        name: "lb_flow_table_load_percent",
        kind: "gauge",
        help: "Places of a table of flows that hold confirmed connections, which give way to nobody; alarm at 65.",
        value: |table| table.usage.load(),
    },
    FlowRow {
        name: "lb_flow_bucket_records_max",
        kind: "gauge",
        help: "Connections in the fullest bucket, of 14.",
        value: |table| table.usage.fullest.into(),
    },
    FlowRow {
        name: "lb_flow_spilled",
        kind: "gauge",
        help: "Connections in the second of their two buckets.",
        value: |table| table.usage.spilled,
    },
    FlowRow {
        name: "lb_flow_reserved",
        kind: "gauge",
        help: "Tuples of answers to the node's own datagrams, which no flow may take.",
        value: |table| table.index.reserved,
    },
    FlowRow {
        name: "lb_flows_removed_total",
        kind: "counter",
        help: "Flows that the agent has deleted: over, idle for too long, or of a UDP frontend that is another's now.",
        value: |table| table.removed,
    },
    FlowRow {
        name: "lb_flow_index_swept_total",
        kind: "counter",
        help: "Index entries swept: old reservations, and those whose record is gone.",
        value: |table| table.swept,
    },
];

fn render_flow_tables(tables: &[TableFound; 2], out: &mut Text) {
    let families = || IpFamily::BOTH.into_iter().zip(tables);
    let name = "lb_flows";
    out.head(
        name,
        "gauge",
        "Connections in the tables of flows by state.",
    );
    for (family, table) in families() {
        let usage = &table.usage;
        for (state, count) in [
            ("opening", usage.opening),
            ("confirmed", usage.confirmed),
            ("closed", usage.closed),
        ] {
            let labels = [("ip_family", family.name()), ("state", state)];
            out.row(name, &labels, count);
        }
    }
    for row in FLOW_ROWS {
        out.head(row.name, row.kind, row.help);
        for (family, table) in families() {
            let labels = [("ip_family", family.name())];
            out.row(row.name, &labels, (row.value)(table));
        }
    }
}

fn unix(at: Option<SystemTime>) -> f64 {
    at.and_then(|at| at.duration_since(UNIX_EPOCH).ok())
        .map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn tables_of_flows_have_rows_of_each_family() {
        let metrics = Metrics::default();
        let mut tables = [TableFound::default(); 2];
        tables[1].usage.places = 200;
        tables[1].usage.confirmed = 131;
        tables[1].swept = 7;
        metrics.flow_tables(tables);
        let mut out = Text::default();
        metrics.render(&mut out);
        let out = out.into_string();
        for row in [
            "lb_flows{ip_family=\"IPv6\",state=\"confirmed\"} 131\n",
            "lb_flows{ip_family=\"IPv4\",state=\"opening\"} 0\n",
            "lb_flow_table_load_percent{ip_family=\"IPv6\"} 65\n",
            "# TYPE lb_flow_index_swept_total counter\nlb_flow_index_swept_total{ip_family=\"IPv4\"} 0\n",
            "lb_flow_index_swept_total{ip_family=\"IPv6\"} 7\n",
        ] {
            assert!(out.contains(row), "{row} in {out}");
        }
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
}
