//! `backends`: every backend id that names an endpoint of a service port.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{
    Family,
    abi::{Backend, BackendFlags, BackendState},
};
use serde::Serialize;

use super::{
    query::View,
    table::{NOTHING, Shown, family_name, print},
};
use crate::{
    bpf::maps::{MapResult, MappedArray, Plain},
    telemetry::state::Names,
};

/// A backend.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    /// Namespace of its Service; absent where the name is not known.
    pub namespace: Option<String>,
    /// Name of the Service.
    pub service: Option<String>,
    /// Name of the port; empty for an unnamed one.
    pub port: Option<String>,
    /// Service port that the id belongs to.
    pub service_id: u32,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Address and port.
    pub backend: SocketAddr,
    /// Its id within its family.
    pub id: u32,
    /// How often the id got another meaning.
    pub generation: u32,
    /// On this node.
    pub local: bool,
    /// Its address is one of this node's.
    pub host: bool,
    /// In the Cluster list.
    pub in_cluster: bool,
    /// In the Local list.
    pub in_local: bool,
    /// Ready or serving.
    pub usable: bool,
}

impl Row {
    fn new<F: Family>(id: u32, backend: &Backend<F>, names: &Names) -> Row
    where
        F::Addr: Shown,
    {
        let has = |flag| backend.has(flag);
        let name = names.name(backend.service_id);
        Row {
            namespace: name.map(|name| name.namespace.clone()),
            service: name.map(|name| name.name.clone()),
            port: name.map(|name| name.port.clone()),
            service_id: backend.service_id,
            family: family_name::<F>(),
            backend: SocketAddr::new(backend.addr.ip(), backend.port.to_host()),
            id,
            generation: backend.generation() / BackendState::GENERATION_STEP,
            local: has(BackendFlags::LOCAL),
            host: has(BackendFlags::HOST),
            in_cluster: has(BackendFlags::IN_CLUSTER),
            in_local: has(BackendFlags::IN_LOCAL),
            usable: has(BackendFlags::USABLE),
        }
    }
    fn place(&self) -> &'static str {
        match (self.local, self.host) {
            (_, true) => "this node's host",
            (true, false) => "this node",
            (false, false) => "remote",
        }
    }
    fn lists(&self) -> &'static str {
        match (self.in_cluster, self.in_local) {
            (true, true) => "Cluster, Local",
            (true, false) => "Cluster",
            (false, true) => "Local",
            (false, false) => NOTHING,
        }
    }
    fn state(&self) -> &'static str {
        match (self.in_cluster || self.in_local, self.usable) {
            (true, _) => "in use",
            // It takes no new flows; those that it has go on.
            (false, true) => "drains",
            (false, false) => "gone",
        }
    }
}

fn family<F: Family>(
    map: &MappedArray<Backend<F>>,
    names: &Names,
    rows: &mut Vec<Row>,
) -> MapResult<()>
where
    F::Addr: Shown,
    Backend<F>: Plain,
{
    for id in 1..map.max_entries() {
        let backend = map.read(id)?;
        if backend.service_id != 0 {
            rows.push(Row::new(id, &backend, names));
        }
    }
    Ok(())
}

/// Prints the backends of both families, of all namespaces or of one.
pub(super) fn backends(view: &View, namespace: Option<&str>) -> Result<()> {
    let mut rows = Vec::new();
    family(&view.maps.v4.backends, &view.names, &mut rows)?;
    family(&view.maps.v6.backends, &view.names, &mut rows)?;
    rows.retain(|row| {
        namespace.is_none_or(|namespace| row.namespace.as_deref() == Some(namespace))
    });
    rows.sort_by_cached_key(|row| {
        let name = (row.namespace.clone(), row.service.clone(), row.port.clone());
        (
            row.namespace.is_none(),
            name,
            row.family,
            row.service_id,
            row.backend.ip(),
            row.backend.port(),
            row.id,
        )
    });
    let heads = [
        "SERVICE",
        "FAMILY",
        "BACKEND",
        "STATE",
        "LISTS",
        "WHERE",
        "ID",
        "GENERATION",
    ];
    print(view.output, heads, &rows, |r| {
        [
            view.names.full(r.service_id),
            r.family.into(),
            r.backend.to_string(),
            r.state().into(),
            r.lists().into(),
            r.place().into(),
            r.id.to_string(),
            r.generation.to_string(),
        ]
    })
}

#[cfg(test)]
mod tests {
    use lb_common::{V4, abi::Be16};

    use super::*;

    fn row(flags: BackendFlags) -> Row {
        let addr = std::net::Ipv4Addr::new(10, 0, 0, 9);
        let state = BackendState::new(3 * BackendState::GENERATION_STEP, flags);
        Row::new(
            4,
            &Backend::<V4>::new(addr.into(), Be16::from_host(8080), 0, state, 7),
            &Names::default(),
        )
    }

    #[test]
    fn a_row_splits_generation_and_flags() {
        let row = row(BackendFlags::LOCAL | BackendFlags::USABLE | BackendFlags::IN_CLUSTER);
        assert_eq!(
            (row.backend.to_string().as_str(), row.generation, row.family),
            ("10.0.0.9:8080", 3, "IPv4")
        );
        assert_eq!(
            (row.place(), row.lists(), row.state()),
            ("this node", "Cluster", "in use")
        );
    }

    #[test]
    fn a_backend_out_of_its_lists_drains_while_it_is_usable() {
        assert_eq!(row(BackendFlags::USABLE).state(), "drains");
        let gone = row(BackendFlags::NONE);
        assert_eq!((gone.state(), gone.place()), ("gone", "remote"));
    }
}
