//! Who serves a frontend that several service ports claim (semantics 14.12, 21.5, 21.7).

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use super::state::{Frontend, FrontendKindOrd, PortKey};
use crate::net::Protocol;

/// What a packet names: the key of a frontend (21.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FrontendKey {
    /// The dialled address.
    pub addr: IpAddr,
    /// The dialled port.
    pub port: u16,
    /// Its protocol: the same port of another one is another frontend.
    pub protocol: Protocol,
}

/// One service port's wish to serve a frontend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    /// As what it would serve it.
    pub kind: FrontendKindOrd,
    /// When its Service was created; one that does not tell counts as the newest.
    pub created_ns: Option<i128>,
    /// The service port.
    pub port: PortKey,
}

impl Claim {
    fn rank(&self) -> impl Ord + '_ {
        (self.kind, self.created_ns.unwrap_or(i128::MAX), &self.port)
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

/// A frontend with more than one claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// What several want to serve.
    pub frontend: FrontendKey,
    /// Who serves it.
    pub winner: PortKey,
    /// Who would, in the order in which they follow.
    pub losers: Vec<PortKey>,
}

/// All claims, the winner of each frontend first.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    by_frontend: HashMap<FrontendKey, Vec<Claim>>,
    contested: BTreeSet<FrontendKey>,
}

/// The key of a port's frontend.
pub(crate) const fn key(frontend: &Frontend, protocol: Protocol) -> FrontendKey {
    FrontendKey {
        addr: frontend.addr,
        port: frontend.port,
        protocol,
    }
}

impl Claims {
    /// Adds a claim.
    pub(crate) fn insert(&mut self, frontend: FrontendKey, claim: Claim) {
        let claims = self
            .by_frontend
            .entry(frontend)
            .or_insert_with(|| Vec::with_capacity(1));
        let at = claims.partition_point(|other| *other < claim);
        claims.insert(at, claim);
        if claims.len() > 1 {
            self.contested.insert(frontend);
        }
    }

    /// Takes back the claim of a service port.
    pub(crate) fn remove(&mut self, frontend: FrontendKey, port: &PortKey) {
        let Some(claims) = self.by_frontend.get_mut(&frontend) else {
            return;
        };
        claims.retain(|claim| claim.port != *port);
        if claims.len() < 2 {
            self.contested.remove(&frontend);
        }
        if claims.is_empty() {
            self.by_frontend.remove(&frontend);
        }
    }

    /// The service port that serves the frontend.
    pub(crate) fn winner(&self, frontend: FrontendKey) -> Option<&PortKey> {
        self.by_frontend
            .get(&frontend)?
            .first()
            .map(|claim| &claim.port)
    }

    /// Everybody who claims the frontend.
    pub(crate) fn claimants(&self, frontend: FrontendKey) -> impl Iterator<Item = &PortKey> {
        self.by_frontend
            .get(&frontend)
            .into_iter()
            .flatten()
            .map(|claim| &claim.port)
    }

    /// The frontends with more than one claim.
    pub(crate) fn conflicts(&self) -> impl Iterator<Item = Conflict> + '_ {
        self.contested.iter().filter_map(|frontend| {
            let (winner, losers) = self.by_frontend.get(frontend)?.split_first()?;
            Some(Conflict {
                frontend: *frontend,
                winner: winner.port.clone(),
                losers: losers.iter().map(|claim| claim.port.clone()).collect(),
            })
        })
    }
}
