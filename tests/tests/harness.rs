//! The world itself, without an agent: whatever these cases show is not the load balancer's doing.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cgroup::Cgroup,
    echo::{Dial, Failure, Proto, Server, Stream},
    netns::NetNs,
    tests,
    topology::{Ip, Place, PodLink, World, WorldOptions},
    trials,
};
use socket2::Type;

fn main() -> ExitCode {
    let mut trials = tests!(
        [Root],
        [
            a_namespace_has_only_loopback_and_leaves_the_caller_alone,
            a_published_namespace_has_its_name_until_dropped,
            a_failing_batch_names_the_line_and_the_namespace,
            routed_pods_are_reached_from_everywhere,
            bridged_pods_are_reached_from_everywhere,
            a_world_is_built_within_two_seconds,
            outcomes_tell_refused_from_dropped_and_unreachable,
            a_chosen_source_port_is_seen_and_large_streams_are_whole,
            no_two_dials_of_a_place_share_a_port,
            path_mtu_discovery_works_without_an_agent
        ]
    );
    trials.extend(tests!(
        [Root, Cgroup2],
        [a_socket_of_a_cgroup_is_in_the_namespace_asked_for]
    ));
    trials::run(trials)
}

fn a_namespace_has_only_loopback_and_leaves_the_caller_alone() -> Result<()> {
    let outside = fs::read_link("/proc/thread-self/ns/net")?;
    let ns = NetNs::new("empty")?;
    let inside = ns.run(|| fs::read_link("/proc/thread-self/ns/net"))??;
    assert_ne!(outside, inside);
    assert_eq!(outside, fs::read_link("/proc/thread-self/ns/net")?);
    let links = ns.output("ip", &["-o", "link"])?;
    assert_eq!(links.lines().count(), 1, "{links}");
    assert!(links.contains("lo:"), "{links}");
    Ok(())
}

fn a_published_namespace_has_its_name_until_dropped() -> Result<()> {
    let name = format!("lb-test-{}-published", std::process::id());
    let published = NetNs::new("named")?.publish(&name)?;
    let listed = || -> Result<bool> {
        let output = Command::new("ip").args(["netns", "list"]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).contains(&name))
    };
    assert!(listed()?);
    drop(published);
    assert!(!listed()?);
    Ok(())
}

fn a_failing_batch_names_the_line_and_the_namespace() -> Result<()> {
    let ns = NetNs::new("broken")?;
    let error = ns
        .ip("link set lo up\nlink set nothing up\n")
        .expect_err("there is no such interface");
    assert!(error.to_string().contains("broken"), "{error}");
    assert!(error.to_string().contains("nothing"), "{error}");
    Ok(())
}

/// Every place reaches every pod by its own address, and is seen with its own.
fn everybody_reaches_every_pod(options: WorldOptions) -> Result<()> {
    let world = World::new(options)?;
    let pods: Vec<&Place> = world.nodes.iter().flat_map(|node| &node.pods).collect();
    let mut servers = Vec::new();
    for pod in &pods {
        servers.extend(Server::start_all(pod, 8080)?);
    }
    let hosts = [&world.client, &world.a().host, &world.b().host];
    for from in hosts.into_iter().chain(pods.iter().copied()) {
        for to in pods.iter().filter(|to| to.name != from.name) {
            for ip in Ip::BOTH {
                for proto in Proto::BOTH {
                    let what = format!(
                        "{} → {} {proto:?} {ip:?} in {options:?}",
                        from.name, to.name
                    );
                    let answer = Dial::new(from, proto, to.at(ip, 8080))
                        .size(3000)
                        .ask()
                        .context(what.clone())?;
                    assert_eq!(answer.server, to.name, "{what}");
                    assert_eq!(answer.peer, to.at(ip, 8080), "{what}");
                    let own_node = from.name == format!("node-{}", &to.name[..1]);
                    let gateway = to
                        .gateway(ip)
                        .filter(|_| own_node && options.pods == PodLink::Bridge);
                    assert_eq!(
                        answer.seen_peer.ip(),
                        gateway.unwrap_or(from.addr(ip)),
                        "{what}"
                    );
                }
            }
        }
    }
    Ok(())
}

fn routed_pods_are_reached_from_everywhere() -> Result<()> {
    everybody_reaches_every_pod(WorldOptions::default())?;
    everybody_reaches_every_pod(WorldOptions::default().without_offloads())
}

fn bridged_pods_are_reached_from_everywhere() -> Result<()> {
    everybody_reaches_every_pod(WorldOptions::default().bridge())?;
    everybody_reaches_every_pod(WorldOptions::default().bridge().without_offloads())
}

fn a_world_is_built_within_two_seconds() -> Result<()> {
    let start = Instant::now();
    let world = World::new(WorldOptions::default())?;
    let took = start.elapsed();
    drop(world);
    eprintln!(
        "world built in {took:?}, removed in {:?}",
        start.elapsed() - took
    );
    ensure!(took < Duration::from_secs(2), "took {took:?}");
    Ok(())
}

fn outcomes_tell_refused_from_dropped_and_unreachable() -> Result<()> {
    let world = World::new(WorldOptions {
        pods: PodLink::Routed,
        pods_per_node: 1,
        ..WorldOptions::default()
    })?;
    let from = world.a().pod(0);
    let short = Duration::from_millis(300);
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let closed = Dial::new(from, proto, world.b().pod(0).at(ip, 9)).ask();
            assert_eq!(
                closed,
                Err(Failure::Refused),
                "{proto:?} {ip:?} to a closed port"
            );
            // The gateway of the fabric drops what it is asked to forward.
            let dropped = match ip {
                Ip::V4 => "203.0.113.1:9",
                Ip::V6 => "[2001:db8:ffff::1]:9",
            };
            let outcome = Dial::new(from, proto, dropped.parse()?)
                .timeout(short)
                .ask();
            assert_eq!(
                outcome,
                Err(Failure::TimedOut),
                "{proto:?} {ip:?} to nowhere"
            );
        }
    }
    world
        .a()
        .host
        .ns
        .ip("route add unreachable 203.0.113.2/32\n")?;
    let outcome = Dial::tcp(from, "203.0.113.2:9".parse()?)
        .timeout(short)
        .ask();
    assert_eq!(outcome, Err(Failure::Unreachable));
    Ok(())
}

fn a_chosen_source_port_is_seen_and_large_streams_are_whole() -> Result<()> {
    let world = World::new(WorldOptions {
        pods_per_node: 1,
        ..WorldOptions::default()
    })?;
    let (from, to) = (&world.client, world.b().pod(0));
    for ip in Ip::BOTH {
        let _server = Server::start(to, ip, Proto::Tcp, 8080)?;
        let dial = Dial::tcp(from, to.at(ip, 8080)).source_port(4711).reset();
        for _ in 0..3 {
            assert_eq!(dial.ask()?.seen_peer, from.at(ip, 4711));
        }
        let mut stream = Stream::open(dial)?;
        let answer = stream.ask_with(2_000_000, Duration::from_secs(10))?;
        assert_eq!(answer.length, 2_000_000);
        stream.fetch(2_000_000, Duration::from_secs(10))?;
    }
    Ok(())
}

/// 150 dials each from ports that the kernel picks: at random, two would share one in every third run.
fn no_two_dials_of_a_place_share_a_port() -> Result<()> {
    let world = World::new(WorldOptions {
        pods_per_node: 1,
        ..WorldOptions::default()
    })?;
    let to = world.b().pod(0);
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let _server = Server::start(to, ip, proto, 8080)?;
            let mut ports = BTreeSet::new();
            for _ in 0..150 {
                let dial = Dial::new(&world.client, proto, to.at(ip, 8080));
                let port = dial.ask()?.local.port();
                ensure!(ports.insert(port), "{port} twice, {proto:?} {ip:?}");
            }
        }
    }
    Ok(())
}

/// A route's MTU on the last hop makes senders shrink their segments: cases about path-MTU discovery
/// rest on it.
fn path_mtu_discovery_works_without_an_agent() -> Result<()> {
    for options in [
        WorldOptions::default(),
        WorldOptions::default().bridge().without_offloads(),
    ] {
        let world = World::new(options)?;
        let (from, to) = (world.a().pod(0), world.b().pod(0));
        let device = match options.pods {
            PodLink::Routed => world.b().pod_interface(0),
            PodLink::Bridge => lb_tests::topology::POD_BRIDGE.to_owned(),
        };
        for ip in Ip::BOTH {
            world.b().host.ns.ip(&format!(
                "route replace {} dev {device} mtu 1400\n",
                to.addr(ip)
            ))?;
            let _server = Server::start(to, ip, Proto::Tcp, 8080)?;
            let mut stream = Stream::open(Dial::tcp(from, to.at(ip, 8080)))?;
            assert_eq!(
                stream.ask_with(500_000, Duration::from_secs(10))?.length,
                500_000
            );
            let mss = stream.mss()?;
            ensure!(
                mss <= 1360,
                "segments of {mss} bytes by {ip:?} in {options:?}"
            );
        }
    }
    Ok(())
}

fn a_socket_of_a_cgroup_is_in_the_namespace_asked_for() -> Result<()> {
    let world = World::new(WorldOptions {
        pods_per_node: 1,
        ..WorldOptions::default()
    })?;
    let host = &world.a().host;
    let cgroup = std::sync::Arc::new(Cgroup::new("sockets")?);
    host.enter_cgroup(Some(std::sync::Arc::clone(&cgroup)));
    let to = world.b().pod(0);
    let _server = Server::start(to, Ip::V4, Proto::Tcp, 8080)?;
    let answer = Dial::tcp(host, to.at(Ip::V4, 8080)).ask()?;
    assert_eq!(answer.seen_peer.ip(), host.addr(Ip::V4));
    // Nothing stays in the cgroup but sockets.
    let socket = host.socket(Ip::V6, Type::DGRAM)?;
    assert_eq!(
        std::fs::read_to_string(cgroup.path().join("cgroup.procs"))?,
        ""
    );
    drop(socket);
    Ok(())
}
