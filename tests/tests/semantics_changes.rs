//! Services that change while clients dial them: what stays is served without a gap, what went is refused.

use std::{
    net::IpAddr,
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use lb_tests::{
    echo::{Dial, Failure, Proto, Stream},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{
        SOON, Scene, Seen, TARGET, Variant, cluster_ip, cluster_ips, expect, expect_all,
        external_ip, external_ips,
    },
    tests,
    topology::{Ip, Place, World},
    trials, wait,
};
use serde_json::{Value, json};

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2],
        [
            protocols_of_one_port_come_and_go,
            frontends_change_hands_without_a_gap,
            a_family_comes_and_goes_and_the_other_does_not_blink,
            an_address_of_two_services_stays_when_one_goes,
            open_connections_outlive_a_change_of_policy,
            local_clients_never_meet_other_nodes_while_endpoints_change
        ]
    ))
}

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const PATIENCE: Duration = Duration::from_secs(5);
/// A lost SYN is sent again after a second.
const AT_ONCE: Duration = Duration::from_millis(950);

fn web() -> ServiceManifest {
    ServiceManifest::new("web", &cluster_ips(1)).load_balancer(&external_ips(21))
}

/// A Service of these protocols with a backend on node-b.
fn with(service: ServiceManifest, protos: &[Proto], world: &World) -> Vec<Value> {
    let service = protos
        .iter()
        .fold(service, |service, proto| service.port(*proto, PORT));
    let mut objects = vec![service.node_port(NODE_PORT).build()];
    objects.extend(Slice::both(
        "web",
        PORT,
        TARGET,
        &[Endpoint::ready(world.b().pod(0))],
    ));
    objects
}

fn frontends(world: &World, ip: Ip) -> [(IpAddr, u16); 3] {
    [
        (cluster_ip(ip, 1), PORT),
        (external_ip(ip, 21), PORT),
        (world.a().host.addr(ip), NODE_PORT),
    ]
}

fn clients(world: &World) -> [&Place; 3] {
    [world.a().pod(0), &world.client, &world.a().host]
}

/// Semantics 18.6, 21.1: the protocols of one port number come and go alone, at every frontend.
fn protocols_of_one_port_come_and_go() -> Result<()> {
    use Proto::{Tcp, Udp};
    for variant in [Variant::plain(), Variant::native()] {
        let scene = Scene::start(&variant, |world| with(web(), &[Tcp], world))?;
        let world = &scene.world;
        for protos in [&[Tcp, Udp][..], &[Tcp], &[Udp], &[Udp, Tcp]] {
            scene.replace(&with(web(), protos, world))?;
            for ip in Ip::BOTH {
                for proto in Proto::BOTH {
                    for frontend in frontends(world, ip) {
                        for from in clients(world) {
                            let dial = Dial::new(from, proto, frontend.into());
                            let what = format!("{dial} of {protos:?}, {}", variant.describe());
                            scene.until(&what, dial, |outcome| match outcome {
                                Ok(answer) => protos.contains(&proto) && answer.server == "b2",
                                Err(_) => !protos.contains(&proto),
                            })?;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Clients of every kind dial all frontends of a family, over and over, until `changes` is through. No dial may fail.
/// What `changes` is given waits until everybody has dialled everything once more.
fn without_a_gap(
    scene: &Scene,
    families: &[Ip],
    changes: impl FnOnce(&dyn Fn() -> Result<()>) -> Result<()>,
) -> Result<()> {
    let world = &scene.world;
    let is_over = AtomicBool::new(false);
    let rounds = clients(world).map(|_| AtomicUsize::new(0));
    let ask = |from: &Place, rounds: &AtomicUsize| -> Result<()> {
        while !is_over.load(Ordering::Relaxed) {
            for ip in families {
                for frontend in frontends(world, *ip) {
                    for proto in Proto::BOTH {
                        let dial = Dial::new(from, proto, frontend.into()).timeout(AT_ONCE);
                        let answer = dial.ask();
                        ensure!(answer.is_ok(), "{dial}: {answer:?}");
                    }
                }
            }
            rounds.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let dialled = || -> Result<()> {
        let count = || {
            rounds
                .each_ref()
                .map(|rounds| rounds.load(Ordering::Relaxed))
        };
        let before = count();
        wait::until("everybody dials", SOON, || {
            let now = count();
            // One round may have begun before.
            ensure!(
                before
                    .iter()
                    .zip(now)
                    .all(|(before, now)| now >= before + 2)
            );
            Ok(())
        })
    };
    thread::scope(|threads| {
        let ask = &ask;
        let asking = clients(world).into_iter().zip(&rounds);
        let asking: Vec<_> = asking
            .map(|(from, rounds)| threads.spawn(move || ask(from, rounds)))
            .collect();
        let changed = changes(&dialled);
        is_over.store(true, Ordering::Relaxed);
        for thread in asking {
            thread
                .join()
                .map_err(|_gone| anyhow!("a client panicked"))??;
        }
        changed
    })
}

/// Waits for one more pass over the rules.
fn pass(scene: &Scene, before: f64) -> Result<()> {
    wait::until("a pass", SOON, || {
        ensure!(passes(scene)? > before);
        Ok(())
    })
}

fn passes(scene: &Scene) -> Result<f64> {
    let name = "kubeproxy_sync_proxy_rules_duration_seconds_count";
    scene.a.metric(name, &["ip_family=\"IPv4\""])
}

/// Semantics 21.3, 21.4: ports that are named anew, and a Service that takes another's place with all its addresses.
fn frontends_change_hands_without_a_gap() -> Result<()> {
    for variant in [Variant::plain(), Variant::native()] {
        let scene = Scene::start(&variant, |world| with(web(), &Proto::BOTH, world))?;
        let world = &scene.world;
        without_a_gap(&scene, &Ip::BOTH, |dialled| {
            for round in 0..12 {
                let mut objects = with(web(), &Proto::BOTH, world);
                // Another name of the ports, or of the Service; then back.
                for object in &mut objects {
                    let is_service = object["kind"] == "Service";
                    if round % 4 == 0 {
                        let ports = match is_service {
                            true => &mut object["spec"]["ports"],
                            false => &mut object["ports"],
                        };
                        for port in ports.as_array_mut().into_iter().flatten() {
                            port["name"] = json!(
                                format!("other-{}", port["protocol"])
                                    .to_lowercase()
                                    .replace('"', "")
                            );
                        }
                    } else if round % 4 == 2 && is_service {
                        object["metadata"]["name"] = json!("other");
                    } else if round % 4 == 2 {
                        object["metadata"]["labels"]["kubernetes.io/service-name"] = json!("other");
                    }
                }
                let before = passes(&scene)?;
                scene.replace(&objects)?;
                pass(&scene, before)?;
                dialled()?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Semantics 20.4: the other family comes and goes.
fn a_family_comes_and_goes_and_the_other_does_not_blink() -> Result<()> {
    for (stays, comes) in [(Ip::V4, Ip::V6), (Ip::V6, Ip::V4)] {
        let scene = Scene::start(&Variant::native(), |world| with(web(), &Proto::BOTH, world))?;
        let world = &scene.world;
        without_a_gap(&scene, &[stays], |dialled| {
            for round in 0..6 {
                let mut objects = with(web(), &Proto::BOTH, world);
                let is_single = round % 2 == 0;
                if is_single {
                    let service = ServiceManifest::new("web", &[cluster_ip(stays, 1)])
                        .load_balancer(&external_ips(21));
                    objects[0] = with(service, &Proto::BOTH, world).swap_remove(0);
                }
                scene.replace(&objects)?;
                // Node ports, too: a Service without a ClusterIP of a family has nothing in it.
                for frontend in frontends(world, comes) {
                    let dial = Dial::tcp(world.a().pod(0), frontend.into());
                    scene.until(&format!("round {round}: {dial}"), dial, |outcome| {
                        outcome.is_ok() != is_single
                    })?;
                }
                dialled()?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Semantics 21.6, 28.31: two Services with ports of one address; one goes, the other stays as it was.
fn an_address_of_two_services_stays_when_one_goes() -> Result<()> {
    let scene = Scene::start(&Variant::native(), |world| with(web(), &Proto::BOTH, world))?;
    let world = &scene.world;
    let other = ServiceManifest::new("other", &cluster_ips(2))
        .both(81)
        .node_port(30081)
        .load_balancer(&external_ips(21));
    without_a_gap(&scene, &Ip::BOTH, |dialled| {
        for _ in 0..3 {
            let mut objects = with(web(), &Proto::BOTH, world);
            for is_there in [true, false] {
                if is_there {
                    objects.push(other.build());
                    let backend = [Endpoint::ready(world.a().pod(1))];
                    objects.extend(Slice::both("other", 81, TARGET, &backend));
                } else {
                    objects.truncate(3);
                }
                scene.replace(&objects)?;
                let dial = Dial::tcp(&world.client, (external_ip(Ip::V4, 21), 81).into());
                scene.until("the other Service", dial, |outcome| match outcome {
                    Ok(answer) => is_there && answer.server == "a3",
                    Err(_) => !is_there,
                })?;
                dialled()?;
            }
        }
        Ok(())
    })
}

/// Semantics 28.7: a policy that changes is for new flows.
fn open_connections_outlive_a_change_of_policy() -> Result<()> {
    for variant in [Variant::plain(), Variant::native()] {
        let objects = |world: &World, is_local: bool| {
            let service = match is_local {
                true => web().external_local().internal_local(),
                false => web(),
            };
            let mut objects = with(service, &Proto::BOTH, world);
            let backends = [world.a().pod(1), world.b().pod(0)].map(Endpoint::ready);
            objects.truncate(1);
            objects.extend(Slice::both("web", PORT, TARGET, &backends));
            objects
        };
        let scene = Scene::start(&variant, |world| objects(world, false))?;
        let world = &scene.world;
        let what = variant.describe();
        let mut streams = Vec::new();
        for ip in Ip::BOTH {
            for from in clients(world) {
                for frontend in frontends(world, ip) {
                    // Enough that some lead to the other node.
                    for _ in 0..6 {
                        let mut stream = Stream::open(Dial::tcp(from, frontend.into()))?;
                        let server = stream.ask(PATIENCE)?.server;
                        streams.push((stream, server));
                    }
                }
            }
        }
        let far = streams.iter().filter(|(_, server)| server == "b2").count();
        ensure!(
            far > 10,
            "{far} of {} lead to the other node",
            streams.len()
        );
        for is_local in [true, false] {
            scene.replace(&objects(world, is_local))?;
            let to = (cluster_ip(Ip::V4, 1), PORT);
            if is_local {
                wait::until("new flows stay on the node", SOON, || {
                    for _ in 0..10 {
                        let server = Dial::tcp(world.a().pod(0), to.into()).ask()?.server;
                        ensure!(server == "a3", "{server}");
                    }
                    Ok(())
                })?;
                for ip in Ip::BOTH {
                    for frontend in frontends(world, ip) {
                        let near = [world.a().pod(1)];
                        expect(
                            &what,
                            &world.client,
                            Proto::Tcp,
                            frontend,
                            &near,
                            Seen::Client,
                        )?;
                    }
                }
            }
            for (stream, server) in &mut streams {
                let answer = stream.ask(PATIENCE)?;
                ensure!(
                    answer.server == *server,
                    "{server}, then {answer:?}, {what}"
                );
            }
        }
        let both = [world.a().pod(1), world.b().pod(0)];
        let [to, ..] = frontends(world, Ip::V4);
        scene.until(
            "all are chosen again",
            Dial::tcp(world.a().pod(0), to.into()),
            |outcome| outcome.as_ref().is_ok_and(|answer| answer.server == "b2"),
        )?;
        expect_all(&what, world.a().pod(0), Proto::Tcp, to, &both, Seen::Client)?;
    }
    Ok(())
}

/// Semantics 6.4, 28.6: endpoints of other nodes come and go, and clients from outside stay with this node's.
fn local_clients_never_meet_other_nodes_while_endpoints_change() -> Result<()> {
    let scene = Scene::start(&Variant::native(), |world| {
        with(web().external_local(), &Proto::BOTH, world)
    })?;
    let world = &scene.world;
    let near = Endpoint::ready(world.a().pod(1));
    let mut served = 0;
    for round in 0..20 {
        let far: Vec<Endpoint<'_>> = world.b().pods[..round % 4]
            .iter()
            .map(Endpoint::ready)
            .collect();
        let mut objects = with(web().external_local(), &Proto::BOTH, world);
        objects.truncate(1);
        objects.extend(Slice::both(
            "web",
            PORT,
            TARGET,
            &[&far[..], &[near]].concat(),
        ));
        let before = passes(&scene)?;
        scene.replace(&objects)?;
        let mut is_seen = false;
        while !is_seen {
            is_seen = passes(&scene)? > before;
            for ip in Ip::BOTH {
                let dial = Dial::tcp(&world.client, (external_ip(ip, 21), PORT).into());
                match dial.timeout(AT_ONCE).ask() {
                    Ok(answer) => {
                        ensure!(answer.server == "a3", "round {round}: {answer:?}");
                        served += 1;
                    }
                    // Before the first endpoint of this node.
                    Err(Failure::TimedOut) if round == 0 => {}
                    Err(failure) => anyhow::bail!("round {round}: {dial}: {failure:?}"),
                }
            }
        }
    }
    ensure!(served > 20, "{served} dials were served");
    Ok(())
}
