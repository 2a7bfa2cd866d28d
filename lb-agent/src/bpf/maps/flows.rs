//! `flows_*` and `openings_*`: keys as the agent knows them, packed as the maps hold them.

use std::path::Path;

use lb_common::{
    Family,
    abi::{Flow, FlowKey, FlowMapKey},
};

use super::{
    pin::{Access, MapResult},
    typed::TypedMap,
};

/// `flows_*` or `openings_*`.
#[derive(Debug)]
pub(crate) struct FlowMap<F: Family>(TypedMap<FlowMapKey<F>, Flow<F>>);

impl<F: Family> FlowMap<F> {
    /// See [`TypedMap::open`].
    pub(crate) fn open(dir: &Path, name: &'static str, access: Access) -> MapResult<Self> {
        TypedMap::open(dir, name, access).map(FlowMap)
    }
    /// The most entries it can have, fixed when it was made.
    pub(crate) const fn max_entries(&self) -> u32 {
        self.0.max_entries()
    }
    /// Looks one entry up.
    pub(crate) fn lookup(&self, key: &FlowKey<F>) -> MapResult<Option<Flow<F>>> {
        self.0.lookup(&FlowMapKey::new(key))
    }
    /// Removes one entry; `false`: there was none.
    pub(crate) fn delete(&self, key: &FlowKey<F>) -> MapResult<bool> {
        self.0.delete(&FlowMapKey::new(key))
    }
    /// As [`TypedMap::scan`], without entries that were handed to another key while they were read.
    pub(crate) fn scan(
        &self,
        cursor: Option<[u8; 40]>,
        limit: usize,
        out: &mut Vec<(FlowKey<F>, Flow<F>)>,
    ) -> MapResult<Option<[u8; 40]>> {
        let mut entries = Vec::new();
        let cursor = self.0.scan(cursor, limit, &mut entries)?;
        out.extend(
            entries
                .into_iter()
                .filter_map(|(key, flow)| key.unpack(flow.check).map(|key| (key, flow))),
        );
        Ok(cursor)
    }
    /// Shows every entry.
    pub(crate) fn each(&self, mut each: impl FnMut(&FlowKey<F>, &Flow<F>)) -> MapResult<()> {
        self.0.each(|key, flow| {
            if let Some(key) = key.unpack(flow.check) {
                each(&key, flow);
            }
        })
    }
}
