//! The agent ends, by request or not, and starts again under traffic. Nothing may notice.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::Agent,
    echo::{Datagrams, Dial, Proto, Stream, Traffic},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{Scene, Seen, TARGET, Variant, check, cluster_ip, cluster_ips, expect},
    tests,
    topology::{Ip, World},
    trials,
};
use nix::sys::signal::Signal;
use serde_json::Value;

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2],
        [
            connections_survive_sigterm_and_a_new_start,
            connections_survive_sigkill_and_a_new_start,
            ids_and_affinity_are_the_same_after_a_restart,
            changes_made_while_the_agent_was_away_are_applied,
            cleanup_removes_everything
        ]
    ))
}

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const PATIENCE: Duration = Duration::from_secs(5);

fn objects(world: &World) -> Vec<Value> {
    let [a, b] = [world.a(), world.b()];
    let endpoints = [a.pod(1), a.pod(2), b.pod(0), b.pod(1)].map(Endpoint::ready);
    let mut objects = vec![
        ServiceManifest::new("s", &cluster_ips(1))
            .both(PORT)
            .node_port(NODE_PORT)
            .build(),
    ];
    objects.extend(Slice::both("s", PORT, TARGET, &endpoints));
    objects.push(
        ServiceManifest::new("sticky", &cluster_ips(2))
            .both(PORT)
            .affinity(10_800)
            .build(),
    );
    objects.extend(Slice::both("sticky", PORT, TARGET, &endpoints));
    objects
}

fn dials(world: &World) -> Vec<Dial<'_>> {
    let mut dials = Vec::new();
    for ip in Ip::BOTH {
        dials.push(Dial::tcp(
            world.a().pod(0),
            (cluster_ip(ip, 1), PORT).into(),
        ));
        dials.push(Dial::tcp(
            &world.client,
            (world.a().host.addr(ip), NODE_PORT).into(),
        ));
        dials.push(Dial::tcp(&world.a().host, (cluster_ip(ip, 1), PORT).into()));
    }
    dials
}

/// Ends the agent by the signal, lets traffic go on without it, starts it again, lets traffic go on.
fn connections_survive(variant: &Variant, signal: Signal) -> Result<()> {
    let mut scene = Scene::start(variant, objects)?;
    let what = format!("{signal}, {}", variant.describe());
    let mut streams = Vec::new();
    let mut sockets = Vec::new();
    for dial in dials(&scene.world) {
        for _ in 0..6 {
            streams.push(Stream::open(dial).with_context(|| format!("{dial}, {what}"))?);
        }
        let mut socket = Datagrams::open(Dial::udp(dial.origin(), dial.destination()))?;
        let first = socket
            .ask(PATIENCE)
            .with_context(|| format!("{dial} by UDP, {what}"))?;
        sockets.push((socket, first, dial.to_string()));
    }
    let traffic = Traffic::start(streams, PATIENCE);
    traffic.wait_more(200)?;
    for round in 0..2 {
        match signal {
            Signal::SIGTERM => scene.a.terminate()?,
            _ => scene.a.kill()?,
        }
        traffic.wait_more(200)?;
        for dial in dials(&scene.world) {
            let backends: Vec<_> = scene
                .world
                .nodes
                .iter()
                .flat_map(|node| &node.pods)
                .collect();
            check(
                &format!("new, without an agent, {what}"),
                dial,
                &backends,
                Seen::Anyone,
            )?;
        }
        for (socket, first, dial) in &mut sockets {
            let answer = socket
                .ask(PATIENCE)
                .with_context(|| format!("{dial} by UDP without an agent, {what}"))?;
            assert_eq!(
                (&answer.server, answer.seen_peer),
                (&first.server, first.seen_peer),
                "{dial} by UDP, {what}"
            );
        }
        scene
            .a
            .start_again()
            .with_context(|| format!("round {round}, {what}"))?;
        traffic.wait_more(200)?;
        for (socket, first, dial) in &mut sockets {
            let answer = socket
                .ask(PATIENCE)
                .with_context(|| format!("{dial} by UDP after the restart, {what}"))?;
            assert_eq!(
                (&answer.server, answer.seen_peer),
                (&first.server, first.seen_peer),
                "{dial} by UDP, {what}"
            );
        }
    }
    let report = traffic.stop();
    ensure!(
        report.failed.is_empty(),
        "{what}: connections lost: {:#?}",
        report.failed
    );
    ensure!(
        report.moved.is_empty(),
        "{what}: connections moved: {:#?}",
        report.moved
    );
    // A lost segment is sent again after 200 ms at the earliest; the connections take turns.
    eprintln!(
        "{what}: {} requests, longest gap {:?}",
        report.answered, report.longest_gap
    );
    Ok(())
}

/// Semantics 18.2, 25.3, 25.4.
fn connections_survive_sigterm_and_a_new_start() -> Result<()> {
    connections_survive(&Variant::plain(), Signal::SIGTERM)?;
    connections_survive(&Variant::native_bridge(), Signal::SIGTERM)
}

/// Semantics 18.2, 25.4.
fn connections_survive_sigkill_and_a_new_start() -> Result<()> {
    connections_survive(&Variant::bridge(), Signal::SIGKILL)?;
    connections_survive(&Variant::native(), Signal::SIGKILL)
}

/// Semantics 13.11: affinity is kept; so are backend ids, which flows name.
fn ids_and_affinity_are_the_same_after_a_restart() -> Result<()> {
    let mut scene = Scene::start(&Variant::plain(), objects)?;
    let sticky: Vec<(Ip, Proto)> = Ip::BOTH
        .into_iter()
        .flat_map(|ip| Proto::BOTH.map(|proto| (ip, proto)))
        .collect();
    let ask = |scene: &Scene| -> Result<Vec<String>> {
        let mut servers = Vec::new();
        for (ip, proto) in &sticky {
            servers.push(
                Dial::new(
                    scene.world.a().pod(0),
                    *proto,
                    (cluster_ip(*ip, 2), PORT).into(),
                )
                .ask()?
                .server,
            );
        }
        Ok(servers)
    };
    let before = ask(&scene)?;
    let ids = backend_ids(&scene.a)?;
    ensure!(!ids.is_empty(), "`backends` lists nothing");
    scene.a.kill()?;
    scene.a.start_again()?;
    assert_eq!(backend_ids(&scene.a)?, ids);
    assert_eq!(ask(&scene)?, before);
    Ok(())
}

/// What `lb-agent backends -o json` says, element by element, without what counts or ages.
fn backend_ids(agent: &Agent) -> Result<BTreeMap<String, Value>> {
    let backends = agent.json(&["backends"])?;
    let list = backends
        .as_array()
        .or_else(|| backends["backends"].as_array())
        .context("`backends` prints no list")?;
    let mut ids = BTreeMap::new();
    for backend in list {
        ids.insert(
            backend["id"].to_string() + &backend["family"].to_string(),
            backend.clone(),
        );
    }
    Ok(ids)
}

/// What changed while no agent ran is caught up with, and what went is gone (semantics 25.4, 28.37).
fn changes_made_while_the_agent_was_away_are_applied() -> Result<()> {
    let mut scene = Scene::start(&Variant::native(), objects)?;
    scene.a.kill()?;
    {
        let [a, b] = [scene.world.a(), scene.world.b()];
        let mut changed = vec![
            ServiceManifest::new("new", &cluster_ips(3))
                .both(PORT)
                .node_port(30083)
                .build(),
        ];
        changed.extend(Slice::both(
            "new",
            PORT,
            TARGET,
            &[Endpoint::ready(a.pod(2)), Endpoint::ready(b.pod(2))],
        ));
        scene.replace(&changed)?;
    }
    scene.a.start_again()?;
    let world = &scene.world;
    let [a, b] = [world.a(), world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let backends = [a.pod(2), b.pod(2)];
            expect(
                "new",
                a.pod(0),
                proto,
                (cluster_ip(ip, 3), PORT),
                &backends,
                Seen::Client,
            )?;
            expect(
                "new",
                &world.client,
                proto,
                (a.host.addr(ip), 30083),
                &backends,
                Seen::Anyone,
            )?;
            for from in [a.pod(0), &a.host, &world.client] {
                let outcome = Dial::new(from, proto, (cluster_ip(ip, 1), PORT).into())
                    .timeout(lb_tests::scene::SILENCE)
                    .ask();
                ensure!(
                    outcome.is_err(),
                    "{} still reaches a Service that is gone: {outcome:?}",
                    from.name
                );
            }
        }
    }
    Ok(())
}

/// `cleanup` takes everything away: programs, pins, and with them every translation (semantics 25.5).
fn cleanup_removes_everything() -> Result<()> {
    let mut scene = Scene::start(&Variant::native(), objects)?;
    let to = (cluster_ip(Ip::V4, 1), PORT);
    for from in [scene.world.a().pod(0), &scene.world.a().host] {
        Dial::tcp(from, to.into())
            .ask()
            .with_context(|| from.name.clone())?;
    }
    scene.a.terminate()?;
    let output = scene.a.command(&["cleanup"])?;
    ensure!(
        output.status.success(),
        "cleanup: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let left: Vec<_> = std::fs::read_dir(scene.a.bpffs())?
        .flatten()
        .map(|entry| entry.path())
        // The kernel's own files of every bpffs.
        .filter(|path| {
            path.extension()
                .is_none_or(|extension| extension != "debug")
        })
        .collect();
    ensure!(left.is_empty(), "pins left: {left:?}");
    for from in [scene.world.a().pod(0), &scene.world.a().host] {
        let outcome = Dial::tcp(from, to.into())
            .timeout(lb_tests::scene::SILENCE)
            .ask();
        ensure!(
            outcome.is_err(),
            "{} still reaches the Service: {outcome:?}",
            from.name
        );
    }
    let links = scene
        .world
        .a()
        .host
        .ns
        .output("ip", &["-d", "link", "show", "eth0"])?;
    ensure!(!links.contains("xdp"), "XDP is still attached: {links}");
    // And a new start serves again.
    scene.a.start_again()?;
    for from in [scene.world.a().pod(0), &scene.world.a().host] {
        Dial::tcp(from, to.into())
            .ask()
            .with_context(|| from.name.clone())?;
    }
    Ok(())
}
