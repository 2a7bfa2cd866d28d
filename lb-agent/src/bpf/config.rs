//! The one entry of the map `config`, which several write: each its own fields.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use lb_common::{abi::Config, names::maps as names};

use super::maps::{Access, MapResult, TypedMap};

/// The one way to change the entry of `config`: whoever holds a clone changes its own fields.
#[derive(Clone, Debug)]
pub(crate) struct ConfigEntry {
    map: Arc<Mutex<TypedMap<u32, Config>>>,
}

impl ConfigEntry {
    /// Opens the entry below a pin directory.
    pub(crate) fn open(dir: &Path) -> MapResult<ConfigEntry> {
        let map = TypedMap::open(dir, names::CONFIG, Access::Write)?;
        Ok(ConfigEntry {
            map: Arc::new(Mutex::new(map)),
        })
    }

    /// Reads the entry, lets `change` alter it and writes it back if it differs.
    pub(crate) fn update(&self, change: &mut dyn FnMut(&mut Config)) -> MapResult<()> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let before = map.lookup(&0)?.unwrap_or_default();
        let mut after = before;
        change(&mut after);
        if after == before {
            Ok(())
        } else {
            map.update(&0, &after)
        }
    }
}
