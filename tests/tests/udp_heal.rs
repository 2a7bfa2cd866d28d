//! UDP senders that never stop: each keeps its socket, and so its port, while Services and endpoints
//! change. Semantics 17; pods, processes of the host and the outside client, both families (semantics 17.2.i, 17.2.j).

use std::{
    fmt, io,
    net::IpAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    echo::{Datagrams, Dial, Failure, Outcome, Proto, Server},
    manifest::{Endpoint, ServiceManifest, Slice, list},
    scene::{SOON, Scene, TARGET, Variant, cluster_ip, cluster_ips, external_ip, external_ips},
    scenes, tests,
    topology::{Ip, Place, World},
    trials, wait,
};
use serde_json::Value;

fn main() -> ExitCode {
    let mut trials = scenes!(
        |world| ready(&near_and_far(world)),
        [plain, bridge, native],
        [
            endpoint_removed,
            last_endpoint_removed_and_one_added,
            service_deleted,
            endpoint_port_changed,
            frontend_added_while_senders_send,
            frontend_changes_hands_while_its_old_owner_lives,
            endpoint_becomes_ready_late,
            local_endpoint_replaced_beside_remote_ones,
            terminating_endpoint_and_policy_keep_flows,
            foreign_flows_are_left_alone,
        ]
    );
    trials.extend(tests!(
        [Root, Bpf, Cgroup2],
        [restart_keeps_good_flows_and_ends_those_whose_endpoint_went_meanwhile]
    ));
    trials::run(trials)
}

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
/// Another port that a pod serves.
const OTHER_TARGET: u16 = 8081;
const PATIENCE: Duration = Duration::from_millis(250);
/// Within this time after a change the agent has looked for sockets to end, several times over.
const AGENT_LOOKS: Duration = Duration::from_secs(1);

/// The Service at every kind of frontend.
fn service() -> ServiceManifest {
    ServiceManifest::new("s", &cluster_ips(1))
        .both(PORT)
        .node_port(NODE_PORT)
        .load_balancer(&external_ips(21))
        .external_ips(&external_ips(11))
}

fn objects_at(target: u16, endpoints: &[Endpoint<'_>]) -> Vec<Value> {
    let mut objects = vec![service().build()];
    objects.extend(Slice::both("s", PORT, target, endpoints));
    objects
}

fn objects(endpoints: &[Endpoint<'_>]) -> Vec<Value> {
    objects_at(TARGET, endpoints)
}

fn ready(pods: &[&Place]) -> Vec<Value> {
    objects(
        &pods
            .iter()
            .map(|pod| Endpoint::ready(pod))
            .collect::<Vec<_>>(),
    )
}

/// A client that goes on sending, as an application does: it opens its socket again only when that is
/// taken from it.
struct Sender<'a> {
    dial: Dial<'a>,
    kind: &'static str,
    socket: Option<Datagrams>,
    aborted: usize,
}

impl fmt::Display for Sender<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.dial, self.kind)
    }
}

impl<'a> Sender<'a> {
    fn new(kind: &'static str, dial: Dial<'a>) -> Self {
        Sender {
            dial,
            kind,
            socket: None,
            aborted: 0,
        }
    }

    fn ask(&mut self) -> Outcome {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            None => self.socket.insert(Datagrams::open(self.dial)?),
        };
        let outcome = socket.ask(PATIENCE);
        if is_ended(&outcome) {
            self.aborted += 1;
            self.socket = None;
        }
        outcome
    }

    /// Sends until the outcome is as wanted.
    fn until(&mut self, what: &str, wanted: impl Fn(&Outcome) -> bool) -> Result<()> {
        let what = format!("{self}: {what}");
        wait::until(&what, SOON, || {
            let outcome = self.ask();
            ensure!(wanted(&outcome), "{outcome:?}");
            Ok(())
        })
    }

    /// Sends until this place answers, and sees that it goes on to.
    fn until_served_by(&mut self, server: &Place, what: &str) -> Result<()> {
        self.until(&format!("served by {}, {what}", server.name), |outcome| {
            outcome
                .as_ref()
                .is_ok_and(|answer| answer.server == server.name)
        })?;
        self.still_served_by(server, what)
    }

    fn still_served_by(&mut self, server: &Place, what: &str) -> Result<()> {
        for _ in 0..3 {
            let answer = self.ask().with_context(|| format!("{self}, {what}"))?;
            ensure!(
                answer.server == server.name,
                "{self}: {} instead of {}, {what}",
                answer.server,
                server.name
            );
            ensure!(
                answer.peer == self.dial.destination(),
                "{self}: the answer came from {}, {what}",
                answer.peer
            );
        }
        Ok(())
    }

    fn until_refused(&mut self, what: &str) -> Result<()> {
        self.until(&format!("refused, {what}"), |outcome| {
            *outcome == Err(Failure::Refused)
        })
    }
}

/// Whether a process sees that its socket was ended: as the pending error, or, sending before it looks for one, because
/// the socket is connected no more (`__udp_disconnect`).
fn is_ended(outcome: &Outcome) -> bool {
    [libc::ECONNABORTED, libc::EDESTADDRREQ]
        .into_iter()
        .any(|code| {
            *outcome
                == Err(Failure::Other(
                    io::Error::from_raw_os_error(code).to_string(),
                ))
        })
}

const CONNECTED: &str = "host, connected";

/// Semantics 17.2.f, 17.2.i, 17.2.j: senders of each place to each frontend that it may dial, in both families.
fn senders(world: &World) -> Vec<Sender<'_>> {
    let mut senders = Vec::new();
    for ip in Ip::BOTH {
        let cluster = (cluster_ip(ip, 1), PORT);
        let external = (external_ip(ip, 11), PORT);
        let balancer = (external_ip(ip, 21), PORT);
        let node_port = (world.a().host.addr(ip), NODE_PORT);
        let outside: [(IpAddr, u16); 3] = [node_port, external, balancer];
        for to in [cluster, node_port, external, balancer] {
            let (pod, host) = (world.a().pod(0), &world.a().host);
            senders.push(Sender::new("pod", Dial::udp(pod, to.into())));
            senders.push(Sender::new(CONNECTED, Dial::udp(host, to.into())));
            let dial = Dial::udp(host, to.into()).unconnected();
            senders.push(Sender::new("host, unconnected", dial));
        }
        for to in outside {
            senders.push(Sender::new("outside", Dial::udp(&world.client, to.into())));
        }
    }
    senders
}

/// Senders that all talk to this pod, the only one.
fn senders_to<'a>(scene: &'a Scene, pod: &Place, what: &str) -> Result<Vec<Sender<'a>>> {
    scene.replace(&ready(&[pod]))?;
    let mut senders = senders(&scene.world);
    for sender in &mut senders {
        sender.until_served_by(pod, what)?;
        sender.aborted = 0;
    }
    Ok(senders)
}

/// A connected socket of the host heals because it is ended, once; no other socket is.
fn ensure_aborted(senders: &[Sender<'_>], what: &str) -> Result<()> {
    for sender in senders {
        let wanted = usize::from(sender.kind == CONNECTED);
        ensure!(
            sender.aborted == wanted,
            "{sender}: ended {} times, {what}",
            sender.aborted
        );
    }
    Ok(())
}

fn ensure_none_aborted(senders: &[Sender<'_>], what: &str) -> Result<()> {
    for sender in senders {
        ensure!(sender.aborted == 0, "{sender}: ended, {what}");
    }
    Ok(())
}

fn near_and_far(world: &World) -> [&Place; 2] {
    [world.a().pod(1), world.b().pod(0)]
}

// semantics 17.2.a, 28.12
fn endpoint_removed(scene: &Scene, what: &str) -> Result<()> {
    let [near, far] = near_and_far(&scene.world);
    for (old, new) in [(near, far), (far, near)] {
        let mut senders = senders_to(scene, old, what)?;
        scene.replace(&ready(&[new]))?;
        for sender in &mut senders {
            sender.until_served_by(new, what)?;
        }
        ensure_aborted(&senders, what)?;
    }
    Ok(())
}

// semantics 17.2.b, 17.2.c, 28.13
fn last_endpoint_removed_and_one_added(scene: &Scene, what: &str) -> Result<()> {
    let [near, far] = near_and_far(&scene.world);
    let mut senders = senders_to(scene, near, what)?;
    scene.replace(&objects(&[]))?;
    for sender in &mut senders {
        sender.until_refused(what)?;
    }
    ensure_aborted(&senders, what)?;
    scene.replace(&ready(&[far]))?;
    for sender in &mut senders {
        sender.until_served_by(far, what)?;
    }
    Ok(())
}

// semantics 17.2.d, 28.13
fn service_deleted(scene: &Scene, what: &str) -> Result<()> {
    let [near, far] = near_and_far(&scene.world);
    for (old, new) in [(near, far), (far, near)] {
        let mut senders = senders_to(scene, old, what)?;
        // The slices stay: the pod lives and would answer.
        scene.replace(&Slice::both("s", PORT, TARGET, &[Endpoint::ready(old)]))?;
        for sender in &mut senders {
            sender.until("not served", |outcome| {
                outcome.is_err() && !is_ended(outcome)
            })?;
        }
        ensure_aborted(&senders, what)?;
        scene.replace(&ready(&[new]))?;
        for sender in &mut senders {
            sender.until_served_by(new, what)?;
        }
    }
    Ok(())
}

// semantics 17.2.e
fn endpoint_port_changed(scene: &Scene, what: &str) -> Result<()> {
    let [near, _] = near_and_far(&scene.world);
    let mut servers = Vec::new();
    for ip in Ip::BOTH {
        servers.push(Server::start(near, ip, Proto::Udp, OTHER_TARGET)?);
    }
    let mut senders = senders_to(scene, near, what)?;
    scene.replace(&objects_at(OTHER_TARGET, &[Endpoint::ready(near)]))?;
    for sender in &mut senders {
        sender.until("served at the other port", |outcome| {
            outcome
                .as_ref()
                .is_ok_and(|answer| answer.seen_local.port() == OTHER_TARGET)
        })?;
        sender.still_served_by(near, what)?;
    }
    ensure_aborted(&senders, what)
}

// semantics 17.2.f, 17.6
fn frontend_added_while_senders_send(scene: &Scene, what: &str) -> Result<()> {
    let [near, _] = near_and_far(&scene.world);
    let mut bare = vec![
        ServiceManifest::new("s", &cluster_ips(1))
            .both(PORT)
            .build(),
    ];
    bare.extend(Slice::both("s", PORT, TARGET, &[Endpoint::ready(near)]));
    scene.replace(&bare)?;
    let mut senders = senders(&scene.world);
    senders.retain(|sender| sender.kind != CONNECTED && sender.dial.destination().port() != PORT);
    for sender in &mut senders {
        sender.until("not served", Result::is_err)?;
    }
    scene.replace(&ready(&[near]))?;
    for sender in &mut senders {
        sender.until_served_by(near, what)?;
    }
    ensure_none_aborted(&senders, what)
}

/// Two Services that live on. The frontends outside the cluster are one's, then the other's, then nobody's.
// semantics 17.3, 17.6
fn frontend_changes_hands_while_its_old_owner_lives(scene: &Scene, what: &str) -> Result<()> {
    let places = near_and_far(&scene.world);
    let owned_by = |owner: Option<usize>| {
        let mut objects = Vec::new();
        for (number, pod) in places.into_iter().enumerate() {
            let name = ["s", "t"][number];
            let mut service = ServiceManifest::new(name, &cluster_ips([1, 2][number])).both(PORT);
            if owner == Some(number) {
                service = service
                    .node_port(NODE_PORT)
                    .load_balancer(&external_ips(21))
                    .external_ips(&external_ips(11));
            }
            objects.push(service.build());
            objects.extend(Slice::both(name, PORT, TARGET, &[Endpoint::ready(pod)]));
        }
        objects
    };
    scene.replace(&owned_by(Some(0)))?;
    let mut senders = senders(&scene.world);
    let cluster = Ip::BOTH.map(|ip| cluster_ip(ip, 1));
    senders.retain(|sender| !cluster.contains(&sender.dial.destination().ip()));
    for sender in &mut senders {
        sender.until_served_by(places[0], what)?;
        sender.aborted = 0;
    }
    scene.replace(&owned_by(Some(1)))?;
    for sender in &mut senders {
        sender.until_served_by(places[1], what)?;
    }
    ensure_aborted(&senders, what)?;
    scene.replace(&owned_by(None))?;
    for sender in &mut senders {
        sender.until("not served", |outcome| {
            outcome.is_err() && !is_ended(outcome)
        })?;
    }
    Ok(())
}

// semantics 17.2.g, 28.12
fn endpoint_becomes_ready_late(scene: &Scene, what: &str) -> Result<()> {
    let [near, far] = near_and_far(&scene.world);
    let mut senders = senders_to(scene, near, what)?;
    scene.replace(&objects(&[Endpoint::unready(near), Endpoint::unready(far)]))?;
    for sender in &mut senders {
        sender.until_refused(what)?;
    }
    ensure_aborted(&senders, what)?;
    scene.replace(&objects(&[Endpoint::unready(near), Endpoint::ready(far)]))?;
    for sender in &mut senders {
        sender.until_served_by(far, what)?;
    }
    Ok(())
}

/// Semantics 17.2.h, 17.4: the endpoint of the other node serves, but not those whom a policy keeps here.
fn local_endpoint_replaced_beside_remote_ones(scene: &Scene, what: &str) -> Result<()> {
    let [near, far] = near_and_far(&scene.world);
    let successor = scene.world.a().pod(2);
    let local = |endpoints: &[Endpoint<'_>]| {
        let mut objects = vec![service().internal_local().external_local().build()];
        objects.extend(Slice::both("s", PORT, TARGET, endpoints));
        objects
    };
    // Alone at first: a flow that an earlier state gave to another endpoint comes here.
    scene.replace(&local(&[Endpoint::ready(near)]))?;
    let mut senders = senders(&scene.world);
    // Inside a cluster externalTrafficPolicy keeps nobody here.
    senders.retain(|sender| {
        let to = sender.dial.destination().ip();
        sender.kind == "outside" || Ip::BOTH.iter().any(|ip| to == cluster_ip(*ip, 1))
    });
    for sender in &mut senders {
        sender.until_served_by(near, what)?;
        sender.aborted = 0;
    }
    scene.replace(&local(&[Endpoint::ready(near), Endpoint::ready(far)]))?;
    for sender in &mut senders {
        sender.still_served_by(near, what)?;
    }
    scene.replace(&local(&[Endpoint::ready(far)]))?;
    for sender in &mut senders {
        sender.until("not served", |outcome| {
            outcome.is_err() && !is_ended(outcome)
        })?;
    }
    ensure_aborted(&senders, what)?;
    scene.replace(&local(&[Endpoint::ready(far), Endpoint::ready(successor)]))?;
    for sender in &mut senders {
        sender.until_served_by(successor, what)?;
    }
    Ok(())
}

// semantics 17.4, 28.14
fn terminating_endpoint_and_policy_keep_flows(scene: &Scene, what: &str) -> Result<()> {
    let [near, far] = near_and_far(&scene.world);
    let mut senders = senders_to(scene, far, what)?;
    let mut local = vec![service().internal_local().external_local().build()];
    let endpoints = [Endpoint::ready(far), Endpoint::ready(near)];
    local.extend(Slice::both("s", PORT, TARGET, &endpoints));
    let leaving = objects(&[Endpoint::terminating(far, true), Endpoint::ready(near)]);
    for change in [local, leaving] {
        scene.replace(&change)?;
        // The change is in force once a new flow is not the old endpoint's.
        for ip in Ip::BOTH {
            let dial = Dial::udp(scene.world.a().pod(0), (cluster_ip(ip, 1), PORT).into());
            for _ in 0..5 {
                scene.until(what, dial, |outcome| {
                    outcome
                        .as_ref()
                        .is_ok_and(|answer| answer.server == near.name)
                })?;
            }
        }
        let since = Instant::now();
        while since.elapsed() < AGENT_LOOKS {
            for sender in &mut senders {
                sender.still_served_by(far, what)?;
            }
        }
        ensure_none_aborted(&senders, what)?;
    }
    Ok(())
}

// semantics 17.5
fn foreign_flows_are_left_alone(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let [near, far] = near_and_far(world);
    let host = &world.a().host;
    let mut servers = Vec::new();
    let mut foreign = Vec::new();
    for ip in Ip::BOTH {
        // The number of a NodePort at an address that is no node's.
        servers.push(Server::start(&world.client, ip, Proto::Udp, NODE_PORT)?);
        servers.push(Server::start(far, ip, Proto::Udp, OTHER_TARGET)?);
        for (server, to) in [
            (&world.client, world.client.at(ip, NODE_PORT)),
            // An endpoint's address and port, dialled by itself.
            (far, far.at(ip, TARGET)),
            (far, far.at(ip, OTHER_TARGET)),
        ] {
            foreign.push((server, Sender::new(CONNECTED, Dial::udp(host, to))));
        }
        let pod = world.a().pod(0);
        foreign.push((far, Sender::new("pod", Dial::udp(pod, far.at(ip, TARGET)))));
    }
    let mut translated = senders_to(scene, far, what)?;
    for (server, sender) in &mut foreign {
        sender.until_served_by(server, what)?;
    }
    for endpoints in [[near].as_slice(), &[]] {
        scene.replace(&ready(endpoints))?;
        for sender in &mut translated {
            match endpoints {
                [server] => sender.until_served_by(server, what)?,
                _ => sender.until_refused(what)?,
            }
        }
        for (server, sender) in &mut foreign {
            sender.still_served_by(server, what)?;
            ensure!(sender.aborted == 0, "{sender}: ended, {what}");
        }
    }
    Ok(())
}

/// Semantics 17.7, 28.13, 17.6 for what went while no agent ran.
fn restart_keeps_good_flows_and_ends_those_whose_endpoint_went_meanwhile() -> Result<()> {
    let mut scene = Scene::start(&Variant::plain(), |world| ready(&near_and_far(world)))?;
    let [near, far] = near_and_far(&scene.world);
    let mut senders = senders(&scene.world);
    let mut answers = Vec::new();
    for sender in &mut senders {
        answers.push(sender.ask().with_context(|| sender.to_string())?);
    }
    scene.a.terminate()?;
    scene.a.start_again()?;
    let since = Instant::now();
    while since.elapsed() < AGENT_LOOKS {
        for (sender, first) in senders.iter_mut().zip(&answers) {
            let answer = sender.ask().with_context(|| sender.to_string())?;
            ensure!(
                (&answer.server, answer.seen_peer) == (&first.server, first.seen_peer),
                "{sender}: {answer:?} instead of {first:?}"
            );
        }
    }
    ensure_none_aborted(&senders, "restart")?;

    scene.a.terminate()?;
    scene
        .manifests
        .write("services.json", &list(&ready(&[far])))?;
    scene.a.start_again()?;
    for (sender, first) in senders.iter_mut().zip(&answers) {
        sender.until_served_by(far, "after a change without an agent")?;
        let moved = sender.kind == CONNECTED && first.server == near.name;
        ensure!(
            sender.aborted == usize::from(moved),
            "{sender}: ended {} times",
            sender.aborted
        );
    }
    Ok(())
}
