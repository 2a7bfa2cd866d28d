//! A world with a server in every pod, agents on both nodes and the Services of a test.

use std::{net::IpAddr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    agent::{Agent, AgentOptions},
    echo::{Answer, Dial, Failure, Outcome, Proto, Server},
    manifest::{self, ManifestDir},
    requires::Need,
    topology::{Ip, Place, World, WorldOptions},
    trials::{Shared, Trial, trial},
    wait,
};

/// Port that every pod serves by both protocols of both families.
pub const TARGET: u16 = 8080;
/// How long a test waits for an answer that must not come.
pub const SILENCE: Duration = Duration::from_millis(400);
/// How long a change may take to show, on a busy machine.
pub const SOON: Duration = Duration::from_secs(10);

/// ClusterIP by number.
pub fn cluster_ip(ip: Ip, number: u8) -> IpAddr {
    match ip {
        Ip::V4 => [10, 96, 0, number].into(),
        Ip::V6 => [0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(number)].into(),
    }
}

/// ClusterIPs of both families by number.
pub fn cluster_ips(number: u8) -> [IpAddr; 2] {
    Ip::BOTH.map(|ip| cluster_ip(ip, number))
}

/// Address outside the cluster that the client routes to node-a, by number: for externalIPs and
/// load-balancer addresses.
pub fn external_ip(ip: Ip, number: u8) -> IpAddr {
    match ip {
        Ip::V4 => [198, 51, 100, number].into(),
        Ip::V6 => [0x2001, 0xdb8, 2, 0, 0, 0, 0, u16::from(number)].into(),
    }
}

/// The same of both families.
pub fn external_ips(number: u8) -> [IpAddr; 2] {
    Ip::BOTH.map(|ip| external_ip(ip, number))
}

/// A world and how the agents in it run.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The world.
    pub world: WorldOptions,
    /// The agents.
    pub agent: AgentOptions,
}

impl Variant {
    /// Routed pods, offloads on, no XDP.
    pub fn plain() -> Variant {
        Variant {
            world: WorldOptions::default(),
            agent: AgentOptions::default(),
        }
    }
    /// Pods on a bridge, offloads on, no XDP.
    pub fn bridge() -> Variant {
        Variant {
            world: WorldOptions::default().bridge(),
            agent: AgentOptions::default(),
        }
    }
    /// Routed pods, offloads off, no XDP.
    pub fn without_offloads() -> Variant {
        Variant {
            world: WorldOptions::default().without_offloads(),
            agent: AgentOptions::default(),
        }
    }
    /// Routed pods, offloads off, XDP in native mode.
    pub fn native() -> Variant {
        Variant {
            world: WorldOptions::default().without_offloads(),
            agent: AgentOptions::native(),
        }
    }
    /// Pods on a bridge, offloads off, XDP in native mode.
    pub fn native_bridge() -> Variant {
        Variant {
            world: WorldOptions::default().bridge().without_offloads(),
            agent: AgentOptions::native(),
        }
    }
    /// All of the above.
    pub fn all() -> [Variant; 5] {
        [
            Variant::plain(),
            Variant::bridge(),
            Variant::without_offloads(),
            Variant::native(),
            Variant::native_bridge(),
        ]
    }
    /// With one more agent flag.
    pub fn flag(mut self, flag: &str) -> Variant {
        self.agent = self.agent.flag(flag);
        self
    }
    /// In a few words.
    pub fn describe(&self) -> String {
        let offloads = if self.world.offloads { "on" } else { "off" };
        format!(
            "{:?} pods, offloads {offloads}, xdp {}, {:?}",
            self.world.pods, self.agent.xdp, self.agent.flags
        )
    }
}

/// World, servers, manifests and agents. Dropped in the order of the fields.
#[derive(Debug)]
pub struct Scene {
    /// Agent of node-a.
    pub a: Agent,
    /// Agent of node-b.
    pub b: Agent,
    /// What both follow.
    pub manifests: ManifestDir,
    /// Servers of all pods.
    pub servers: Vec<Server>,
    /// The world.
    pub world: World,
    xdp: bool,
}

impl Scene {
    /// Builds the world, serves [`TARGET`] in every pod, and starts both agents on `objects` and the
    /// two Nodes; returns when both are ready.
    pub fn start(variant: &Variant, objects: impl FnOnce(&World) -> Vec<Value>) -> Result<Scene> {
        let world = World::new(variant.world)?;
        let mut servers = Vec::new();
        for pod in world.nodes.iter().flat_map(|node| &node.pods) {
            servers.extend(Server::start_all(pod, TARGET)?);
        }
        let manifests = ManifestDir::new()?;
        manifests.write(
            "nodes.json",
            &manifest::list(
                &world
                    .nodes
                    .each_ref()
                    .map(|node| manifest::node(&node.host, None)),
            ),
        )?;
        manifests.write("services.json", &manifest::list(&objects(&world)))?;
        let mut a = Agent::prepare(world.a(), &manifests, variant.agent.clone())?;
        let mut b = Agent::prepare(world.b(), &manifests, variant.agent.clone())?;
        a.run()?;
        b.run()?;
        a.wait_ready()?;
        b.wait_ready()?;
        Ok(Scene {
            a,
            b,
            manifests,
            servers,
            world,
            xdp: variant.agent.xdp != "off",
        })
    }

    /// Whether the agents use XDP.
    pub fn xdp(&self) -> bool {
        self.xdp
    }

    /// Replaces the Services and slices in one step.
    pub fn replace(&self, objects: &[Value]) -> Result<()> {
        self.manifests
            .write("services.json", &manifest::list(objects))?;
        Ok(())
    }

    /// Dials until the outcome is as wanted: for what follows a change.
    pub fn until(
        &self,
        what: &str,
        dial: Dial<'_>,
        wanted: impl Fn(&Outcome) -> bool,
    ) -> Result<()> {
        let dial = dial.timeout(SILENCE);
        wait::until(what, SOON, || {
            let outcome = dial.ask();
            ensure!(wanted(&outcome), "{outcome:?}");
            Ok(())
        })
    }
}

/// A test in a scene that several share, in any order: the scene, and the variant in words.
pub type SceneTest = fn(&Scene, &str) -> Result<()>;

/// A variant of a scene, and its name in the names of tests.
pub type NamedVariant = (&'static str, fn() -> Variant);

/// What an agent of a scene, its programs and its hooks need.
pub const NEEDS: &[Need] = &[Need::Root, Need::Bpf, Need::Cgroup2];

/// Each test in a scene of each variant, as `VARIANT::TEST`. An agent's start costs more than most tests, so those of a
/// variant share a scene, one after the other.
pub fn trials(
    variants: &[NamedVariant],
    objects: fn(&World) -> Vec<Value>,
    tests: &[(&str, SceneTest)],
) -> Vec<Trial> {
    let mut trials = Vec::new();
    // Neighbours in the list are of different scenes, at least as many as there are threads, so that none waits for one
    // that another uses; and not all at once, for the memory of their agents.
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let groups = (variants.len() / threads).max(1);
    for variants in variants.chunks(variants.len().div_ceil(groups)) {
        let scenes: Vec<_> = variants
            .iter()
            .map(|(_, variant)| {
                let variant = *variant;
                Shared::new(move || Scene::start(&variant(), objects))
            })
            .collect();
        for (test_name, test) in tests {
            for ((variant_name, variant), scene) in variants.iter().zip(&scenes) {
                let (test, variant, scene) = (*test, *variant, scene.clone());
                let name = format!("{variant_name}::{test_name}");
                trials.push(trial(name, NEEDS, move || {
                    scene.with(|scene| test(scene, &variant().describe()))
                }));
            }
        }
    }
    trials
}

/// [`trials`] by name: `scenes!(objects, [plain, native], [a_test, another])`.
#[macro_export]
macro_rules! scenes {
    ($objects:expr, [$($variant:ident),+ $(,)?], [$($test:ident),+ $(,)?] $(,)?) => {
        $crate::scene::trials(
            &[$((stringify!($variant), $crate::scene::Variant::$variant)),+],
            $objects,
            &[$((stringify!($test), $test)),+],
        )
    };
}

/// What a dial to a frontend must come to.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// The backend sees the client's own address and port.
    Client,
    /// The backend sees this place's address.
    As(&'a Place),
    /// The source is not part of the case.
    Anyone,
}

/// Dials and checks that the answer comes from one of `servers`, from the address dialled, and that
/// the backend saw the source that it must see. For UDP both kinds of socket are tried.
pub fn expect(
    what: &str,
    from: &Place,
    proto: Proto,
    to: (IpAddr, u16),
    servers: &[&Place],
    seen: Seen<'_>,
) -> Result<Answer> {
    let dial = Dial::new(from, proto, to.into());
    let mut answer = check(what, dial, servers, seen)?;
    if proto == Proto::Udp {
        answer = check(
            &format!("{what}, unconnected"),
            dial.unconnected(),
            servers,
            seen,
        )?;
    }
    Ok(answer)
}

/// The same for one dial.
pub fn check(what: &str, dial: Dial<'_>, servers: &[&Place], seen: Seen<'_>) -> Result<Answer> {
    let what = format!("{what}: {dial}");
    let to = dial.destination();
    let ip = Ip::of(to.ip());
    let answer = dial.ask().with_context(|| what.clone())?;
    let server = servers.iter().find(|server| server.name == answer.server);
    let Some(server) = server else {
        anyhow::bail!(
            "{what}: answered by {}, which is no backend of it",
            answer.server
        );
    };
    ensure!(
        answer.peer == to,
        "{what}: the answer came from {}",
        answer.peer
    );
    ensure!(
        answer.seen_local.ip() == server.addr(ip),
        "{what}: reached as {}",
        answer.seen_local
    );
    match seen {
        Seen::Client => {
            let from = dial.origin().addr(ip);
            ensure!(
                answer.seen_peer.ip() == from,
                "{what}: seen as {} instead of {from}",
                answer.seen_peer
            );
            ensure!(
                answer.seen_peer.port() == answer.local.port(),
                "{what}: seen as {} instead of port {}",
                answer.seen_peer,
                answer.local.port()
            );
        }
        Seen::As(place) => {
            let addr = place.addr(ip);
            ensure!(
                answer.seen_peer.ip() == addr,
                "{what}: seen as {} instead of {addr}",
                answer.seen_peer
            );
        }
        Seen::Anyone => {}
    }
    Ok(answer)
}

/// Dials until every one of `servers` has answered, and no other.
pub fn expect_all(
    what: &str,
    from: &Place,
    proto: Proto,
    to: (IpAddr, u16),
    servers: &[&Place],
    seen: Seen<'_>,
) -> Result<()> {
    let mut missing: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
    // 200 even choices among at most six miss one of them once in 10^15 runs.
    for _ in 0..200 {
        let answer = check(what, Dial::new(from, proto, to.into()), servers, seen)?;
        missing.retain(|name| *name != answer.server);
        if missing.is_empty() {
            return Ok(());
        }
    }
    anyhow::bail!("{what}: {missing:?} never answered")
}

/// Dials and checks that it fails in this way.
pub fn expect_failure(
    what: &str,
    from: &Place,
    proto: Proto,
    to: (IpAddr, u16),
    failure: &Failure,
) -> Result<()> {
    let dial = Dial::new(from, proto, to.into());
    let dial = if *failure == Failure::TimedOut {
        dial.timeout(SILENCE)
    } else {
        dial
    };
    let outcome = dial.ask();
    ensure!(
        outcome.as_ref() == Err(failure),
        "{what}: {dial}: {outcome:?} instead of {failure:?}"
    );
    Ok(())
}
