//! Every pinned map that user space reads or writes.

use std::path::{Path, PathBuf};

use lb_common::{
    V4, V6,
    abi::{
        Affinity, AffinityKey, Backend, Config, Interface, NodeAddrFlags, NodeAddrKey, PacketCount,
        PortFilter, SelectionBlock, Service, ServiceKey, ServiceStats, SrcRangeKey,
    },
    flow_table::TableFamily,
    names::maps as names,
};

use super::{
    flows::FlowPins,
    mapped::MappedArray,
    per_cpu::PerCpuMap,
    pin::{Access, MapResult},
    typed::TypedMap,
};

/// The maps of one family.
#[derive(Debug)]
pub(crate) struct FamilyPins<F: TableFamily> {
    /// `services_*`: frontend → service port.
    pub services: TypedMap<ServiceKey<F>, Service>,
    /// `backends_*`: backend id → address, port, state.
    pub backends: MappedArray<Backend<F>>,
    /// `flows_*` and `flow_index_*`: flows, to look at.
    pub flows: FlowPins<F>,
    /// `affinity_*`: client → backend.
    pub affinity: TypedMap<AffinityKey<F>, Affinity>,
    /// `src_ranges_*`: clients that a load-balancer frontend lets in.
    pub src_ranges: TypedMap<SrcRangeKey<F>, u32>,
    /// `node_addrs_*`: this node's own addresses.
    pub node_addrs: TypedMap<NodeAddrKey<F>, NodeAddrFlags>,
}

impl<F: TableFamily> FamilyPins<F> {
    fn open(dir: &Path, access: Access) -> MapResult<Self> {
        let i = F::INDEX;
        Ok(FamilyPins {
            services: TypedMap::open(dir, names::SERVICES[i], access)?,
            backends: MappedArray::open(dir, names::BACKENDS[i], access)?,
            flows: FlowPins::open(dir)?,
            affinity: TypedMap::open(dir, names::AFFINITY[i], access)?,
            src_ranges: TypedMap::open(dir, names::SRC_RANGES[i], access)?,
            node_addrs: TypedMap::open(dir, names::NODE_ADDRS[i], access)?,
        })
    }
}

/// Name of the map `xdp_devices`.
pub(crate) const XDP_DEVICES: &str = "xdp_devices";

/// Every pinned map that user space reads or writes.
#[derive(Debug)]
pub(crate) struct Maps {
    /// The maps that each family has: IPv4's.
    pub v4: FamilyPins<V4>,
    /// The same of IPv6.
    pub v6: FamilyPins<V6>,
    /// `selection`: blocks of rows.
    pub selection: MappedArray<SelectionBlock>,
    /// `port_filter`: destination ports that may be ours.
    pub port_filter: MappedArray<PortFilter>,
    /// `interfaces`, by ifindex.
    pub interfaces: TypedMap<u32, Interface>,
    /// `config`, index 0.
    pub config: TypedMap<u32, Config>,
    /// `counters`, by number of `DropReason` or `Counter`.
    pub counters: PerCpuMap<PacketCount>,
    /// `service_stats`, by service id.
    pub service_stats: PerCpuMap<ServiceStats>,
    /// The directory of the pins.
    pub dir: PathBuf,
}

impl Maps {
    /// Opens what an agent pinned below `dir` (see [`super::pin_dir`]), to read only; no program is loaded and no agent
    /// needs to run.
    pub(crate) fn open_pinned(dir: &Path) -> MapResult<Maps> {
        Maps::open(dir, Access::Read)
    }

    /// Opens the same to write.
    pub(crate) fn open_to_write(dir: &Path) -> MapResult<Maps> {
        Maps::open(dir, Access::Write)
    }

    fn open(dir: &Path, access: Access) -> MapResult<Maps> {
        Ok(Maps {
            v4: FamilyPins::open(dir, access)?,
            v6: FamilyPins::open(dir, access)?,
            selection: MappedArray::open(dir, names::SELECTION, access)?,
            port_filter: MappedArray::open(dir, names::PORT_FILTER, access)?,
            interfaces: TypedMap::open(dir, names::INTERFACES, access)?,
            config: TypedMap::open(dir, names::CONFIG, access)?,
            counters: PerCpuMap::open(dir, names::COUNTERS, access)?,
            service_stats: PerCpuMap::open(dir, names::SERVICE_STATS, access)?,
            dir: dir.to_owned(),
        })
    }

    /// The one entry of `config`.
    pub(crate) fn config(&self) -> MapResult<Config> {
        Ok(self.config.lookup(&0)?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_pins_names_the_pin_and_what_to_do() {
        let error = Maps::open_pinned(Path::new("/nonexistent/lb/v1")).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/lb/v1/services_v4"),
            "{error}"
        );
    }
}
