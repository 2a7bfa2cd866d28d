//! Rolling updates under traffic: our agent beside the real kube-proxy, at one API server (semantics 17, 18.1).

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_tests::{
    control_plane::ControlPlane,
    differential::{Kind, Subject},
    echo::{Datagrams, Dial, Stream},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{SOON, TARGET, cluster_ip, cluster_ips},
    tests,
    topology::{Ip, Place, World, WorldOptions},
    trials, wait,
};
use serde_json::Value;

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2, Nft, ControlPlane],
        [rolling_updates_break_nothing]
    ))
}

const PORT: u16 = 80;
/// Services that are rolled, numbered from here.
const FIRST: u8 = 100;
const SERVICES: u8 = 100;
const ENDPOINTS: usize = 20;
/// Pods of each node: with these a Service's endpoints can all be replaced, and there is room for the clients.
const PODS: u8 = 14;
/// Updates of every Service, in each of which so many pods leave and as many come: in the end all are others.
const STEPS: usize = 7;
const REPLACED: usize = 3;
const PATIENCE: Duration = Duration::from_secs(3);

/// What traffic came to in one world.
#[derive(Default, Debug)]
struct Tally {
    dialled: AtomicUsize,
    failed: AtomicUsize,
    asked: AtomicUsize,
    unanswered: AtomicUsize,
    broken: AtomicUsize,
}

/// Pods that can be endpoints, beginning with a Service's first; the first pod of each node is a client.
fn pods(world: &World, service: u8) -> Vec<&Place> {
    let mut pods: Vec<&Place> = (1..usize::from(PODS))
        .flat_map(|index| [world.a().pod(index), world.b().pod(index)])
        .collect();
    let len = pods.len();
    pods.rotate_left(usize::from(service) % len);
    pods
}

/// The endpoints of a Service after so many steps: those that left with the last one are terminating and still serve.
fn endpoints(world: &World, service: u8, step: usize) -> Vec<Endpoint<'_>> {
    let pods = pods(world, service);
    let at = |index: usize| pods[index % pods.len()];
    let first = step * REPLACED;
    let leaving = first.saturating_sub(REPLACED)..first;
    let leaving = leaving.map(|index| Endpoint::terminating(at(index), true));
    let ready = (first..first + ENDPOINTS).map(|index| Endpoint::ready(at(index)));
    leaving.chain(ready).collect()
}

fn slices(world: &World, service: u8, step: usize) -> Vec<Value> {
    Slice::both(
        &name(service),
        PORT,
        TARGET,
        &endpoints(world, service, step),
    )
}

/// The slices in the end, when those that left are gone.
fn last_slices(world: &World, service: u8) -> Vec<Value> {
    let endpoints = endpoints(world, service, STEPS).split_off(REPLACED);
    Slice::both(&name(service), PORT, TARGET, &endpoints)
}

fn name(service: u8) -> String {
    format!("s{service}")
}

/// Stops the clients, also when the roll-out panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Dials every Service in turn, a new connection each.
fn dial(subject: &Subject, tally: &Tally, stop: &AtomicBool) {
    let client = subject.world.a().pod(0);
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let ip = Ip::BOTH[number / usize::from(SERVICES) % 2];
        let service = FIRST + u8::try_from(number % usize::from(SERVICES)).unwrap_or_default();
        let dial = Dial::tcp(client, (cluster_ip(ip, service), PORT).into()).timeout(PATIENCE);
        tally.dialled.fetch_add(1, Ordering::Relaxed);
        if let Err(failure) = dial.ask() {
            eprintln!("{}: {dial}: {failure:?}", subject.kind.name());
            tally.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Asks by one socket each for as long as the roll-out takes. In the end every UDP socket is served by an endpoint
/// that is left.
fn ask(
    subject: &Subject,
    mut streams: Vec<Stream>,
    mut datagrams: Vec<(u8, Datagrams)>,
    tally: &Tally,
    stop: &AtomicBool,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        streams.retain_mut(|stream| {
            let answer = stream.ask(PATIENCE);
            if let Err(failure) = &answer {
                eprintln!("{}: a connection broke: {failure:?}", subject.kind.name());
                tally.broken.fetch_add(1, Ordering::Relaxed);
            }
            answer.is_ok()
        });
        for (_, socket) in &mut datagrams {
            tally.asked.fetch_add(1, Ordering::Relaxed);
            if socket.ask(PATIENCE).is_err() {
                tally.unanswered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    for (service, socket) in &mut datagrams {
        let pods = pods(&subject.world, *service);
        let left: Vec<&str> = (STEPS * REPLACED..STEPS * REPLACED + ENDPOINTS)
            .map(|index| pods[index % pods.len()].name.as_str())
            .collect();
        wait::until(
            "a flow of UDP moves to an endpoint that is left",
            SOON,
            || {
                let server = socket.ask(PATIENCE)?.server;
                ensure!(
                    left.contains(&server.as_str()),
                    "{}: {} is served by {server}, left are {left:?}",
                    subject.kind.name(),
                    name(*service)
                );
                Ok(())
            },
        )?;
    }
    Ok(())
}

// semantics 17.2.a, 18.1, 22.5
fn rolling_updates_break_nothing() -> Result<()> {
    let plane = ControlPlane::start()?;
    let options = WorldOptions {
        pods_per_node: PODS,
        ..WorldOptions::default()
    };
    let mut subjects = Vec::new();
    for kind in [Kind::Ours, Kind::Nftables] {
        subjects.push(Subject::with(&plane, kind, options)?);
    }
    let services = FIRST..FIRST + SERVICES;
    let api = plane.api();
    for service in services.clone() {
        api.apply(
            &ServiceManifest::new(&name(service), &cluster_ips(service))
                .both(PORT)
                .build(),
        )?;
        api.apply_all(&slices(&subjects[0].world, service, 0))?;
    }
    for subject in &mut subjects {
        subject.start(&plane)?;
    }
    for subject in &mut subjects {
        subject.wait(cluster_ips(FIRST + SERVICES - 1), PORT)?;
    }

    let tallies = [Tally::default(), Tally::default()];
    let stop = AtomicBool::new(false);
    let mut clients = Vec::new();
    for subject in &subjects {
        let client = subject.world.b().pod(0);
        let (mut streams, mut datagrams) = (Vec::new(), Vec::new());
        for service in services.clone() {
            let ip = Ip::BOTH[usize::from(service % 2)];
            let to = (cluster_ip(ip, service), PORT);
            let stream = Stream::open(Dial::tcp(client, to.into()));
            streams.push(stream.with_context(|| format!("{}: {to:?}", subject.kind.name()))?);
            if service % 5 == 0 {
                let socket = Datagrams::open(Dial::udp(client, to.into()))?;
                datagrams.push((service, socket));
            }
        }
        clients.push((streams, datagrams));
    }
    let rolled = thread::scope(|scope| -> Result<Duration> {
        let stop = &stop;
        let mut askers = Vec::new();
        for ((subject, tally), (streams, datagrams)) in subjects.iter().zip(&tallies).zip(clients) {
            scope.spawn(move || dial(subject, tally, stop));
            askers.push(scope.spawn(move || ask(subject, streams, datagrams, tally, stop)));
        }
        let world = &subjects[0].world;
        let guard = Stop(stop);
        let start = Instant::now();
        let result = (1..=STEPS)
            .try_for_each(|step| {
                services
                    .clone()
                    .try_for_each(|service| api.apply_all(&slices(world, service, step)))
            })
            .and_then(|()| {
                services
                    .clone()
                    .try_for_each(|service| api.apply_all(&last_slices(world, service)))
            });
        let elapsed = start.elapsed();
        drop(guard);
        for asker in askers {
            asker
                .join()
                .map_err(|_gone| anyhow!("a client panicked"))??;
        }
        result.map(|()| elapsed)
    })
    .context("the roll-out")?;

    eprintln!(
        "{} updates of {ENDPOINTS} endpoints in {rolled:?}",
        2 * (STEPS + 1) * usize::from(SERVICES)
    );
    for (subject, tally) in subjects.iter().zip(&tallies) {
        eprintln!("{}: {tally:?}", subject.kind.name());
    }
    let [ours, theirs] = &tallies;
    let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    ensure!(of(&ours.dialled) > 100, "nobody dialled: {ours:?}");
    ensure!(
        of(&ours.failed) <= of(&theirs.failed),
        "new connections failed: {ours:?}, kube-proxy {theirs:?}"
    );
    ensure!(of(&ours.broken) == 0, "connections broke: {ours:?}");
    ensure!(
        of(&ours.unanswered) <= of(&theirs.unanswered),
        "UDP was not answered: {ours:?}, kube-proxy {theirs:?}"
    );
    Ok(())
}
