//! Many connections of one client to one backend, and what may look like one: the node's own queries, forged segments,
//! other people's masquerade, a frontend that goes or changes hands.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    echo::{Datagrams, Dial, Failure, Proto, Server, Stream},
    manifest::{Endpoint, ServiceManifest, Slice},
    packet::{PacketBuilder, RST},
    requires::Need,
    scene::{SOON, Scene, TARGET, Variant, cluster_ip, cluster_ips},
    scenes,
    topology::{Ip, UPLINK, World},
    trials::{self, trial},
};
use serde_json::Value;
use socket2::{Domain, Protocol, Type};

fn main() -> ExitCode {
    let mut trials = scenes!(
        objects,
        [plain, native],
        [
            thousands_of_short_connections_to_one_remote_backend_are_not_lost,
            connections_of_one_client_are_held_by_the_thousand,
            answers_to_the_nodes_own_queries_reach_it,
            forged_reset_leaves_a_connection_as_it_is,
            tcp_outlives_its_node_port_and_udp_follows_its_new_owner,
        ]
    );
    for (name, variant) in [
        ("plain", Variant::plain as fn() -> Variant),
        ("native", Variant::native),
    ] {
        let needs = &[Need::Root, Need::Bpf, Need::Cgroup2, Need::Nft];
        let name = format!("{name}::masquerade_of_others_between_the_hooks_breaks_nothing");
        trials.push(trial(name, needs, move || {
            masquerade_of_others_between_the_hooks_breaks_nothing(&variant())
        }));
    }
    trials::run(trials)
}

const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;
const HELD_PORT: u16 = 1883;
const HELD_NODE_PORT: u16 = 31_883;
/// Where the held connections' server listens.
const HELD_TARGET: u16 = 9_090;
const PATIENCE: Duration = Duration::from_secs(5);
/// A packet may be late where other tests load the machine, and a SYN is sent again then: that none was dropped tell the
/// programs' counters.
const PROMPT: Duration = Duration::from_secs(5);

/// No hook of node-a has dropped a packet so far.
fn nothing_was_dropped(scene: &Scene, what: &str) -> Result<()> {
    // The fabric has one subnet, and the stack tells clients so.
    let redirects = scene.a.metric("lb_drops_total", &["icmp_redirect"])?;
    let drops = scene.a.metric("lb_drops_total", &[])? - redirects;
    ensure!(
        drops < 1.0,
        "{drops} packets dropped, {what}:\n{}",
        scene.a.metrics()?
    );
    Ok(())
}

fn objects(world: &World) -> Vec<Value> {
    let far = &[Endpoint::ready(world.b().pod(0))];
    let mut objects = vec![
        ServiceManifest::new("far", &cluster_ips(1))
            .both(PORT)
            .node_port(NODE_PORT)
            .build(),
        ServiceManifest::new("held", &cluster_ips(2))
            .both(HELD_PORT)
            .node_port(HELD_NODE_PORT)
            .build(),
    ];
    objects.extend(Slice::both("far", PORT, TARGET, far));
    objects.extend(Slice::both("held", HELD_PORT, HELD_TARGET, far));
    objects
}

fn dial(world: &World, ip: Ip, port: u16) -> Dial<'_> {
    Dial::tcp(&world.client, (world.a().host.addr(ip), port).into())
}

/// A closed connection keeps its source port for a while, and may not keep it from others.
fn thousands_of_short_connections_to_one_remote_backend_are_not_lost(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    for (ip, count) in [(Ip::V4, 12_000), (Ip::V6, 3_000)] {
        let begun = Instant::now();
        let (mut lost, mut first) = (0, None);
        for number in 0..count {
            let outcome = dial(&scene.world, ip, NODE_PORT).timeout(PROMPT).ask();
            if let Err(failure) = outcome {
                lost += 1;
                first.get_or_insert((number, failure));
                ensure!(lost < 20, "{lost} of {number} are lost: {first:?}, {what}");
            }
        }
        let rate = f64::from(count) / begun.elapsed().as_secs_f64();
        eprintln!("{what}, {ip:?}: {count} connections, {rate:.0} a second");
        ensure!(lost == 0, "{lost} of {count} are lost: {first:?}, {what}");
    }
    nothing_was_dropped(scene, what)
}

/// MQTT, websockets: as many as a client has ports, or this process descriptors.
fn connections_of_one_client_are_held_by_the_thousand(scene: &Scene, what: &str) -> Result<()> {
    // One variant at a time: descriptors are the process's.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let count = descriptors()?.saturating_sub(1_500).min(20_000);
    ensure!(count > 5_000, "only {count} descriptors");
    let world = &scene.world;
    let backend = world.b().pod(0);
    let range = [("ipv4/ip_local_port_range", "1025 65534")];
    world.client.ns.sysctl(&range)?;
    // They wait to be accepted: the backend needs no descriptors for them.
    backend.ns.sysctl(&[("core/somaxconn", "65535")])?;
    let listener = backend.socket(Ip::V4, Type::STREAM)?;
    listener.bind(&backend.at(Ip::V4, HELD_TARGET).into())?;
    listener.listen(65_535)?;
    listener.set_read_timeout(Some(PATIENCE))?;
    let to = (world.a().host.addr(Ip::V4), HELD_NODE_PORT).into();
    // Sockets are made in the namespace by one thread.
    let mut clients = world.client.ns.run(|| -> Result<Vec<TcpStream>> {
        let connect = |number| {
            let stream = TcpStream::connect_timeout(&to, PROMPT);
            stream.with_context(|| format!("connection {number} of {count} is lost, {what}"))
        };
        (0..count).map(connect).collect()
    })??;
    for client in &mut clients {
        client.write_all(b"x")?;
    }
    let listener = TcpListener::from(listener);
    for number in 0..count {
        let (mut server, _) = listener
            .accept()
            .with_context(|| format!("the backend has {number} of {count} connections, {what}"))?;
        server.set_read_timeout(Some(PATIENCE))?;
        let read = server.read_exact(&mut [0]);
        read.with_context(|| format!("connection {number} of {count} is dead, {what}"))?;
    }
    nothing_was_dropped(scene, what)
}

/// How many descriptors this process may have: from now on all that it may ask for.
fn descriptors() -> Result<usize> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one limit.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    ensure!(got == 0, "cannot read the limit of descriptors");
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: one limit is read.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(set == 0, "cannot raise the limit of descriptors");
    Ok(usize::try_from(limit.rlim_cur)?)
}

/// NTP from port 123 to 123 beside an NTP load balancer; a port range that meets a NodePort.
fn answers_to_the_nodes_own_queries_reach_it(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let (host, client) = (&world.a().host, &world.client);
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let _server = Server::start(client, ip, proto, 9_123)?;
            for _ in 0..3 {
                let dial = Dial::new(host, proto, client.at(ip, 9_123)).source_port(NODE_PORT);
                let answer = dial.reset().ask();
                let answer = answer.with_context(|| format!("{dial}, {what}"))?;
                ensure!(
                    (answer.server.as_str(), answer.seen_peer)
                        == ("client", host.at(ip, NODE_PORT)),
                    "{dial}: {answer:?}, {what}"
                );
            }
            // Who dials the frontend is served all the same.
            let to = (host.addr(ip), NODE_PORT).into();
            let answer = Dial::new(client, proto, to).ask();
            let answer = answer.with_context(|| format!("{proto:?} to {to}, {what}"))?;
            ensure!(answer.server == "b2", "{answer:?}, {what}");
        }
    }
    Ok(())
}

/// RFC 5961: both ends ignore it, and so does what lies between them.
fn forged_reset_leaves_a_connection_as_it_is(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let dial = dial(world, Ip::V4, NODE_PORT);
    let raw = Some(Protocol::from(libc::IPPROTO_RAW));
    let raw = world.client.ns.socket(Domain::IPV4, Type::RAW, raw)?;
    // One in 400 is near the connection's numbers by chance, and counts.
    for attempt in 1..=3 {
        let mut stream = Stream::open(dial)?;
        let local = stream.ask(PATIENCE)?.local;
        let to = dial.destination();
        let forged = PacketBuilder::tcp(local, to)
            .flags(RST)
            .numbers(0x7000_0000, 0);
        raw.send_to(&forged.build_ip(), &to.into())?;
        thread::sleep(Duration::from_millis(100));
        let flows = scene.a.json(&["flows"])?;
        let client = local.to_string();
        let ours = |flow: &&Value| flow["client"] == client.as_str();
        let flow = flows.as_array().and_then(|flows| flows.iter().find(ours));
        let state = flow.map(|flow| flow["state"].clone());
        stream.ask(PATIENCE).with_context(|| what.to_owned())?;
        if state.as_ref().is_some_and(|state| state == "established") {
            ensure!(
                scene.a.metric("lb_events_total", &["out_of_window"])? >= 1.0,
                "it is not counted, {what}"
            );
            return Ok(());
        }
        eprintln!("attempt {attempt}: {client} is {state:?}, {what}");
    }
    bail!("a forged RST closes flows, {what}")
}

/// Semantics 17.3, 17.6, 18.1, 18.2.
fn tcp_outlives_its_node_port_and_udp_follows_its_new_owner(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let world = &scene.world;
    let (old, new) = (world.b().pod(0), world.a().pod(1));
    let service = |name: &str, number, node_port: Option<u16>| {
        let service = ServiceManifest::new(name, &cluster_ips(number)).both(PORT);
        match node_port {
            Some(port) => service.node_port(port).build(),
            None => service.build(),
        }
    };
    let put = |first: Option<u16>, second: Option<u16>| -> Result<()> {
        let mut objects = vec![service("far", 1, first), service("near", 3, second)];
        objects.extend(Slice::both("far", PORT, TARGET, &[Endpoint::ready(old)]));
        objects.extend(Slice::both("near", PORT, TARGET, &[Endpoint::ready(new)]));
        scene.replace(&objects)
    };
    put(Some(NODE_PORT), None)?;
    let (mut streams, mut sockets) = (Vec::new(), Vec::new());
    for ip in Ip::BOTH {
        let tcp = dial(world, ip, NODE_PORT);
        scene.until("served", tcp, |outcome| outcome.is_ok())?;
        let mut stream = Stream::open(tcp)?;
        ensure!(stream.ask(PATIENCE)?.server == "b2", "{what}");
        streams.push(stream);
        let mut socket = Datagrams::open(Dial::udp(&world.client, tcp.destination()))?;
        ensure!(socket.ask(PATIENCE)?.server == "b2", "{what}");
        sockets.push(socket);
    }
    // The port is another Service's; its old owner lives on.
    put(None, Some(NODE_PORT))?;
    for (socket, ip) in sockets.iter_mut().zip(Ip::BOTH) {
        let fresh = dial(world, ip, NODE_PORT);
        scene.until("a new owner", fresh, |outcome| {
            outcome.as_ref().is_ok_and(|answer| answer.server == "a3")
        })?;
        let deadline = Instant::now() + SOON;
        loop {
            match socket.ask(PROMPT) {
                Ok(answer) if answer.server == "a3" => break,
                outcome if Instant::now() > deadline => {
                    bail!("UDP stays with its old owner: {outcome:?}, {what}")
                }
                _ => {}
            }
        }
    }
    for stream in &mut streams {
        ensure!(stream.ask(PATIENCE)?.server == "b2", "{what}");
    }
    // It is nobody's.
    put(None, None)?;
    for ip in Ip::BOTH {
        let refused = dial(world, ip, NODE_PORT);
        scene.until("refused", refused, |outcome| {
            *outcome == Err(Failure::Refused)
        })?;
    }
    for stream in &mut streams {
        for _ in 0..3 {
            let answer = stream.ask(PATIENCE);
            let answer = answer.with_context(|| format!("without its frontend, {what}"))?;
            ensure!(answer.server == "b2", "{what}");
        }
    }
    scene.replace(&objects(world))
}

/// What NAT gateways and CNIs put between tc's two hooks.
fn masquerade_of_others_between_the_hooks_breaks_nothing(variant: &Variant) -> Result<()> {
    let scene = Scene::start(variant, objects)?;
    let what = variant.describe();
    let world = &scene.world;
    let host = &world.a().host;
    for rule in [
        "add table inet other".to_owned(),
        "add chain inet other post { type nat hook postrouting priority 110 ; }".to_owned(),
        format!("add rule inet other post oifname \"{UPLINK}\" masquerade"),
    ] {
        host.ns.output("nft", &[&rule])?;
    }
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for (from, to) in [
                (&world.client, host.at(ip, NODE_PORT)),
                (world.a().pod(0), (cluster_ip(ip, 1), PORT).into()),
                (host, (cluster_ip(ip, 1), PORT).into()),
            ] {
                for _ in 0..3 {
                    let dial = Dial::new(from, proto, to).timeout(Duration::from_secs(2));
                    let answer = dial.ask().with_context(|| format!("{dial}, {what}"))?;
                    ensure!(answer.server == "b2", "{dial}: {answer:?}, {what}");
                }
            }
        }
    }
    Ok(())
}
