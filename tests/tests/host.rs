//! Processes of a node dial Services through the socket hooks.

use std::{net::IpAddr, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use lb_tests::{
    echo::{Datagrams, Dial, Failure, Proto, Stream},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{
        SILENCE, Scene, Seen, TARGET, Variant, cluster_ip, cluster_ips, expect, expect_all,
        expect_failure, external_ip, external_ips,
    },
    tests,
    topology::{Ip, World},
    trials,
};
use serde_json::Value;

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2],
        [
            a_host_process_reaches_every_frontend,
            a_node_port_on_loopback_answers_only_when_named,
            sockets_of_other_cgroups_and_namespaces_are_left_alone,
            a_host_process_is_refused_where_no_endpoint_exists,
            an_unconnected_socket_keeps_its_backend_until_it_is_gone,
            a_host_connection_outlives_its_endpoint_in_the_list
        ]
    ))
}

const PORT: u16 = 80;
const LOCAL: u8 = 1;
const REMOTE: u8 = 2;
const MIXED: u8 = 3;

fn node_port(number: u8) -> u16 {
    30080 + u16::from(number)
}

fn objects(world: &World) -> Vec<Value> {
    let [a, b] = [world.a(), world.b()];
    let mixed = [a.pod(1), a.pod(2), b.pod(0), b.pod(1)].map(Endpoint::ready);
    let cases: [(&str, u8, &[Endpoint<'_>]); 3] = [
        ("local", LOCAL, &[Endpoint::ready(a.pod(1))]),
        ("remote", REMOTE, &[Endpoint::ready(b.pod(0))]),
        ("mixed", MIXED, &mixed),
    ];
    let mut objects = Vec::new();
    for (name, number, endpoints) in cases {
        let service = ServiceManifest::new(name, &cluster_ips(number))
            .both(PORT)
            .node_port(node_port(number));
        objects.push(
            service
                .load_balancer(&external_ips(20 + number))
                .external_ips(&external_ips(10 + number))
                .build(),
        );
        objects.extend(Slice::both(name, PORT, TARGET, endpoints));
    }
    objects
}

fn frontends(world: &World, number: u8, ip: Ip) -> [(IpAddr, u16); 4] {
    [
        (cluster_ip(ip, number), PORT),
        (external_ip(ip, 10 + number), PORT),
        (external_ip(ip, 20 + number), PORT),
        (world.a().host.addr(ip), node_port(number)),
    ]
}

/// Semantics 8.1. `getpeername` and the source of datagrams are what was dialled, by connected and unconnected sockets.
fn a_host_process_reaches_every_frontend() -> Result<()> {
    for variant in [Variant::plain(), Variant::bridge(), Variant::native()] {
        let scene = Scene::start(&variant, objects)?;
        let world = &scene.world;
        let [a, b] = [world.a(), world.b()];
        let what = variant.describe();
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                for frontend in frontends(world, LOCAL, ip) {
                    expect(&what, &a.host, proto, frontend, &[a.pod(1)], Seen::Anyone)?;
                }
                for frontend in frontends(world, REMOTE, ip) {
                    expect(&what, &a.host, proto, frontend, &[b.pod(0)], Seen::Client)?;
                }
                let mixed = [a.pod(1), a.pod(2), b.pod(0), b.pod(1)];
                expect_all(
                    &what,
                    &a.host,
                    proto,
                    (cluster_ip(ip, MIXED), PORT),
                    &mixed,
                    Seen::Anyone,
                )?;
            }
        }
    }
    Ok(())
}

/// Semantics 14.8a: only where `--nodeport-addresses` names loopback. Semantics 28.36: the kernel's guard of loopback stays.
fn a_node_port_on_loopback_answers_only_when_named() -> Result<()> {
    let loopback = |ip: Ip| -> IpAddr {
        match ip {
            Ip::V4 => [127, 0, 0, 1].into(),
            Ip::V6 => [0, 0, 0, 0, 0, 0, 0, 1].into(),
        }
    };
    let named = Variant::plain().flag("--nodeport-addresses primary,localhost");
    for (variant, answers) in [(named, true), (Variant::plain(), false)] {
        let scene = Scene::start(&variant, objects)?;
        let [a, b] = [scene.world.a(), scene.world.b()];
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                let what = variant.describe();
                let to = |number| (loopback(ip), node_port(number));
                if answers {
                    expect(&what, &a.host, proto, to(LOCAL), &[a.pod(1)], Seen::Anyone)?;
                    expect(&what, &a.host, proto, to(REMOTE), &[b.pod(0)], Seen::Anyone)?;
                } else {
                    expect_failure(&what, &a.host, proto, to(LOCAL), &Failure::Refused)?;
                }
            }
        }
        let guard = "/proc/sys/net/ipv4/conf/all/route_localnet";
        let open = a.host.ns.output("cat", &[guard])?;
        ensure!(open.trim() == "0", "{guard}: {open}");
    }
    Ok(())
}

/// The hooks belong to one cgroup and act on sockets of the agent's own network namespace.
fn sockets_of_other_cgroups_and_namespaces_are_left_alone() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), objects)?;
    let world = &scene.world;
    let to = (cluster_ip(Ip::V4, REMOTE), PORT);
    expect(
        "in the cgroup",
        &world.a().host,
        Proto::Tcp,
        to,
        &[world.b().pod(0)],
        Seen::Client,
    )?;
    // The client's processes are in node-a's cgroup, but not in its namespace. The client routes the
    // address to node-a, where it is translated as a packet: seen from there.
    world
        .client
        .enter_cgroup(Some(std::sync::Arc::clone(scene.a.cgroup())));
    expect(
        "another namespace",
        &world.client,
        Proto::Tcp,
        to,
        &[world.b().pod(0)],
        Seen::As(&world.a().host),
    )?;
    world.client.enter_cgroup(None);
    let host = &world.a().host;
    host.enter_cgroup(None);
    let outcome = Dial::tcp(host, to.into()).timeout(SILENCE).ask();
    ensure!(
        outcome != Err(Failure::Refused),
        "outside the cgroup: {outcome:?}"
    );
    Ok(())
}

/// Semantics 10.1: the call itself fails.
fn a_host_process_is_refused_where_no_endpoint_exists() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), |_| {
        let service = ServiceManifest::new("empty", &cluster_ips(4))
            .both(PORT)
            .node_port(node_port(4));
        vec![
            service
                .load_balancer(&external_ips(24))
                .external_ips(&external_ips(14))
                .build(),
        ]
    })?;
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for frontend in frontends(&scene.world, 4, ip) {
                expect_failure(
                    "no endpoint",
                    &scene.world.a().host,
                    proto,
                    frontend,
                    &Failure::Refused,
                )?;
            }
        }
    }
    Ok(())
}

/// An unconnected socket keeps its backend a dialled address, and moves on when that is gone.
fn an_unconnected_socket_keeps_its_backend_until_it_is_gone() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), objects)?;
    let world = &scene.world;
    let [a, b] = [world.a(), world.b()];
    let patience = Duration::from_secs(5);
    for ip in Ip::BOTH {
        let mut socket = Datagrams::open(
            Dial::udp(&a.host, (cluster_ip(ip, MIXED), PORT).into()).unconnected(),
        )?;
        let first = socket.ask(patience)?;
        for _ in 0..20 {
            assert_eq!(socket.ask(patience)?.server, first.server);
        }
        // One socket, several Services: each answers from its own address.
        let other = socket.ask_to((cluster_ip(ip, REMOTE), PORT).into(), 0, patience)?;
        assert_eq!(
            (other.server.as_str(), other.peer),
            ("b2", (cluster_ip(ip, REMOTE), PORT).into())
        );
        assert_eq!(socket.ask(patience)?.server, first.server);

        let left: Vec<Endpoint<'_>> = [a.pod(1), a.pod(2), b.pod(0), b.pod(1)]
            .into_iter()
            .filter(|pod| pod.name != first.server)
            .map(Endpoint::ready)
            .collect();
        let mut changed = objects(world);
        changed.truncate(changed.len() - 2);
        changed.extend(Slice::both("mixed", PORT, TARGET, &left));
        scene.replace(&changed)?;
        lb_tests::wait::until("another backend", lb_tests::scene::SOON, || {
            let answer = socket.ask(patience)?;
            ensure!(answer.server != first.server, "still {}", answer.server);
            ensure!(
                answer.peer == (cluster_ip(ip, MIXED), PORT).into(),
                "answered from {}",
                answer.peer
            );
            Ok(())
        })?;
        scene.replace(&objects(world))?;
    }
    Ok(())
}

/// A connection of a host process outlives the endpoint (semantics 18.1).
fn a_host_connection_outlives_its_endpoint_in_the_list() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), objects)?;
    let host = &scene.world.a().host;
    let patience = Duration::from_secs(5);
    for ip in Ip::BOTH {
        let to = (cluster_ip(ip, REMOTE), PORT);
        let mut stream = Stream::open(Dial::tcp(host, to.into()))?;
        stream.ask(patience)?;
        let mut gone = objects(&scene.world);
        gone.retain(|object| {
            object["metadata"]["labels"]["kubernetes.io/service-name"] != "remote"
        });
        scene.replace(&gone)?;
        scene.until(
            "new connections are refused",
            Dial::tcp(host, to.into()),
            |outcome| *outcome == Err(Failure::Refused),
        )?;
        assert_eq!(stream.ask(patience)?.server, "b2");
        scene.replace(&objects(&scene.world))?;
        scene.until(
            "new connections are answered",
            Dial::tcp(host, to.into()),
            Result::is_ok,
        )?;
    }
    Ok(())
}
