//! Agents that follow a real API server, with slices by the real controller (semantics 2, 6, 16.9).

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_tests::{
    agent::{Agent, AgentOptions},
    control_plane::{self, ControlPlane, Role},
    echo::{Dial, Proto, Server, Stream, Traffic},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{SILENCE, SOON, Seen, TARGET, check, cluster_ip, cluster_ips, expect, expect_all},
    tests,
    topology::{Ip, Place, World, WorldOptions},
    trials, wait,
};
use serde_json::{Value, json};

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2, ControlPlane],
        [
            pods_of_the_real_controller_are_served_until_they_are_gone,
            labels_take_services_and_slices_away_and_give_them_back,
            an_api_server_that_is_away_changes_nothing
        ]
    ))
}

const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;
const PATIENCE: Duration = Duration::from_secs(5);

/// A world whose agents follow the control plane. Dropped in the order of the fields.
struct Cluster {
    a: Agent,
    b: Agent,
    _servers: Vec<Server>,
    world: World,
    plane: ControlPlane,
}

impl Cluster {
    /// Starts everything on `objects`; returns when both agents are ready.
    fn start(objects: impl FnOnce(&World) -> Vec<Value>) -> Result<Cluster> {
        let plane = ControlPlane::start()?;
        let world = World::new(WorldOptions::default())?;
        control_plane::join(&plane, &world)?;
        let mut servers = Vec::new();
        for pod in world.nodes.iter().flat_map(|node| &node.pods) {
            servers.extend(Server::start_all(pod, TARGET)?);
        }
        plane.api().apply_all(&objects(&world))?;
        let kubeconfig = plane.kubeconfig(Role::Agent);
        let [mut a, mut b] = [
            Agent::prepare_api(world.a(), &kubeconfig, AgentOptions::default())?,
            Agent::prepare_api(world.b(), &kubeconfig, AgentOptions::default())?,
        ];
        a.run()?;
        b.run()?;
        a.wait_ready()?;
        b.wait_ready()?;
        Ok(Cluster {
            a,
            b,
            _servers: servers,
            world,
            plane,
        })
    }

    /// Waits until dials from the pod a2 to the ClusterIP, in both families, come to what is wanted.
    fn until(
        &self,
        what: &str,
        number: u8,
        wanted: impl Fn(&lb_tests::echo::Outcome) -> bool,
    ) -> Result<()> {
        for ip in Ip::BOTH {
            wait::until(&format!("{what}, {ip:?}"), SOON, || {
                let to = (cluster_ip(ip, number), PORT);
                let dial = Dial::tcp(self.world.a().pod(0), to.into());
                let outcome = dial.timeout(SILENCE).ask();
                ensure!(wanted(&outcome), "{outcome:?}");
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// A Service that selects Pods by `app: NAME`; its TCP target port has a name.
fn selecting(name: &str, number: u8) -> Value {
    let mut service = ServiceManifest::new(name, &cluster_ips(number))
        .both(PORT)
        .node_port(NODE_PORT)
        .field("selector", json!({ "app": name }))
        .build();
    service["spec"]["ports"][0]["targetPort"] = "web".into();
    service["spec"]["ports"][1]["targetPort"] = TARGET.into();
    service
}

fn pod(place: &Place) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": place.name, "namespace": "test" } })
}

/// Semantics 2.11, 4.2, 5.9, 6.2, 6.5: Pods come, terminate and go, and the real controller tells of it; the agent has the
/// role of deploy/.
fn pods_of_the_real_controller_are_served_until_they_are_gone() -> Result<()> {
    let mut cluster = Cluster::start(|_| vec![selecting("s", 20)])?;
    cluster.plane.start_controllers()?;
    let world = &cluster.world;
    let [a, b] = [world.a(), world.b()];
    let api = cluster.plane.api();
    let labels = json!({ "app": "s" });
    api.run_pod(a.pod(1), &a.host, &labels)?;
    api.run_pod(b.pod(1), &b.host, &labels)?;
    let backends = [a.pod(1), b.pod(1)];
    for server in backends {
        cluster
            .until(&format!("{} answers", server.name), 20, |outcome| {
                outcome
                    .as_ref()
                    .is_ok_and(|answer| answer.server == server.name)
            })
            .with_context(|| cluster.plane.logs())?;
    }
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let to = (cluster_ip(ip, 20), PORT);
            expect_all("pod", a.pod(0), proto, to, &backends, Seen::Client)?;
            expect_all("host", &b.host, proto, to, &backends, Seen::Anyone)?;
            for node in [a, b] {
                let to = (node.host.addr(ip), NODE_PORT);
                expect_all("outside", &world.client, proto, to, &backends, Seen::Anyone)?;
            }
        }
    }

    // b3 terminates: it keeps what it has and gets nothing new while a3 is ready.
    let mut streams = Vec::new();
    for ip in Ip::BOTH {
        let to = (cluster_ip(ip, 20), PORT);
        let stream = wait::until("a connection to b3", SOON, || {
            let mut stream = Stream::open(Dial::tcp(a.pod(0), to.into()))?;
            let server = stream.ask(PATIENCE)?.server;
            ensure!(server == b.pod(1).name, "it is to {server}");
            Ok(stream)
        })?;
        streams.push(stream);
    }
    let traffic = Traffic::start(streams, PATIENCE);
    api.delete_in(&pod(b.pod(1)), Duration::from_secs(300))?;
    let only = |name: &str| -> Result<()> {
        for ip in Ip::BOTH {
            wait::until(&format!("only {name} answers"), SOON, || {
                for _ in 0..20 {
                    let to = (cluster_ip(ip, 20), PORT);
                    let server = Dial::tcp(a.pod(0), to.into()).ask()?.server;
                    ensure!(server == name, "{server} answered");
                }
                Ok(())
            })?;
        }
        Ok(())
    };
    only("a3")?;
    traffic.wait_more(50)?;
    // The last ready one terminates, too: both serve again.
    api.delete_in(&pod(a.pod(1)), Duration::from_secs(300))?;
    cluster.until("b3 answers while all terminate", 20, |outcome| {
        outcome.as_ref().is_ok_and(|answer| answer.server == "b3")
    })?;
    traffic.wait_more(50)?;
    let report = traffic.stop();
    ensure!(report.failed.is_empty(), "{:?}", report.failed);
    ensure!(report.moved.is_empty(), "{:?}", report.moved);
    // Gone: one after the other, and then nobody is left.
    api.delete(&pod(b.pod(1)))?;
    only("a3")?;
    api.delete(&pod(a.pod(1)))?;
    cluster.until("refused without Pods", 20, |outcome| {
        *outcome == Err(lb_tests::echo::Failure::Refused)
    })
}

/// Semantics 2.4, 2.5: labels say that a Service or slice is somebody else's, and may come and go.
fn labels_take_services_and_slices_away_and_give_them_back() -> Result<()> {
    let cluster = Cluster::start(|world| {
        let mut objects = vec![
            ServiceManifest::new("s", &cluster_ips(20))
                .both(PORT)
                .build(),
        ];
        objects.extend(Slice::both(
            "s",
            PORT,
            TARGET,
            &[Endpoint::ready(world.b().pod(0))],
        ));
        objects
    })?;
    let api = cluster.plane.api();
    let answers = |outcome: &lb_tests::echo::Outcome| outcome.is_ok();
    cluster.until("served", 20, answers)?;
    let label = |name: &str, value: Value| json!({ "metadata": { "labels": { name: value } } });
    let service = ServiceManifest::new("s", &cluster_ips(20))
        .both(PORT)
        .build();
    let name = "service.kubernetes.io/service-proxy-name";
    api.patch(&service, &label(name, "other".into()))?;
    cluster.until("another proxy's Service", 20, |outcome| outcome.is_err())?;
    api.patch(&service, &label(name, Value::Null))?;
    cluster.until("ours again", 20, answers)?;
    let name = "service.kubernetes.io/headless";
    for ip in Ip::BOTH {
        api.patch(&Slice::new("s", ip).build(), &label(name, "".into()))?;
    }
    cluster.until("headless slices", 20, |outcome| outcome.is_err())?;
    for ip in Ip::BOTH {
        api.patch(&Slice::new("s", ip).build(), &label(name, Value::Null))?;
    }
    cluster.until("slices with endpoints again", 20, answers)
}

/// Semantics 2.10, 16.9: what is known is served while the API server is away, and nothing is removed; then the
/// agent catches up.
fn an_api_server_that_is_away_changes_nothing() -> Result<()> {
    let objects = |world: &World, name: &str, number: u8| {
        let mut objects = vec![
            ServiceManifest::new(name, &cluster_ips(number))
                .both(PORT)
                .build(),
        ];
        objects.extend(Slice::both(
            name,
            PORT,
            TARGET,
            &[
                Endpoint::ready(world.a().pod(1)),
                Endpoint::ready(world.b().pod(1)),
            ],
        ));
        objects
    };
    let mut cluster =
        Cluster::start(|world| [objects(world, "s", 20), objects(world, "goes", 21)].concat())?;
    cluster.until("served", 20, |outcome| outcome.is_ok())?;
    cluster.until("served", 21, |outcome| outcome.is_ok())?;
    let dials = |world: &World| -> Result<Vec<Stream>> {
        let mut streams = Vec::new();
        for ip in Ip::BOTH {
            for from in [world.a().pod(0), &world.a().host, &world.client] {
                let dial = Dial::tcp(from, (cluster_ip(ip, 20), PORT).into());
                streams.push(Stream::open(dial).with_context(|| dial.to_string())?);
            }
        }
        Ok(streams)
    };
    let traffic = Traffic::start(dials(&cluster.world)?, PATIENCE);
    traffic.wait_more(50)?;
    let known = services(&cluster.a)?;
    cluster.plane.stop_server()?;
    cluster.a.wait_log("API server")?;
    traffic.wait_more(500)?;
    for agent in [&cluster.a, &cluster.b] {
        ensure!(services(agent)? == known, "Services changed");
        let (status, body) = agent.health("/healthz")?;
        ensure!(status == 200, "/healthz: {status} {body}");
    }
    let backends = [cluster.world.a().pod(1), cluster.world.b().pod(1)];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for number in [20, 21] {
                let to = (cluster_ip(ip, number), PORT);
                let from = cluster.world.a().pod(0);
                expect("API away", from, proto, to, &backends, Seen::Client)?;
            }
        }
    }
    cluster.plane.start_server()?;
    let api = cluster.plane.api();
    for object in objects(&cluster.world, "goes", 21) {
        api.delete(&object)?;
    }
    api.apply_all(&objects(&cluster.world, "comes", 22))?;
    // The client of a watch that broke waits before it comes back.
    wait::until("the new Service answers", Duration::from_secs(40), || {
        let to = (cluster_ip(Ip::V6, 22), PORT);
        let from = cluster.world.a().pod(0);
        Dial::tcp(from, to.into())
            .timeout(SILENCE)
            .ask()
            .map_err(|failure| anyhow!("{failure}"))
    })?;
    cluster.until("the old one is gone", 21, |outcome| outcome.is_err())?;
    traffic.wait_more(50)?;
    let report = traffic.stop();
    if !report.failed.is_empty() || !report.moved.is_empty() {
        bail!("{:?} {:?}", report.failed, report.moved);
    }
    let to = (cluster_ip(Ip::V4, 20), PORT);
    let dial = Dial::tcp(cluster.world.a().pod(0), to.into());
    check("after all", dial, &backends, Seen::Client).map(drop)
}

/// What `lb-agent services` lists, without what counts.
fn services(agent: &Agent) -> Result<Vec<String>> {
    let services = agent.json(&["services"])?;
    let list = services
        .as_array()
        .or_else(|| services["services"].as_array())
        .context("`services` prints no list")?;
    let mut names: Vec<String> = list
        .iter()
        .map(|service| {
            let fields = [
                "service",
                "family",
                "protocol",
                "kind",
                "frontend",
                "cluster_backends",
            ];
            fields.map(|field| service[field].to_string()).join(" ")
        })
        .collect();
    names.sort();
    Ok(names)
}
