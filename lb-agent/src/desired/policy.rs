//! Endpoints of a service port → the Cluster and the Local list (semantics 6).

use super::{
    endpoints::Candidate,
    state::Endpoint,
    topology::{self, Mode},
};

/// Which lists a service port uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Uses {
    /// The Cluster list (4.9).
    pub cluster: bool,
    /// The Local list (4.10).
    pub local: bool,
}

/// Decides which lists a service port uses from its policies and whether it is externally
/// accessible (4.8).
pub(crate) const fn uses(internal_local: bool, external_local: bool, external: bool) -> Uses {
    Uses {
        cluster: !internal_local || external,
        local: internal_local || (external_local && external),
    }
}

/// The endpoints that the data path must know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lists {
    /// Every usable endpoint with the lists that it is in.
    pub endpoints: Vec<Endpoint>,
    /// Some node has a usable endpoint (6.7).
    pub has_endpoints: bool,
}

/// Puts the endpoints into the lists that the service port uses.
pub(crate) fn lists(
    candidates: &[Candidate<'_>],
    uses: Uses,
    node: &str,
    zone: Option<&str>,
) -> Lists {
    let any_ready = candidates.iter().any(|candidate| candidate.source.ready);
    let any_local_ready = candidates.iter().any(|c| c.local && c.source.ready);
    let mode = if uses.cluster {
        topology::mode(candidates, node, zone)
    } else {
        Mode::All
    };
    let in_cluster = |candidate: &Candidate<'_>| {
        if any_ready {
            candidate.source.ready && topology::allows(mode, candidate, node, zone)
        } else {
            candidate.is_fallback()
        }
    };
    let in_local = |candidate: &Candidate<'_>| {
        candidate.local
            && if any_local_ready {
                candidate.source.ready
            } else {
                candidate.is_fallback()
            }
    };
    // Reserved for all: there may be a million endpoints, and most are usable.
    let mut endpoints = Vec::with_capacity(candidates.len());
    let usable = candidates
        .iter()
        .filter(|c| c.source.ready || c.source.serving);
    endpoints.extend(usable.map(|candidate| Endpoint {
        addr: candidate.addr(),
        port: candidate.port,
        local: candidate.local,
        in_cluster: uses.cluster && in_cluster(candidate),
        in_local: uses.local && in_local(candidate),
        usable: true,
        zone: candidate.source.placement.zone.clone(),
    }));
    let has_endpoints = endpoints
        .iter()
        .any(|endpoint: &Endpoint| endpoint.in_cluster)
        || (uses.local && candidates.iter().any(|c| c.source.ready || c.is_fallback()));
    Lists {
        endpoints,
        has_endpoints,
    }
}
