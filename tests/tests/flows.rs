//! Flows that are under way: what becomes of them when endpoints go, and when two of them clash.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    echo::{Datagrams, Dial, Failure, Stream},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{SOON, Scene, TARGET, cluster_ip, cluster_ips},
    scenes,
    topology::{Ip, Place, World},
    trials, wait,
};
use serde_json::Value;

fn main() -> ExitCode {
    trials::run(scenes!(
        // No endpoint at first: were there two, an answer of one would not tell that the other is gone.
        |_| objects(&[]),
        [plain, bridge, without_offloads, native, native_bridge],
        [
            tcp_connections_outlive_their_endpoint,
            udp_flows_move_when_their_endpoint_is_gone_but_stay_while_it_serves,
            two_services_to_one_backend_from_one_port_do_not_clash,
            a_reused_port_reaches_a_living_endpoint,
            direct_connections_are_left_alone_beside_translated_ones,
        ]
    ))
}

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const PATIENCE: Duration = Duration::from_secs(5);

fn objects(endpoints: &[Endpoint<'_>]) -> Vec<Value> {
    let mut objects = vec![
        ServiceManifest::new("s", &cluster_ips(1))
            .both(PORT)
            .node_port(NODE_PORT)
            .build(),
    ];
    objects.extend(Slice::both("s", PORT, TARGET, endpoints));
    objects
}

fn ready(pods: &[&Place]) -> Vec<Value> {
    objects(
        &pods
            .iter()
            .map(|pod| Endpoint::ready(pod))
            .collect::<Vec<_>>(),
    )
}

/// A dial of a pod to the ClusterIP, and of the outside client to the NodePort of node-a, by TCP.
fn dials(world: &World, ip: Ip) -> [Dial<'_>; 2] {
    [
        Dial::tcp(world.a().pod(0), (cluster_ip(ip, 1), PORT).into()),
        Dial::tcp(&world.client, (world.a().host.addr(ip), NODE_PORT).into()),
    ]
}

fn udp(dial: &Dial<'_>) -> Result<Datagrams> {
    Ok(Datagrams::open(Dial::udp(
        dial.origin(),
        dial.destination(),
    ))?)
}

/// The backend is ready, alone, and in force.
fn serve_by(scene: &Scene, backend: &Place) -> Result<()> {
    scene.replace(&ready(&[backend]))?;
    for ip in Ip::BOTH {
        for dial in dials(&scene.world, ip) {
            let served = |name: &str| name == backend.name;
            scene.until(
                &format!("{dial} is served by {}", backend.name),
                dial,
                |outcome| outcome.as_ref().is_ok_and(|answer| served(&answer.server)),
            )?;
        }
    }
    Ok(())
}

/// A backend on the node that is dialled, and one on the other.
fn near_and_far(world: &World) -> [&Place; 2] {
    [world.a().pod(1), world.b().pod(0)]
}

/// Semantics 10.5, 18.1, 18.2, 28.15, 28.16: the translation of TCP stays, whatever becomes of the endpoint, the last
/// one included.
fn tcp_connections_outlive_their_endpoint(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    for backend in near_and_far(world) {
        serve_by(scene, backend)?;
        let mut streams = Vec::new();
        for ip in Ip::BOTH {
            for dial in dials(world, ip) {
                let mut stream = Stream::open(dial).with_context(|| format!("{dial}, {what}"))?;
                stream
                    .ask(PATIENCE)
                    .with_context(|| format!("{dial}, {what}"))?;
                streams.push((stream, dial));
            }
        }
        scene.replace(&objects(&[]))?;
        for ip in Ip::BOTH {
            for dial in dials(world, ip) {
                scene.until("refused", dial, |outcome| *outcome == Err(Failure::Refused))?;
            }
        }
        for (stream, dial) in &mut streams {
            for _ in 0..3 {
                let answer = stream.ask(PATIENCE);
                let answer =
                    answer.with_context(|| format!("{dial} after its endpoint went, {what}"))?;
                ensure!(
                    answer.server == backend.name,
                    "{dial}: {}, {what}",
                    answer.server
                );
            }
        }
    }
    Ok(())
}

/// Semantics 17.2, 17.3: a UDP flow moves at its very next packet when its endpoint is gone, and stays
/// with one that is only leaving.
fn udp_flows_move_when_their_endpoint_is_gone_but_stay_while_it_serves(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let world = &scene.world;
    let [a3, b2] = near_and_far(world);
    for ip in Ip::BOTH {
        for dial in dials(world, ip) {
            serve_by(scene, a3)?;
            let mut socket = udp(&dial)?;
            assert_eq!(socket.ask(PATIENCE)?.server, "a3", "{dial}, {what}");
            // Terminating but serving: new flows go to b2, this one stays.
            scene.replace(&objects(&[
                Endpoint::terminating(a3, true),
                Endpoint::ready(b2),
            ]))?;
            scene.until("b2", dial, |outcome| {
                outcome.as_ref().is_ok_and(|answer| answer.server == "b2")
            })?;
            assert_eq!(socket.ask(PATIENCE)?.server, "a3", "{dial}, {what}");
            // Gone: the next datagram goes to b2, from the same socket.
            scene.replace(&ready(&[b2]))?;
            wait::until("the flow moves", SOON, || {
                let answer = socket.ask(PATIENCE)?;
                ensure!(
                    answer.server == "b2",
                    "{dial}: still {}, {what}",
                    answer.server
                );
                Ok(())
            })?;
            // Nobody left: refused.
            scene.replace(&objects(&[]))?;
            wait::until("the flow is refused", SOON, || {
                let outcome = socket.ask(PATIENCE);
                ensure!(
                    outcome == Err(Failure::Refused),
                    "{dial}: {outcome:?}, {what}"
                );
                Ok(())
            })?;
            // semantics 10.9, 17.2: and served again.
            scene.replace(&ready(&[a3]))?;
            wait::until("the flow is served again", SOON, || {
                let answer = socket.ask(PATIENCE)?;
                ensure!(answer.server == "a3", "{dial}: {}, {what}", answer.server);
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Two Services, one backend, one client port. One of the two flows gets another source
/// port, and both work side by side.
fn two_services_to_one_backend_from_one_port_do_not_clash(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    for backend in near_and_far(world) {
        let mut twins = Vec::new();
        for (name, number) in [("one", 11), ("two", 12)] {
            let service = ServiceManifest::new(name, &cluster_ips(number)).both(PORT);
            twins.push(service.node_port(30080 + u16::from(number)).build());
            twins.extend(Slice::both(name, PORT, TARGET, &[Endpoint::ready(backend)]));
        }
        scene.replace(&twins)?;
        for ip in Ip::BOTH {
            let pairs = [
                (
                    world.a().pod(0),
                    [11, 12].map(|number| (cluster_ip(ip, number), PORT).into()),
                ),
                (
                    &world.client,
                    [30091, 30092].map(|port| world.a().host.at(ip, port)),
                ),
            ];
            for (from, to) in pairs {
                let what = format!("{} to {} by {ip:?}, {what}", from.name, backend.name);
                for to in to {
                    scene.until(&what, Dial::tcp(from, to), |outcome| {
                        outcome
                            .as_ref()
                            .is_ok_and(|answer| answer.server == backend.name)
                    })?;
                }
                clash(from, to, &what)?;
            }
        }
    }
    Ok(())
}

fn clash(from: &Place, to: [std::net::SocketAddr; 2], what: &str) -> Result<()> {
    let open = |to| Stream::open(Dial::tcp(from, to).source_port(5000).reset());
    let mut one = open(to[0]).with_context(|| format!("the first, {what}"))?;
    let mut two = open(to[1]).with_context(|| format!("the second, {what}"))?;
    let [first, second] = [one.ask(PATIENCE)?, two.ask(PATIENCE)?];
    ensure!(
        (first.peer, second.peer) == (to[0], to[1]),
        "{} and {}, {what}",
        first.peer,
        second.peer
    );
    ensure!(
        first.seen_peer != second.seen_peer,
        "both are seen as {}, {what}",
        first.seen_peer
    );
    for _ in 0..3 {
        assert_eq!(one.ask(PATIENCE)?.seen_peer, first.seen_peer, "{what}");
        assert_eq!(two.ask(PATIENCE)?.seen_peer, second.seen_peer, "{what}");
    }

    let udp = to.map(|to| Datagrams::open(Dial::udp(from, to).source_port(5000)));
    let [Ok(mut one), Ok(mut two)] = udp else {
        bail!("no sockets, {what}")
    };
    for _ in 0..3 {
        let first = one
            .ask(PATIENCE)
            .with_context(|| format!("the first by UDP, {what}"))?;
        let second = two
            .ask(PATIENCE)
            .with_context(|| format!("the second by UDP, {what}"))?;
        ensure!(
            first.seen_peer != second.seen_peer,
            "both are seen as {}, {what}",
            first.seen_peer
        );
    }
    // One unconnected socket sees each answer come from where it asked.
    let mut both = Datagrams::open(Dial::udp(from, to[0]).source_port(5001).unconnected())?;
    for _ in 0..3 {
        for to in to {
            assert_eq!(both.ask_to(to, 0, PATIENCE)?.peer, to, "{what}");
        }
    }
    Ok(())
}

/// Semantics 18.3, 28.17: a client port used again by a new connection is not bound to a dead endpoint.
fn a_reused_port_reaches_a_living_endpoint(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let [a3, b2] = near_and_far(world);
    for ip in Ip::BOTH {
        for dial in dials(world, ip) {
            let dial = dial.source_port(6000).reset();
            serve_by(scene, a3)?;
            assert_eq!(dial.ask()?.server, "a3", "{dial}, {what}");
            scene.replace(&ready(&[b2]))?;
            scene.until(&format!("{dial}, {what}"), dial, |outcome| {
                outcome.as_ref().is_ok_and(|answer| answer.server == "b2")
            })?;
        }
    }
    Ok(())
}

/// A pod's own connections to a backend and its connections through a Service share nothing.
fn direct_connections_are_left_alone_beside_translated_ones(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let world = &scene.world;
    let backend = world.b().pod(0);
    serve_by(scene, backend)?;
    for ip in Ip::BOTH {
        for dial in dials(world, ip) {
            let from = dial.origin();
            let what = format!("{dial}, {what}");
            let direct = Dial::tcp(from, backend.at(ip, TARGET))
                .source_port(7000)
                .reset();
            let mut one = Stream::open(dial.source_port(7000).reset()).context(what.clone())?;
            one.ask(PATIENCE)?;
            // For a pod: the same tuple as that of the translated flow behind its translation.
            let mut two = Stream::open(direct).with_context(|| format!("directly, {what}"))?;
            for _ in 0..3 {
                assert_eq!(
                    one.ask(PATIENCE).context(what.clone())?.peer,
                    dial.destination(),
                    "{what}"
                );
                assert_eq!(
                    two.ask(PATIENCE).context(what.clone())?.peer,
                    backend.at(ip, TARGET),
                    "{what}"
                );
            }
        }
    }
    Ok(())
}
