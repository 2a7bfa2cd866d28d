//! What a round of writes did → what the agent logs, counts and tells as Events. An object that is not
//! as wanted is named; what it had keeps serving.

use std::net::IpAddr;

use lb_common::{abi::ServiceKey, family::Family, names::maps};

use super::{model::to_ip, store::StoreError};
use crate::desired::state::PortKey;

/// What one round of writes did.
#[derive(Debug, Default)]
pub(crate) struct ApplyReport {
    /// Entries of `services_*` written.
    pub(crate) services_written: usize,
    /// Entries of `services_*` removed.
    pub(crate) services_removed: usize,
    /// Elements of `backends_*` written whole.
    pub(crate) backends_written: usize,
    /// State words of backends written in place.
    pub(crate) states_written: usize,
    /// Tables written to the selection slab.
    pub(crate) tables_written: usize,
    /// Rows of these tables.
    pub(crate) rows_written: usize,
    /// Rows set one by one, in tables for which no room was left.
    pub(crate) rows_mended: usize,
    /// Source ranges written or removed.
    pub(crate) ranges_changed: usize,
    /// Grace periods waited for.
    pub(crate) barriers: usize,
    /// Service ports that are not as wanted and wait for the next try.
    pub(crate) pending: usize,
    /// What went wrong, one entry an object.
    pub(crate) errors: Vec<ApplyError>,
}

impl ApplyReport {
    /// Whether no entry was written or removed.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.services_written
            + self.services_removed
            + self.backends_written
            + self.states_written
            + self.tables_written
            + self.rows_mended
            + self.ranges_changed
            == 0
    }
}

/// What an audit found, and repaired.
#[derive(Debug, Default)]
pub(crate) struct AuditReport {
    /// Service ports that the dataplane held otherwise than the fresh list says.
    pub(crate) service_ports: usize,
    /// Entries of `services_*` missing, different or superfluous.
    pub(crate) services: usize,
    /// Elements of `backends_*` that were different.
    pub(crate) backends: usize,
    /// Tables whose rows were different.
    pub(crate) tables: usize,
    /// Source ranges missing or superfluous.
    pub(crate) ranges: usize,
    /// Bits of `port_filter` that were different.
    pub(crate) ports: usize,
    /// Not audited, because writes are pending that failed.
    pub(crate) is_skipped: bool,
    /// What the repair did.
    pub(crate) repair: ApplyReport,
}

impl AuditReport {
    pub(crate) fn differences(&self) -> usize {
        self.service_ports + self.services + self.backends + self.tables + self.ranges + self.ports
    }
}

/// How full the maps are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Usage {
    /// Entries of `services_*`, by family.
    pub(crate) frontends: [usize; 2],
    /// Backend ids in use or at rest, by family.
    pub(crate) backends: [usize; 2],
    /// Service ids in use or at rest.
    pub(crate) service_ports: usize,
    /// Rows of `selection` in use or at rest.
    pub(crate) rows: u32,
    /// Service ports that have less of the maps than they ask for.
    pub(crate) short: usize,
}

/// Endpoints of a service port that are not served, of the list that lacks more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LeftOut {
    pub(crate) endpoints: u32,
    /// Of so many.
    pub(crate) listed: u32,
    /// Of the Local list.
    pub(crate) local: u32,
}

/// Why an object is not, or not fully, in the maps.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// A service port has no room; what stood there before keeps serving.
    #[error("no room for service port {port} ({}) in map {map}; raise its size by {}", port.family.name(), flag(map))]
    NoRoom {
        /// The service port, named by key: namespace, Service, port.
        port: NamedKey,
        /// The full map.
        map: &'static str,
    },
    /// Endpoints of a service port have no room; the others are served.
    #[error(
        "{} of {} endpoints of service port {port} ({}) have no room in map {map}; raise its size by {}",
        left_out.endpoints,
        left_out.listed,
        port.family.name(),
        flag(map)
    )]
    LeftOut {
        port: NamedKey,
        /// The full map.
        map: &'static str,
        left_out: LeftOut,
    },
    /// A frontend could not be written or removed; its previous entry keeps serving.
    #[error("frontend {addr} port {number} of {port} is not up to date and will be tried again")]
    Frontend {
        port: NamedKey,
        addr: IpAddr,
        /// The frontend's port; 0 for the entry of a whole ClusterIP.
        number: u16,
        #[source]
        source: StoreError,
    },
    /// A service port could not be prepared; what stood there before keeps serving.
    #[error("service port {port} is not up to date and will be tried again")]
    Port {
        port: NamedKey,
        #[source]
        source: StoreError,
    },
    /// Something shared failed.
    #[error("maps are not up to date and will be tried again")]
    Shared {
        #[from]
        source: StoreError,
    },
}

impl ApplyError {
    /// The map that is full, where that is the reason.
    pub(crate) fn full_map(&self) -> Option<&'static str> {
        match self {
            ApplyError::NoRoom { map, .. } | ApplyError::LeftOut { map, .. } => Some(map),
            ApplyError::Frontend { source, .. }
            | ApplyError::Port { source, .. }
            | ApplyError::Shared { source } => source.is_full().then(|| source.map()),
        }
    }
    /// What is left out of a service port that is served otherwise.
    pub(crate) fn left_out(&self) -> Option<LeftOut> {
        match self {
            ApplyError::LeftOut { left_out, .. } => Some(*left_out),
            _ => None,
        }
    }
    /// A frontend is not as wanted.
    pub(crate) fn frontend<F: Family>(
        key: &PortKey,
        entry: &ServiceKey<F>,
        source: StoreError,
    ) -> Self {
        ApplyError::Frontend {
            port: NamedKey(key.clone()),
            addr: to_ip::<F>(&entry.addr),
            number: entry.port.to_host(),
            source,
        }
    }
    /// The service port it is about.
    pub(crate) fn port(&self) -> Option<&PortKey> {
        match self {
            ApplyError::NoRoom { port, .. }
            | ApplyError::LeftOut { port, .. }
            | ApplyError::Frontend { port, .. }
            | ApplyError::Port { port, .. } => Some(&port.0),
            ApplyError::Shared { .. } => None,
        }
    }
}

/// The flag that makes a map larger.
fn flag(map: &str) -> &'static str {
    if maps::BACKENDS.contains(&map) {
        "--max-backends"
    } else if map == maps::SELECTION {
        "--selection-rows"
    } else {
        "--max-frontends"
    }
}

/// A [`PortKey`] that prints its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NamedKey(pub PortKey);

impl std::ops::Deref for NamedKey {
    type Target = PortKey;
    fn deref(&self) -> &PortKey {
        &self.0
    }
}

impl std::fmt::Display for NamedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.name.fmt(f)
    }
}
