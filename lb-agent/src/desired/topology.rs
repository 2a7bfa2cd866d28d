//! Hints → which of the ready endpoints this node uses (semantics 7).

use super::endpoints::Candidate;

/// The rule by which ready endpoints are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Those hinted for this node (7.3).
    SameNode,
    /// Those hinted for this node's zone (7.4).
    SameZone,
    /// All of them, where hints do not apply (7.5).
    All,
}

/// Chooses the mode once for all endpoints of a service port; unready ones do not matter (7.2).
pub(crate) fn mode(endpoints: &[Candidate<'_>], node: &str, zone: Option<&str>) -> Mode {
    let mut all_for_nodes = true;
    let mut some_for_node = false;
    let mut all_for_zones = true;
    let mut some_for_zone = false;
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.source.ready) {
        let placement = &endpoint.source.placement;
        all_for_nodes &= !placement.for_nodes.is_empty();
        some_for_node |= is_for_node(endpoint, node);
        all_for_zones &= !placement.for_zones.is_empty();
        some_for_zone |= is_for_zone(endpoint, zone);
    }
    if all_for_nodes && some_for_node {
        Mode::SameNode
    } else if all_for_zones && some_for_zone {
        Mode::SameZone
    } else {
        Mode::All
    }
}

/// Whether the mode lets this node use the endpoint.
pub(crate) fn allows(mode: Mode, endpoint: &Candidate<'_>, node: &str, zone: Option<&str>) -> bool {
    match mode {
        Mode::SameNode => is_for_node(endpoint, node),
        Mode::SameZone => is_for_zone(endpoint, zone),
        Mode::All => true,
    }
}

fn is_for_node(endpoint: &Candidate<'_>, node: &str) -> bool {
    !node.is_empty()
        && endpoint
            .source
            .placement
            .for_nodes
            .iter()
            .any(|name| **name == *node)
}

fn is_for_zone(endpoint: &Candidate<'_>, zone: Option<&str>) -> bool {
    zone.is_some_and(|zone| {
        endpoint
            .source
            .placement
            .for_zones
            .iter()
            .any(|name| **name == *zone)
    })
}
