//! The numbers that the product is to reach, as ratios of rows of one run.

use super::{Report, Row};

/// Notes every goal whose rows were measured.
pub fn note(report: &mut Report) {
    let mut goals = Vec::new();
    established(report, &mut goals);
    families(report, &mut goals);
    not_ours(report, &mut goals);
    services(report, &mut goals);
    agent(report, &mut goals);
    for (what, value, bound) in goals {
        report.goal(&what, value, bound);
    }
}

type Goals = Vec<(String, Option<f64>, f64)>;

fn value(report: &Report, id: &str) -> Option<f64> {
    report.row(id).map(|row| row.value)
}

fn own(report: &Report, id: &str) -> Option<f64> {
    report.row(id).and_then(|row| row.own)
}

fn ratio(over: Option<f64>, under: Option<f64>) -> Option<f64> {
    Some(over? / under.filter(|under| *under > 0.0)?)
}

/// The one-flow rows of an established connection, without their family, and the bound of each.
const ESTABLISHED: [(&str, &str, f64); 5] = [
    ("xdp.node_port.established.{}.flows=1", "xdp.empty", 2.5),
    ("tc.cluster_ip.original.{}.flows=1", "tc.empty", 3.3),
    ("tc.cluster_ip.reply.{}.flows=1", "tc.empty", 3.3),
    ("tc.cluster_ip.original.same_port.{}", "tc.empty", 2.5),
    ("tc.cluster_ip.reply.same_port.{}", "tc.empty", 2.5),
];

fn established(report: &Report, goals: &mut Goals) {
    for (id, floor, bound) in ESTABLISHED {
        let id = id.replace("{}", "v4");
        let ratio = ratio(own(report, &id), value(report, floor));
        goals.push((format!("own {id} / {floor}"), ratio, bound));
    }
}

fn families(report: &Report, goals: &mut Goals) {
    for (id, _, _) in ESTABLISHED {
        let of = |family: &str| own(report, &id.replace("{}", family));
        let what = format!("own {} / v4", id.replace("{}", "v6"));
        goals.push((what, ratio(of("v6"), of("v4")), 1.2));
    }
}

fn not_ours(report: &Report, goals: &mut Goals) {
    for (id, hook, bound) in [
        ("xdp.not_ours", "xdp", 1.3),
        ("tc.egress.not_ours", "tc", 1.7),
    ] {
        for family in ["v4", "v6"] {
            let (id, floor) = (format!("{id}.{family}"), format!("{hook}.empty"));
            let ratio = ratio(own(report, &id), value(report, &floor));
            goals.push((format!("own {id} / {floor}"), ratio, bound));
        }
    }
}

/// Rows with many Services against the same rows with ten. A new flow is no steady figure: its time
/// hangs on the table that it fills.
fn services(report: &Report, goals: &mut Goals) {
    let many = |row: &&Row| row.id.contains(".services=") && !row.id.contains(".new.");
    for row in report.rows.iter().filter(many) {
        let few = row.id.split(".services=").next().unwrap_or_default();
        let ratio = ratio(Some(row.value), value(report, few));
        goals.push((format!("{} / the same with 10", row.id), ratio, 1.05));
    }
}

const MIB: f64 = 1_048_576.0;

fn agent(report: &Report, goals: &mut Goals) {
    let mut add = |row: Option<&Row>, unit: &str, scale: f64, bound: f64| {
        if let Some(row) = row {
            goals.push((
                format!("{} [{unit}]", row.id),
                Some(row.value / scale),
                bound,
            ));
        }
    };
    let starting = |prefix: &str| report.rows.iter().find(|row| row.id.starts_with(prefix));
    add(starting("agent.cold."), "ms", 1.0, 2_000.0);
    add(report.row("agent.update.p50"), "ms", 1.0, 2.0);
    add(report.row("agent.update.1x5000"), "ms", 1.0, 5.0);
    add(report.row("agent.update.1x5000.p99"), "ms", 1.0, 20.0);
    add(starting("agent.rss."), "MiB", 1.0, 100.0);
    add(report.row("maps.selection"), "MiB", MIB, 64.0);
    add(report.row("maps.selection.external"), "MiB", MIB, 64.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, value: f64, own: Option<f64>) -> Row {
        Row {
            id: id.into(),
            value,
            unit: "ns",
            floor: None,
            own,
            runs: 5,
        }
    }

    #[test]
    fn goals_come_from_the_rows_that_were_measured() {
        let mut report = Report {
            rows: vec![
                row("xdp.empty", 20.0, None),
                row("xdp.node_port.established.v4.flows=1", 60.0, Some(40.0)),
                row("xdp.node_port.established.v6.flows=1", 80.0, Some(60.0)),
                row(
                    "xdp.node_port.established.v4.flows=1.services=100000",
                    66.0,
                    Some(46.0),
                ),
                row("agent.cold.1000x10", 300.0, None),
            ],
            ..Report::default()
        };
        note(&mut report);
        let found: Vec<(f64, f64)> = report
            .goals
            .iter()
            .map(|(_, value, bound)| (*value, *bound))
            .collect();
        assert_eq!(
            found,
            [(2.0, 2.5), (1.5, 1.2), (1.1, 1.05), (300.0, 2000.0)]
        );
    }
}
