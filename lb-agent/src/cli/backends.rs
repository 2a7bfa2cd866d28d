//! `backends`: every backend id that names a service port.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::{
    Family,
    abi::{Backend, BackendState},
};
use serde::Serialize;

use super::table::{Output, Shown, print};
use crate::bpf::maps::{MapResult, MappedArray, Maps};

/// A backend.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Its id within its family.
    pub id: u32,
    /// Address and port.
    pub backend: SocketAddr,
    /// Service port that the id belongs to.
    pub service_id: u32,
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
    fn new<F: Family>(id: u32, backend: &Backend<F>) -> Row
    where
        F::Addr: Shown,
    {
        let has = |flag| backend.state & flag != 0;
        Row {
            id,
            backend: SocketAddr::new(backend.addr.ip(), backend.port.to_host()),
            service_id: backend.service_id,
            generation: backend.generation() / BackendState::GENERATION_STEP,
            local: has(BackendState::LOCAL),
            host: has(BackendState::HOST),
            in_cluster: has(BackendState::IN_CLUSTER),
            in_local: has(BackendState::IN_LOCAL),
            usable: has(BackendState::USABLE),
        }
    }
    fn flags(&self) -> String {
        let flags = [
            (self.local, "local"),
            (self.host, "host"),
            (self.in_cluster, "in-cluster"),
            (self.in_local, "in-local"),
            (self.usable, "usable"),
        ];
        flags
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| name)
            .collect::<Vec<_>>()
            .join(",")
    }
}

fn family<F: Family>(map: &MappedArray<Backend<F>>, rows: &mut Vec<Row>) -> MapResult<()>
where
    F::Addr: Shown,
    Backend<F>: crate::bpf::maps::Plain,
{
    for id in 1..map.max_entries() {
        let backend = map.read(id)?;
        if backend.service_id != 0 {
            rows.push(Row::new(id, &backend));
        }
    }
    Ok(())
}

/// Prints the backends of both families.
pub fn backends(maps: &Maps, output: Output) -> Result<()> {
    let mut rows = Vec::new();
    family(&maps.v4.backends, &mut rows)?;
    family(&maps.v6.backends, &mut rows)?;
    print(
        output,
        ["ID", "BACKEND", "SERVICE", "GENERATION", "FLAGS"],
        &rows,
        |r| {
            [
                r.id.to_string(),
                r.backend.to_string(),
                r.service_id.to_string(),
                r.generation.to_string(),
                r.flags(),
            ]
        },
    )
}

#[cfg(test)]
mod tests {
    use lb_common::{V4, abi::Be16};

    use super::*;

    #[test]
    fn a_row_splits_generation_and_flags() {
        let addr = std::net::Ipv4Addr::new(10, 0, 0, 9);
        let state = 3 * BackendState::GENERATION_STEP | BackendState::LOCAL | BackendState::USABLE;
        let row = Row::new(
            4,
            &Backend::<V4>::new(addr.into(), Be16::from_host(8080), 0, state, 7),
        );
        assert_eq!(
            (
                row.backend.to_string().as_str(),
                row.generation,
                row.flags().as_str()
            ),
            ("10.0.0.9:8080", 3, "local,usable")
        );
    }
}
