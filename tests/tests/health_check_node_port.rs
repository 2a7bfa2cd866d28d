//! `healthCheckNodePort`: what a load balancer hears when it asks a node for a Service.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    agent::Agent,
    echo::{Dial, Proto},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{SOON, Scene, TARGET, Variant, cluster_ips, external_ip, external_ips},
    tests,
    topology::{Ip, Node, Place, World},
    trials, wait,
};
use serde_json::{Value, json};
use socket2::{Domain, Type};

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2],
        [
            each_node_tells_how_many_endpoints_it_has,
            its_server_follows_the_service,
            a_draining_node_leaves_healthz_and_stays_in_the_service_check,
            an_answer_never_runs_ahead_of_the_data_path,
            a_service_is_served_though_its_port_cannot_be
        ]
    ))
}

const PORT: u16 = 80;
const ASKED: u16 = 31_000;
const MOVED: u16 = 31_001;
const PATIENCE: Duration = Duration::from_secs(2);

fn web(asked: u16) -> ServiceManifest {
    ServiceManifest::new("web", &cluster_ips(1))
        .both(PORT)
        .node_port(30080)
        .load_balancer(&external_ips(1))
        .external_local()
        .field("healthCheckNodePort", json!(asked))
}

fn objects(web: &ServiceManifest, endpoints: &[Endpoint<'_>]) -> Vec<Value> {
    let mut objects = vec![web.build()];
    objects.extend(Slice::both("web", PORT, TARGET, endpoints));
    objects
}

/// Two on node-a, none on node-b.
fn near(world: &World) -> [Endpoint<'_>; 2] {
    [1, 2].map(|pod| Endpoint::ready(world.a().pod(pod)))
}

/// Status, weight and body; `None`: refused.
type Heard = Option<(u16, usize, Value)>;

fn ask(from: &Place, at: SocketAddr, path: &str) -> Result<Heard> {
    from.ns.run(|| {
        let mut stream = match TcpStream::connect_timeout(&at, PATIENCE) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {at}")),
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: lb\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of headers")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let weight = head
            .lines()
            .find_map(|line| line.strip_prefix("X-Load-Balancing-Endpoint-Weight: "))
            .with_context(|| format!("no weight in {head}"))?
            .parse()?;
        Ok(Some((status, weight, serde_json::from_str(body)?)))
    })?
}

/// Asks a node from outside in both families until it says this status and count; `None`: until it refuses.
fn expect(world: &World, node: &Node, port: u16, wanted: Option<(u16, usize)>) -> Result<()> {
    for ip in Ip::BOTH {
        let at = node.host.at(ip, port);
        wait::until("health check", SOON, || {
            let heard = ask(&world.client, at, "/")?;
            ensure!(
                heard.as_ref().map(|(status, weight, _)| (*status, *weight)) == wanted,
                "{at}: {heard:?}, wanted {wanted:?}"
            );
            let Some((status, weight, body)) = heard else {
                return Ok(());
            };
            let says = json!({
                "service": {"namespace": "test", "name": "web"},
                "localEndpoints": weight,
                "serviceProxyHealthy": true,
            });
            ensure!(body == says, "{at}: {status} {body}");
            Ok(())
        })?;
    }
    Ok(())
}

fn each_node_tells_how_many_endpoints_it_has() -> Result<()> {
    // semantics 15.1, 15.3, 15.4, 15.6, 15.11
    let scene = Scene::start(&Variant::plain(), |world| {
        objects(&web(ASKED), &near(world))
    })?;
    let world = &scene.world;
    expect(world, world.a(), ASKED, Some((200, 2)))?;
    expect(world, world.b(), ASKED, Some((503, 0)))?;
    let (status, ..) = ask(&world.client, world.a().host.at(Ip::V4, ASKED), "/healthz")?
        .context("every path is answered")?;
    assert_eq!(status, 200);

    // Terminating ones carry traffic and do not count (semantics 6.9, 15.4).
    let leaving = [1, 2].map(|pod| Endpoint::terminating(world.a().pod(pod), true));
    scene.replace(&objects(&web(ASKED), &leaving))?;
    expect(world, world.a(), ASKED, Some((503, 0)))?;
    Ok(())
}

fn its_server_follows_the_service() -> Result<()> {
    // semantics 15.7, 15.11
    let scene = Scene::start(&Variant::plain(), |world| {
        objects(&web(ASKED), &near(world))
    })?;
    let world = &scene.world;
    expect(world, world.a(), ASKED, Some((200, 2)))?;
    scene.replace(&objects(&web(MOVED), &near(world)))?;
    expect(world, world.a(), MOVED, Some((200, 2)))?;
    expect(world, world.a(), ASKED, None)?;
    let cluster = web(MOVED).field("externalTrafficPolicy", json!("Cluster"));
    scene.replace(&objects(&cluster, &near(world)))?;
    expect(world, world.a(), MOVED, None)?;
    scene.replace(&objects(&web(MOVED), &near(world)))?;
    expect(world, world.a(), MOVED, Some((200, 2)))?;
    scene.replace(&[])?;
    expect(world, world.a(), MOVED, None)
}

fn a_draining_node_leaves_healthz_and_stays_in_the_service_check() -> Result<()> {
    // semantics 15.5, 16.5, 16.6, 28.40
    let scene = Scene::start(&Variant::plain(), |world| {
        objects(&web(ASKED), &near(world))
    })?;
    let world = &scene.world;
    let mut node = lb_tests::manifest::node(&world.a().host, None);
    let healthz = |agent: &Agent, wanted: u16| {
        wait::until("/healthz", SOON, || {
            let (status, body) = agent.health("/healthz")?;
            ensure!(
                status == wanted && body.contains("lastUpdated"),
                "{status} {body}"
            );
            Ok(())
        })
    };
    healthz(&scene.a, 200)?;
    for (field, value) in [
        ("spec", json!({"unschedulable": true})),
        (
            "spec",
            json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}),
        ),
    ] {
        node[field] = value;
        let other = lb_tests::manifest::node(&world.b().host, None);
        let nodes = lb_tests::manifest::list(&[node.clone(), other]);
        scene.manifests.write("nodes.json", &nodes)?;
        let leaves = node["spec"].get("taints").is_some();
        healthz(&scene.a, if leaves { 503 } else { 200 })?;
    }
    let (status, body) = scene.a.health("/livez")?;
    if status != 200 {
        bail!("/livez of a draining node: {status} {body}");
    }
    expect(world, world.a(), ASKED, Some((200, 2)))
}

/// Semantics 15.9, 22.7: who hears that a node has endpoints is served by it from then on.
fn an_answer_never_runs_ahead_of_the_data_path() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), |_| objects(&web(ASKED), &[]))?;
    let world = &scene.world;
    for round in 0..10 {
        scene.replace(&objects(&web(ASKED), &near(world)))?;
        for ip in Ip::BOTH {
            let at = world.a().host.at(ip, ASKED);
            let start = Instant::now();
            // As fast as it goes: a look now and then would give the data path time.
            while !matches!(ask(&world.client, at, "/")?, Some((200, ..))) {
                ensure!(
                    start.elapsed() < SOON,
                    "{at} never says that it has endpoints"
                );
            }
            for proto in Proto::BOTH {
                let dial = Dial::new(&world.client, proto, (external_ip(ip, 1), PORT).into());
                let served = dial.ask();
                ensure!(served.is_ok(), "round {round}: {dial}: {served:?}");
            }
        }
        scene.replace(&objects(&web(ASKED), &[]))?;
        expect(world, world.a(), ASKED, Some((503, 0)))?;
    }
    Ok(())
}

/// Semantics 15.8, 22.7: a port that somebody else has takes nothing from the Service.
fn a_service_is_served_though_its_port_cannot_be() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), |_| Vec::new())?;
    let world = &scene.world;
    let host = &world.a().host;
    let taken = host.ns.socket(Domain::IPV4, Type::STREAM, None)?;
    taken.bind(&host.at(Ip::V4, ASKED).into())?;
    taken.listen(1)?;
    scene.replace(&objects(&web(ASKED), &near(world)))?;
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let dial = Dial::new(&world.client, proto, (external_ip(ip, 1), PORT).into());
            scene.until("served", dial, Result::is_ok)?;
        }
    }
    scene
        .a
        .wait_log("cannot answer health checks of Service test/web")?;
    drop(taken);
    expect(world, world.a(), ASKED, Some((200, 2)))
}
