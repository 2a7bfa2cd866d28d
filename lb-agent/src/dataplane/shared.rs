//! What both families share: the store, the ids and maps that belong to neither, and the report.

use std::{collections::HashSet, net::IpAddr};

use lb_common::abi::SelectionList;

use super::{
    ids::Ids,
    maglev::Member,
    port_filter::UsedPorts,
    report::ApplyReport,
    selection::Selection,
    store::{MapStore, StoreFamily, StoreResult},
};

/// What both families share.
#[derive(Debug)]
pub(crate) struct Shared<S> {
    pub(crate) store: S,
    pub(crate) service_ids: Ids,
    pub(crate) used_ports: UsedPorts,
    pub(crate) selection: Selection,
    /// This node's own addresses.
    pub(crate) local_addrs: HashSet<IpAddr>,
    /// What this round has done so far.
    pub(crate) report: ApplyReport,
}

impl<S: MapStore> Shared<S> {
    /// The maps of one family, to write.
    pub(crate) fn maps_mut<F: StoreFamily>(&mut self) -> &mut S::Maps<F> {
        F::maps_mut(&mut self.store)
    }

    /// Writes the table of a list into a free range.
    pub(crate) fn write_table(
        &mut self,
        list: &mut [Member],
        rows: u32,
    ) -> StoreResult<SelectionList> {
        let table = self.selection.write(&mut self.store, list, rows)?;
        self.report.tables_written += 1;
        self.report.rows_written += table.len as usize;
        Ok(table)
    }

    /// Writes the ports for source translation, once.
    pub(crate) fn write_snat_ports(&mut self) {
        if let Err(source) = self.used_ports.write_snat_ports(&mut self.store) {
            self.report.errors.push(source.into());
        }
    }

    /// Makes `port_filter` say what frontends need, whoever changed it.
    pub(crate) fn repair_ports(&mut self) {
        self.used_ports.repair(&mut self.store, &mut self.report);
    }
}
