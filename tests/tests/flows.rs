//! Flows that are under way: what becomes of them when endpoints go, and when two of them clash.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    echo::{Datagrams, Dial, Failure, Stream},
    manifest::{Endpoint, Service, Slice},
    require,
    scene::{SOON, Scene, TARGET, Variant, cluster_ip, cluster_ips},
    topology::{Ip, Place, World},
    wait,
};
use serde_json::Value;

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const PATIENCE: Duration = Duration::from_secs(5);

fn objects(endpoints: &[Endpoint<'_>]) -> Vec<Value> {
    let mut objects = vec![
        Service::new("s", &cluster_ips(1))
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

/// Semantics 18.1, 28.15, 28.16: the translation of TCP stays, whatever becomes of the endpoint, the last
/// one included.
#[test]
fn tcp_connections_outlive_their_endpoint() -> Result<()> {
    require!(Root, Bpf, Cgroup2);
    for variant in Variant::all() {
        for local in [true, false] {
            let scene = Scene::start(&variant, |world| {
                let backend = if local {
                    world.a().pod(1)
                } else {
                    world.b().pod(0)
                };
                ready(&[backend])
            })?;
            let world = &scene.world;
            let backend = if local { "a3" } else { "b2" };
            let what = variant.describe();
            let mut streams = Vec::new();
            for ip in Ip::BOTH {
                for dial in dials(world, ip) {
                    let mut stream =
                        Stream::open(dial).with_context(|| format!("{dial}, {what}"))?;
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
                    let answer = stream
                        .ask(PATIENCE)
                        .with_context(|| format!("{dial} after its endpoint went, {what}"))?;
                    assert_eq!(answer.server, backend);
                }
            }
        }
    }
    Ok(())
}

/// Semantics 17.2, 17.3: a UDP flow moves at its very next packet when its endpoint is gone, and stays
/// with one that is only leaving.
#[test]
fn udp_flows_move_when_their_endpoint_is_gone_but_stay_while_it_serves() -> Result<()> {
    require!(Root, Bpf, Cgroup2);
    for variant in Variant::all() {
        let scene = Scene::start(&variant, |world| ready(&[world.a().pod(1)]))?;
        let world = &scene.world;
        let [a3, b2] = [world.a().pod(1), world.b().pod(0)];
        let what = variant.describe();
        for ip in Ip::BOTH {
            for dial in dials(world, ip) {
                scene.replace(&ready(&[a3]))?;
                scene.until("a3", dial, |outcome| {
                    outcome.as_ref().is_ok_and(|answer| answer.server == "a3")
                })?;
                let mut socket = udp(&dial)?;
                assert_eq!(socket.ask(PATIENCE)?.server, "a3");
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
                // 10.9, 17.2: and served again.
                scene.replace(&ready(&[a3]))?;
                wait::until("the flow is served again", SOON, || {
                    let answer = socket.ask(PATIENCE)?;
                    ensure!(answer.server == "a3", "{dial}: {}, {what}", answer.server);
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// Design, section 4: two Services, one backend, one client port. One of the two flows gets another source
/// port, and both work side by side.
#[test]
fn two_services_to_one_backend_from_one_port_do_not_clash() -> Result<()> {
    require!(Root, Bpf, Cgroup2);
    for variant in Variant::all() {
        for local in [true, false] {
            let scene = Scene::start(&variant, |world| {
                let backend = if local {
                    world.a().pod(1)
                } else {
                    world.b().pod(0)
                };
                let mut objects = Vec::new();
                for (name, number) in [("one", 1), ("two", 2)] {
                    objects.push(
                        Service::new(name, &cluster_ips(number))
                            .both(PORT)
                            .node_port(30080 + u16::from(number))
                            .build(),
                    );
                    objects.extend(Slice::both(name, PORT, TARGET, &[Endpoint::ready(backend)]));
                }
                objects
            })?;
            let world = &scene.world;
            let what = format!("local: {local}, {}", variant.describe());
            for ip in Ip::BOTH {
                let pairs = [
                    (
                        world.a().pod(0),
                        [1, 2].map(|number| (cluster_ip(ip, number), PORT).into()),
                    ),
                    (
                        &world.client,
                        [30081, 30082].map(|port| world.a().host.at(ip, port)),
                    ),
                ];
                for (from, to) in pairs {
                    let tcp = to.map(|to| Dial::tcp(from, to).source_port(5000).reset());
                    let [mut one, mut two] = [Stream::open(tcp[0]), Stream::open(tcp[1])]
                        .map(|stream| stream.context(what.clone()));
                    let (one, two) = (one.as_mut(), two.as_mut());
                    let (Ok(one), Ok(two)) = (one, two) else {
                        anyhow::bail!("{from:?} to {to:?}: no connection, {what}")
                    };
                    let [first, second] = [one.ask(PATIENCE)?, two.ask(PATIENCE)?];
                    assert_eq!((first.peer, second.peer), (to[0], to[1]), "{what}");
                    assert_ne!(first.seen_peer, second.seen_peer, "{what}");
                    for _ in 0..3 {
                        assert_eq!(one.ask(PATIENCE)?.seen_peer, first.seen_peer, "{what}");
                        assert_eq!(two.ask(PATIENCE)?.seen_peer, second.seen_peer, "{what}");
                    }

                    let udp = to.map(|to| Datagrams::open(Dial::udp(from, to).source_port(5000)));
                    let [Ok(mut one), Ok(mut two)] = udp else {
                        anyhow::bail!("{from:?} to {to:?}: no socket, {what}")
                    };
                    for _ in 0..3 {
                        let [first, second] = [one.ask(PATIENCE)?, two.ask(PATIENCE)?];
                        assert_ne!(first.seen_peer, second.seen_peer, "{what}");
                    }
                    // One unconnected socket sees each answer come from where it asked.
                    let mut both =
                        Datagrams::open(Dial::udp(from, to[0]).source_port(5001).unconnected())?;
                    for _ in 0..3 {
                        for to in to {
                            assert_eq!(both.ask_to(to, 0, PATIENCE)?.peer, to, "{what}");
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Semantics 18.3, 28.17: a client port used again by a new connection is not bound to a dead endpoint.
#[test]
fn a_reused_port_reaches_a_living_endpoint() -> Result<()> {
    require!(Root, Bpf, Cgroup2);
    for variant in Variant::all() {
        let scene = Scene::start(&variant, |world| ready(&[world.a().pod(1)]))?;
        let world = &scene.world;
        for ip in Ip::BOTH {
            for dial in dials(world, ip) {
                let dial = dial.source_port(6000).reset();
                let what = format!("{dial}, {}", variant.describe());
                scene.replace(&ready(&[world.a().pod(1)]))?;
                scene.until("a3", dial, |outcome| {
                    outcome.as_ref().is_ok_and(|answer| answer.server == "a3")
                })?;
                scene.replace(&ready(&[world.b().pod(0)]))?;
                scene.until(&what, dial, |outcome| {
                    outcome.as_ref().is_ok_and(|answer| answer.server == "b2")
                })?;
            }
        }
    }
    Ok(())
}

/// A pod's own connections to a backend and its connections through a Service share nothing.
#[test]
fn direct_connections_are_left_alone_beside_translated_ones() -> Result<()> {
    require!(Root, Bpf, Cgroup2);
    for variant in [Variant::plain(), Variant::bridge(), Variant::native()] {
        let scene = Scene::start(&variant, |world| ready(&[world.b().pod(0)]))?;
        let world = &scene.world;
        let backend = world.b().pod(0);
        for ip in Ip::BOTH {
            for from in [world.a().pod(0), &world.client] {
                let what = format!("{} by {ip:?}, {}", from.name, variant.describe());
                let service = match from.name.as_str() {
                    "client" => world.a().host.at(ip, NODE_PORT),
                    _ => (cluster_ip(ip, 1), PORT).into(),
                };
                let translated = Dial::tcp(from, service).source_port(7000).reset();
                let direct = Dial::tcp(from, backend.at(ip, TARGET))
                    .source_port(7000)
                    .reset();
                let mut one = Stream::open(translated).context(what.clone())?;
                one.ask(PATIENCE)?;
                // The same tuple as that of the translated flow behind its translation.
                let mut two = Stream::open(direct).context(what.clone())?;
                let answer = two.ask(PATIENCE).context(what.clone())?;
                assert_eq!(answer.peer, backend.at(ip, TARGET), "{what}");
                for _ in 0..3 {
                    assert_eq!(
                        one.ask(PATIENCE).context(what.clone())?.peer,
                        service,
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
    }
    Ok(())
}
