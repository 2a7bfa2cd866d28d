//! A table of cases, played by our agent and by the real kube-proxy in equal worlds that follow one API server.
//!
//! Every [`Point`] (who dials what of which Service) ends in an [`Outcome`]: the backends that answer, each with the
//! source that it saw, or how the dial fails. What differs between two subjects must have a named explanation.

mod explain;
mod page;
mod subject;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    echo::{Dial, Failure, Proto},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{TARGET, cluster_ip, cluster_ips, external_ip, external_ips},
    topology::{Ip, Place, World},
};

pub use explain::{Difference, Entry, entries, explanation};
pub use page::{page, replace_generated};
pub use subject::{Kind, Subject};

/// Port of every Service of the table.
pub const PORT: u16 = 80;
/// A port that no Service defines.
const UNDEFINED_PORT: u16 = 81;
/// How long a dial may take before it counts as dropped. A lost SYN is sent again after a second.
pub const SILENCE: Duration = Duration::from_millis(1200);
/// The same where a difference is looked at again.
pub const LONG_SILENCE: Duration = Duration::from_millis(2500);
/// Threads for each source of each subject: most of them wait for silence.
const DIALS: usize = 3;
/// Even choices among two backends miss one of them once in a million.
const TRIES: usize = 21;

/// Who dials.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// The pod a2, which is a backend in some cases.
    PodA,
    /// A process of node-a.
    HostA,
    /// The client outside the cluster, whose way to Service addresses leads over node-a.
    Outside,
    /// The pod b2.
    PodB,
    /// A process of node-b.
    HostB,
}

impl Source {
    /// All.
    pub const ALL: [Source; 5] = [
        Source::PodA,
        Source::HostA,
        Source::Outside,
        Source::PodB,
        Source::HostB,
    ];

    fn place(self, world: &World) -> &Place {
        match self {
            Source::PodA => world.a().pod(0),
            Source::HostA => &world.a().host,
            Source::Outside => &world.client,
            Source::PodB => world.b().pod(0),
            Source::HostB => &world.b().host,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Source::PodA => "pod a2",
            Source::HostA => "process of node-a",
            Source::Outside => "outside",
            Source::PodB => "pod b2",
            Source::HostB => "process of node-b",
        }
    }

    /// Name of its place.
    pub fn place_name(self) -> &'static str {
        match self {
            Source::PodA => "a2",
            Source::HostA => "node-a",
            Source::Outside => "client",
            Source::PodB => "b2",
            Source::HostB => "node-b",
        }
    }

    /// Whether it is a pod.
    pub fn is_pod(self) -> bool {
        matches!(self, Source::PodA | Source::PodB)
    }

    /// Whether it is a process of a node.
    pub fn is_host(self) -> bool {
        matches!(self, Source::HostA | Source::HostB)
    }
}

/// What is dialled.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Frontend {
    /// The ClusterIP.
    ClusterIp,
    /// The NodePort at node-a.
    NodePortA,
    /// The NodePort at node-b.
    NodePortB,
    /// An external IP.
    ExternalIp,
    /// A load-balancer address.
    LoadBalancer,
    /// A port of the ClusterIP that the Service does not define.
    UndefinedPort,
}

impl Frontend {
    /// All.
    pub const ALL: [Frontend; 6] = [
        Frontend::ClusterIp,
        Frontend::NodePortA,
        Frontend::NodePortB,
        Frontend::ExternalIp,
        Frontend::LoadBalancer,
        Frontend::UndefinedPort,
    ];

    fn addr(self, world: &World, number: u8, ip: Ip) -> SocketAddr {
        let (addr, port): (IpAddr, u16) = match self {
            Frontend::ClusterIp => (cluster_ip(ip, number), PORT),
            Frontend::NodePortA => (world.a().host.addr(ip), node_port(number)),
            Frontend::NodePortB => (world.b().host.addr(ip), node_port(number)),
            Frontend::ExternalIp => (external_ip(ip, number), PORT),
            Frontend::LoadBalancer => (external_ip(ip, number + VIPS), PORT),
            Frontend::UndefinedPort => (cluster_ip(ip, number), UNDEFINED_PORT),
        };
        (addr, port).into()
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Frontend::ClusterIp => "ClusterIP",
            Frontend::NodePortA => "NodePort of node-a",
            Frontend::NodePortB => "NodePort of node-b",
            Frontend::ExternalIp => "externalIP",
            Frontend::LoadBalancer => "load-balancer address",
            Frontend::UndefinedPort => "undefined port of the ClusterIP",
        }
    }

    /// Whether the external traffic policy is in force.
    pub fn is_external(self) -> bool {
        !matches!(self, Frontend::ClusterIp | Frontend::UndefinedPort)
    }

    /// Whether it is the NodePort at the source's own node.
    pub fn is_own_node_port(self, source: Source) -> bool {
        match self {
            Frontend::NodePortA => matches!(source, Source::PodA | Source::HostA),
            Frontend::NodePortB => matches!(source, Source::PodB | Source::HostB),
            _ => false,
        }
    }

    /// Whether it is the NodePort at the other node.
    pub fn is_other_node_port(self, source: Source) -> bool {
        matches!(self, Frontend::NodePortA | Frontend::NodePortB)
            && source != Source::Outside
            && !self.is_own_node_port(source)
    }
}

/// Number of a Service's load-balancer address is the Service's and this.
const VIPS: u8 = 100;
/// Number of the first Service; the API server's own has lower ones.
const FIRST: u8 = 10;

fn node_port(number: u8) -> u16 {
    30_000 + u16::from(number)
}

/// Traffic policies of a Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Policies {
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
}

impl Policies {
    const ALL: [Policies; 4] = [
        Policies::new(false, false),
        Policies::new(true, false),
        Policies::new(false, true),
        Policies::new(true, true),
    ];

    const fn new(external_local: bool, internal_local: bool) -> Policies {
        Policies {
            external_local,
            internal_local,
        }
    }
}

impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |local| if local { "Local" } else { "Cluster" };
        write!(
            f,
            "external {}, internal {}",
            name(self.external_local),
            name(self.internal_local)
        )
    }
}

/// Which endpoints a Service has, and in what condition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Condition {
    /// a3 and b3 are ready.
    Both,
    /// a3 is ready.
    OnlyA,
    /// b3 is ready.
    OnlyB,
    /// a2, which dials, too, is ready.
    Hairpin,
    /// a3 and b3 terminate and serve.
    Terminating,
    /// a3 terminates and serves, b3 is ready.
    TerminatingA,
    /// a3 terminates and does not serve.
    TerminatingUnserving,
    /// a3 is not ready.
    Unready,
    /// There is none.
    None,
    /// The host of node-a is ready.
    HostOfA,
    /// a3 is ready and its slice names no node.
    Nowhere,
}

impl Condition {
    const ALL: [Condition; 11] = [
        Condition::Both,
        Condition::OnlyA,
        Condition::OnlyB,
        Condition::Hairpin,
        Condition::Terminating,
        Condition::TerminatingA,
        Condition::TerminatingUnserving,
        Condition::Unready,
        Condition::None,
        Condition::HostOfA,
        Condition::Nowhere,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Both => "a3 and b3 ready",
            Condition::OnlyA => "only a3 ready",
            Condition::OnlyB => "only b3 ready",
            Condition::Hairpin => "only a2 ready",
            Condition::Terminating => "a3 and b3 terminating",
            Condition::TerminatingA => "a3 terminating, b3 ready",
            Condition::TerminatingUnserving => "a3 terminating, not serving",
            Condition::Unready => "a3 not ready",
            Condition::None => "no endpoint",
            Condition::HostOfA => "the host of node-a ready",
            Condition::Nowhere => "a3 ready, on no node",
        }
    }

    fn endpoints(self, world: &World) -> Vec<Endpoint<'_>> {
        let (a2, a3, b3) = (world.a().pod(0), world.a().pod(1), world.b().pod(1));
        match self {
            Condition::Both => vec![Endpoint::ready(a3), Endpoint::ready(b3)],
            Condition::OnlyA => vec![Endpoint::ready(a3)],
            Condition::OnlyB => vec![Endpoint::ready(b3)],
            Condition::Hairpin => vec![Endpoint::ready(a2)],
            Condition::Terminating => vec![
                Endpoint::terminating(a3, true),
                Endpoint::terminating(b3, true),
            ],
            Condition::TerminatingA => {
                vec![Endpoint::terminating(a3, true), Endpoint::ready(b3)]
            }
            Condition::TerminatingUnserving => vec![Endpoint::terminating(a3, false)],
            Condition::Unready => vec![Endpoint::unready(a3)],
            Condition::None => vec![],
            Condition::HostOfA => vec![Endpoint::ready(&world.a().host)],
            Condition::Nowhere => vec![Endpoint::ready(a3).nowhere()],
        }
    }

    /// Whether more than one backend may answer.
    fn has_choice(self) -> bool {
        matches!(
            self,
            Condition::Both | Condition::Terminating | Condition::TerminatingA
        )
    }
}

/// One Service of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Combination {
    number: u8,
    /// Its endpoints.
    pub condition: Condition,
    /// Its policies.
    pub policies: Policies,
    /// `loadBalancerSourceRanges` admits the pods of node-a only.
    pub has_ranges: bool,
}

impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.condition.name(), self.policies)?;
        if self.has_ranges {
            write!(f, ", source ranges")?;
        }
        Ok(())
    }
}

/// The table.
pub fn cases() -> Vec<Combination> {
    let mut cases = Vec::new();
    let mut add = |condition, policies, has_ranges| {
        let number = FIRST + u8::try_from(cases.len()).unwrap_or(u8::MAX - FIRST);
        cases.push(Combination {
            number,
            condition,
            policies,
            has_ranges,
        });
    };
    for condition in Condition::ALL {
        for policies in Policies::ALL {
            // The policies act apart from each other (10.4): mixed ones are tried where they matter most.
            let is_mixed = policies.external_local != policies.internal_local;
            if !is_mixed || matches!(condition, Condition::OnlyB | Condition::TerminatingA) {
                add(condition, policies, false);
            }
        }
    }
    for condition in [Condition::Both, Condition::None] {
        for external_local in [false, true] {
            add(condition, Policies::new(external_local, false), true);
        }
    }
    cases
}

/// Services and slices of the table. The world gives addresses only, which are the same in all worlds.
pub fn objects(cases: &[Combination], world: &World) -> Vec<Value> {
    let mut objects = Vec::new();
    for case in cases {
        let name = format!("case-{}", case.number);
        let mut service = ServiceManifest::new(&name, &cluster_ips(case.number))
            .both(PORT)
            .load_balancer(&external_ips(case.number + VIPS))
            .node_port(node_port(case.number))
            .external_ips(&external_ips(case.number));
        if case.policies.external_local {
            service = service.external_local();
        }
        if case.policies.internal_local {
            service = service.internal_local();
        }
        if case.has_ranges {
            service = service.source_ranges(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
        }
        objects.push(service.build());
        let endpoints = case.condition.endpoints(world);
        if !endpoints.is_empty() {
            objects.extend(Slice::both(&name, PORT, TARGET, &endpoints));
        }
    }
    objects
}

/// Who dials what of which Service, how.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Point {
    /// The Service.
    pub case: Combination,
    /// Who dials.
    pub source: Source,
    /// What is dialled.
    pub frontend: Frontend,
    /// By which family.
    pub ip: IpOrd,
    /// By TCP or UDP.
    pub udp: bool,
}

/// A family with an order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum IpOrd {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpOrd {
    fn family(self) -> Ip {
        match self {
            IpOrd::V4 => Ip::V4,
            IpOrd::V6 => Ip::V6,
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} → {} [{}] {:?} {}",
            self.source.name(),
            self.frontend.name(),
            self.case,
            self.ip,
            if self.udp { "UDP" } else { "TCP" }
        )
    }
}

/// Every point of the table.
pub fn points(cases: &[Combination]) -> Vec<Point> {
    let mut points = Vec::new();
    for case in cases {
        for source in Source::ALL {
            for frontend in Frontend::ALL {
                let is_told = case.condition == Condition::Both && !case.has_ranges
                    || case.condition == Condition::None;
                if frontend == Frontend::UndefinedPort && !is_told {
                    continue;
                }
                for ip in [IpOrd::V4, IpOrd::V6] {
                    for udp in [false, true] {
                        points.push(Point {
                            case: *case,
                            source,
                            frontend,
                            ip,
                            udp,
                        });
                    }
                }
            }
        }
    }
    points
}

/// Everything that dials of one point came to: `a3 sees client`, `refused`, `dropped`.
pub type Outcome = BTreeSet<String>;

/// Plays every point in every subject. The result is in the subjects' order.
pub fn play(
    subjects: &[Subject],
    points: &[Point],
    silence: Duration,
) -> Vec<BTreeMap<Point, Outcome>> {
    let results: Vec<Mutex<BTreeMap<Point, Outcome>>> =
        subjects.iter().map(|_| Mutex::default()).collect();
    thread::scope(|scope| {
        for (subject, result) in subjects.iter().zip(&results) {
            for source in Source::ALL {
                let mine: Vec<Point> = points
                    .iter()
                    .filter(|point| point.source == source)
                    .copied()
                    .collect();
                for part in mine.chunks(mine.len().div_ceil(DIALS).max(1)) {
                    let part = part.to_vec();
                    scope.spawn(move || {
                        // Sockets are then made on this thread.
                        if let Err(error) = source.place(&subject.world).ns.enter() {
                            eprintln!("{error:#}");
                        }
                        for point in part {
                            let outcome = dial(subject, &point, silence);
                            result
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .insert(point, outcome);
                        }
                    });
                }
            }
        }
    });
    results
        .into_iter()
        .map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner))
        .collect()
}

fn dial(subject: &Subject, point: &Point, silence: Duration) -> Outcome {
    let world = &subject.world;
    let from = point.source.place(world);
    let to = point
        .frontend
        .addr(world, point.case.number, point.ip.family());
    let proto = if point.udp { Proto::Udp } else { Proto::Tcp };
    let mut outcome = Outcome::new();
    let (mut failures, mut backends) = (0, BTreeSet::new());
    let has_choice = point.case.condition.has_choice();
    for _ in 0..if has_choice { TRIES } else { 1 } {
        // No client port is used twice: what an old connection leaves behind is no part of the table.
        let port = subject.next_port(point.source);
        let dial = Dial::new(from, proto, to).source_port(port);
        match dial.timeout(silence).ask() {
            Ok(answer) => {
                let seen = seen(world, answer.seen_peer.ip());
                outcome.insert(format!("{} sees {seen}", answer.server));
                backends.insert(answer.server);
            }
            Err(failure) => {
                outcome.insert(failed(&failure));
                failures += 1;
            }
        }
        // No case has more than two.
        if failures == 2 || backends.len() == 2 {
            break;
        }
    }
    outcome
}

fn failed(failure: &Failure) -> String {
    match failure {
        Failure::Refused => "refused".into(),
        // A denied call stands for a dropped packet.
        Failure::TimedOut | Failure::NotPermitted => "dropped".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Whose address it is.
fn seen(world: &World, addr: IpAddr) -> String {
    let places = std::iter::once(&world.client).chain(
        world
            .nodes
            .iter()
            .flat_map(|node| std::iter::once(&node.host).chain(&node.pods)),
    );
    places
        .into_iter()
        .find(|place| place.addr(Ip::of(addr)) == addr)
        .map_or_else(|| addr.to_string(), |place| place.name.clone())
}

/// An outcome on one line.
pub fn shown(outcome: &Outcome) -> String {
    outcome.iter().cloned().collect::<Vec<_>>().join(", ")
}
