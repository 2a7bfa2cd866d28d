//! ObjectStore → what the dataplane is to hold. The decisions are pure functions, one file a chapter of the
//! semantics; [`Desired`] holds their results and works in proportion to what changed.

pub(crate) mod affinity;
pub(crate) mod conflict;
pub(crate) mod endpoints;
pub(crate) mod health;
pub(crate) mod node;
pub(crate) mod policy;
pub(crate) mod service;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod topology;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use self::{
    conflict::{Claim, Claims},
    health::HealthCheck,
    service::Context,
    state::{Change, Frontend, PortKey, ServicePort},
};
pub use self::{
    conflict::{Conflict, FrontendKey},
    node::{NodePortAddresses, NodeView},
};
use crate::kube::{
    objects::Key,
    store::{Dirty, ObjectStore},
};

/// A service port as it is served.
#[derive(Debug)]
struct Held {
    /// With the frontends that it won.
    port: Arc<ServicePort>,
    /// The frontends that it claims but another serves, sorted.
    lost: Vec<Frontend>,
    created_ns: Option<i128>,
}

impl Held {
    fn claimed(&self) -> Vec<Frontend> {
        let mut all = self.port.frontends.clone();
        all.extend(&self.lost);
        all.sort();
        all
    }
}

/// The desired state, kept up to date.
#[derive(Debug)]
pub struct Desired {
    context: Context,
    /// The service ports of each Service, sorted by key.
    services: HashMap<Key, Vec<Held>>,
    claims: Claims,
    problems: BTreeMap<Key, Vec<String>>,
    health_checks: BTreeMap<Key, HealthCheck>,
    /// Counts changes of `health_checks`.
    health_revision: u64,
}

impl Desired {
    /// An empty state for this node.
    pub fn new(node: NodeView) -> Self {
        Desired {
            context: Context::new(node),
            services: HashMap::new(),
            claims: Claims::default(),
            problems: BTreeMap::new(),
            health_checks: BTreeMap::new(),
            health_revision: 0,
        }
    }

    /// The node as it was last given.
    pub fn node(&self) -> &NodeView {
        &self.context.node
    }

    /// Takes what changed in the store. Every service port is in the result at most once: first
    /// those that are set, then those that are gone, each sorted by key. They are one step: a
    /// frontend may move from one port to another in it (semantics 21.3, 21.4).
    pub fn apply(&mut self, store: &ObjectStore, dirty: &Dirty) -> Vec<Change> {
        self.evaluate(store, dirty.services.iter())
    }

    /// Takes a new view of this node and evaluates again what depends on it (semantics 7.12).
    pub fn set_node(&mut self, store: &ObjectStore, node: NodeView) -> Vec<Change> {
        let context = Context::new(node);
        let old = std::mem::replace(&mut self.context, context);
        let new = &self.context;
        let same = old.node.name == new.node.name
            && old.node.zone == new.node.zone
            && old.node.object_addresses == new.node.object_addresses
            && old.node.allow_external_ips == new.node.allow_external_ips
            && old.node_ports == new.node_ports;
        if same {
            return Vec::new();
        }
        let all: Vec<Key> = store
            .services()
            .map(|service| service.key.clone())
            .collect();
        self.evaluate(store, all.iter())
    }

    /// Every service port, in no order.
    pub fn current(&self) -> impl Iterator<Item = &Arc<ServicePort>> {
        self.services.values().flatten().map(|held| &held.port)
    }

    /// The frontends that several service ports claim.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> + '_ {
        self.claims.conflicts()
    }

    /// What a person should know about Services that are served nevertheless.
    pub fn problems(&self) -> impl Iterator<Item = (&Key, &[String])> {
        self.problems
            .iter()
            .map(|(key, texts)| (key, texts.as_slice()))
    }

    /// What the `healthCheckNodePort` of Services is to answer.
    pub const fn health_checks(&self) -> &BTreeMap<Key, HealthCheck> {
        &self.health_checks
    }

    /// Another number whenever [`Desired::health_checks`] differs.
    pub const fn health_revision(&self) -> u64 {
        self.health_revision
    }

    fn evaluate<'a>(
        &mut self,
        store: &ObjectStore,
        keys: impl Iterator<Item = &'a Key>,
    ) -> Vec<Change> {
        let mut step = Step::default();
        for key in keys {
            let service = store.service(key);
            let new = service.map_or_else(Vec::new, |service| {
                service::ports(service, store.slices_of(key), &self.context)
            });
            let created_ns = service.and_then(|service| service.created_ns);
            self.note_problems(key, service.map_or_else(Vec::new, |s| service::problems(s)));
            let check =
                service.and_then(|s| health::check(s, store.slices_of(key), &self.context.node));
            self.note_health(key, check);
            self.replace(key, new, created_ns, &mut step);
        }
        self.settle(step)
    }

    /// Replaces the ports of a Service by `new`, which still has all the frontends that it claims.
    fn replace(
        &mut self,
        key: &Key,
        new: Vec<ServicePort>,
        created_ns: Option<i128>,
        step: &mut Step,
    ) {
        let old = self.services.remove(key).unwrap_or_default();
        for held in &old {
            let at = new.binary_search_by(|port| port.key.cmp(&held.port.key));
            let kept: &[Frontend] = match at {
                Ok(at) if created_ns == held.created_ns => &new[at].frontends,
                _ => &[],
            };
            for frontend in held
                .claimed()
                .iter()
                .filter(|f| kept.binary_search(f).is_err())
            {
                let frontend = conflict::key(frontend, held.port.key.name.protocol);
                self.claims.remove(frontend, &held.port.key);
                step.touched.insert(frontend);
            }
            if at.is_err() {
                step.removed.insert(held.port.key.clone());
            }
        }
        let mut replaced = Vec::with_capacity(new.len());
        let mut old = old.into_iter().peekable();
        for mut port in new {
            while old.next_if(|held| held.port.key < port.key).is_some() {}
            let before = old.next_if(|held| held.port.key == port.key);
            let unmoved = before.as_ref().filter(|held| held.created_ns == created_ns);
            let had = unmoved.map_or_else(Vec::new, Held::claimed);
            for frontend in port
                .frontends
                .iter()
                .filter(|f| had.binary_search(f).is_err())
            {
                let key = conflict::key(frontend, port.key.name.protocol);
                let claim = Claim {
                    kind: frontend.kind,
                    created_ns,
                    port: port.key.clone(),
                };
                self.claims.insert(key, claim);
                step.touched.insert(key);
            }
            // Frontends are told apart by the winners below; until then the port claims them all.
            let claimed = std::mem::take(&mut port.frontends);
            step.evaluated
                .insert(port.key.clone(), before.map(|held| (held.port, held.lost)));
            replaced.push(Held {
                port: Arc::new(port),
                lost: claimed,
                created_ns,
            });
        }
        if !replaced.is_empty() {
            self.services.insert(key.clone(), replaced);
        }
    }

    /// Gives each frontend to its winner and tells which ports differ from before.
    fn settle(&mut self, mut step: Step) -> Vec<Change> {
        // Ports that only won or lost a frontend of a Service that changed.
        for frontend in &step.touched {
            for port in self.claims.claimants(*frontend) {
                if !step.evaluated.contains_key(port)
                    && let Some(held) = find(&mut self.services, port)
                {
                    let before = (held.port.clone(), held.lost.clone());
                    step.evaluated.insert(port.clone(), Some(before));
                }
            }
        }
        let mut changes = Vec::with_capacity(step.evaluated.len() + step.removed.len());
        for (key, before) in step.evaluated {
            let Some(held) = find(&mut self.services, &key) else {
                continue;
            };
            let (won, lost): (Vec<Frontend>, Vec<Frontend>) =
                held.claimed().into_iter().partition(|frontend| {
                    self.claims
                        .winner(conflict::key(frontend, key.name.protocol))
                        == Some(&key)
                });
            let lost_before = before.as_ref().map_or(&[][..], |(_, lost)| lost);
            for frontend in lost
                .iter()
                .filter(|frontend| !lost_before.contains(frontend))
            {
                warn_lost(&self.claims, &key, frontend);
            }
            held.lost = lost;
            if held.port.frontends != won {
                Arc::make_mut(&mut held.port).frontends = won;
            }
            match before {
                Some((before, _)) if *before == *held.port => held.port = before,
                _ => changes.push(Change::Set(held.port.clone())),
            }
        }
        changes.extend(step.removed.into_iter().map(Change::Remove));
        changes
    }

    fn note_health(&mut self, key: &Key, check: Option<HealthCheck>) {
        let before = match check {
            Some(check) => self.health_checks.insert(key.clone(), check),
            None => self.health_checks.remove(key),
        };
        self.health_revision += u64::from(before != check);
    }

    fn note_problems(&mut self, key: &Key, problems: Vec<String>) {
        if problems.is_empty() {
            self.problems.remove(key);
        } else if self.problems.get(key) != Some(&problems) {
            for problem in &problems {
                tracing::warn!(service = %key, "{problem}");
            }
            self.problems.insert(key.clone(), problems);
        }
    }
}

/// A port as it was served, and the frontends that it had lost.
type Before = (Arc<ServicePort>, Vec<Frontend>);

/// What one step collects before frontends are given to their winners.
#[derive(Default)]
struct Step {
    /// Ports to look at, each as it was before.
    evaluated: BTreeMap<PortKey, Option<Before>>,
    removed: BTreeSet<PortKey>,
    /// Frontends whose claims changed.
    touched: BTreeSet<FrontendKey>,
}

fn find<'a>(services: &'a mut HashMap<Key, Vec<Held>>, port: &PortKey) -> Option<&'a mut Held> {
    let key = Key {
        namespace: port.name.namespace.clone(),
        name: port.name.service.clone(),
    };
    let ports = services.get_mut(&key)?;
    let at = ports
        .binary_search_by(|held| held.port.key.cmp(port))
        .ok()?;
    ports.get_mut(at)
}

fn warn_lost(claims: &Claims, loser: &PortKey, frontend: &Frontend) {
    if let Some(winner) = claims.winner(conflict::key(frontend, loser.name.protocol)) {
        tracing::warn!(
            "{}:{}/{} of {} stays with {}; give one of them another address or port",
            frontend.addr,
            frontend.port,
            loser.name.protocol.name(),
            loser.name,
            winner.name,
        );
    }
}
