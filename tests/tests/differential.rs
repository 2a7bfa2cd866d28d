//! The same Services, the same dials: our agent beside the real kube-proxy (semantics 6 to 12). What a row compares is who
//! answers, the source it sees, or how the dial fails.
//!
//! `LB_WRITE_DIFFERENCES=1` writes what was found into docs/differences.md; without it the page has to be up to date.

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    control_plane::ControlPlane,
    differential::{
        Difference, Kind, LONG_SILENCE, Outcome, PORT, Point, SILENCE, Subject, cases, explanation,
        objects, page, play, points, replace_generated, shown,
    },
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{TARGET, cluster_ips},
    tests, trials,
};

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2, Nft, ControlPlane],
        [every_difference_to_kube_proxy_is_explained]
    ))
}

/// Number of the Service that is written last.
const LAST: u8 = 9;
/// Differences that are looked at a second time.
const SECOND_LOOKS: usize = 150;

/// Which subjects are held against each other.
const PAIRS: [(Kind, Kind); 3] = [
    (Kind::OursLikeKubeProxy, Kind::Nftables),
    (Kind::OursLikeKubeProxy, Kind::Iptables),
    (Kind::Ours, Kind::Nftables),
];

/// Semantics 5.16, 6.4, 6.6, 8.2, 8.8, 9.2.a, 9.2.c, 9.2.d, 10.1, 10.2, 10.3, 10.4, 12.6, 28.2, 28.3,
/// 28.4, 28.5.
fn every_difference_to_kube_proxy_is_explained() -> Result<()> {
    let start = Instant::now();
    let plane = ControlPlane::start()?;
    eprintln!("control plane: {:?}", start.elapsed());
    let mut subjects = Vec::new();
    for kind in Kind::ALL {
        subjects.push(Subject::new(&plane, kind)?);
    }
    let cases = cases();
    plane
        .api()
        .apply_all(&objects(&cases, &subjects[0].world))?;
    let endpoint = [Endpoint::ready(subjects[0].world.a().pod(2))];
    plane.api().apply(
        &ServiceManifest::new("last", &cluster_ips(LAST))
            .both(PORT)
            .build(),
    )?;
    plane
        .api()
        .apply_all(&Slice::both("last", PORT, TARGET, &endpoint))?;
    for subject in &mut subjects {
        subject.start(&plane)?;
    }
    for subject in &mut subjects {
        subject.wait(cluster_ips(LAST), PORT)?;
    }
    eprintln!("all at work: {:?}", start.elapsed());

    let points = points(&cases);
    let mut played = play(&subjects, &points, SILENCE);
    eprintln!("{} points played: {:?}", points.len(), start.elapsed());
    let of = |played: &[BTreeMap<Point, Outcome>], kind: Kind, point: &Point| -> Outcome {
        let at = Kind::ALL.iter().position(|known| *known == kind);
        at.and_then(|at| played[at].get(point))
            .cloned()
            .unwrap_or_default()
    };
    let differences = |played: &[BTreeMap<Point, Outcome>]| -> Vec<Difference> {
        let mut differences = Vec::new();
        for (ours, theirs) in PAIRS {
            for point in &points {
                let difference = Difference {
                    ours,
                    theirs,
                    point: *point,
                    our_outcome: of(played, ours, point),
                    their_outcome: of(played, theirs, point),
                };
                if difference.our_outcome != difference.their_outcome {
                    differences.push(difference);
                }
            }
        }
        differences
    };
    // On a busy machine a dial may be late: what is not explained gets a second look, with more time.
    let mut again: Vec<Point> = differences(&played)
        .iter()
        .filter(|difference| explanation(difference).is_none())
        .map(|difference| difference.point)
        .collect();
    again.sort_unstable();
    again.dedup();
    if again.len() <= SECOND_LOOKS {
        let second = play(&subjects, &again, LONG_SILENCE);
        for (played, second) in played.iter_mut().zip(second) {
            played.extend(second);
        }
    }
    eprintln!("{} looked at again: {:?}", again.len(), start.elapsed());
    let differences = differences(&played);
    let unexplained: Vec<String> = differences
        .iter()
        .filter(|difference| explanation(difference).is_none())
        .map(|it| {
            format!(
                "{} / {}: {}: ours {{{}}}, theirs {{{}}}",
                it.ours.name(),
                it.theirs.name(),
                it.point,
                shown(&it.our_outcome),
                shown(&it.their_outcome)
            )
        })
        .collect();
    if let Some(file) = std::env::var_os("LB_DIFFERENCES_LOG") {
        fs::write(file, unexplained.join("\n"))?;
    }
    let generated = page(points.len(), &differences);
    if std::env::var_os("LB_WRITE_DIFFERENCES").is_some() {
        written(&generated)?;
    }
    for subject in &subjects {
        eprintln!("{}:\n{}", subject.kind.name(), subject.drops());
    }
    ensure!(
        unexplained.is_empty(),
        "{} of {} differences have no explanation:\n{}",
        unexplained.len(),
        differences.len(),
        unexplained.join("\n")
    );
    written(&generated)
}

/// The page without the examples of its tables: which of two backends kube-proxy takes, and so what a few dials show, is
/// its dice's to say.
fn without_examples(page: &str) -> String {
    let row = |line: &str| match line.strip_suffix(" |").and_then(|it| it.rsplit_once(" | ")) {
        Some((row, _example)) => format!("{row}\n"),
        None => format!("{line}\n"),
    };
    page.lines().map(row).collect()
}

/// The page in the tree says the same, or is made to.
fn written(generated: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/differences.md");
    let present = fs::read_to_string(&path)?;
    let wanted = replace_generated(&present, generated)
        .context("docs/differences.md has lost the marks of its generated part")?;
    if std::env::var_os("LB_WRITE_DIFFERENCES").is_some() {
        fs::write(&path, wanted)?;
        return Ok(());
    }
    ensure!(
        without_examples(&present) == without_examples(&wanted),
        "docs/differences.md is not what the run shows; write it by LB_WRITE_DIFFERENCES=1:\n{generated}"
    );
    Ok(())
}
