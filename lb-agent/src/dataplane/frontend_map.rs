//! Maps and sets by [`ServiceKey`]: the key of a map hashed by its fields.

use std::collections::HashMap;

use lb_common::{
    abi::{Be16, ServiceKey},
    family::Family,
};

/// A `HashMap` by frontend; its methods are those of `HashMap`.
#[derive(Clone, Debug)]
pub(crate) struct FrontendMap<F: Family, V>(HashMap<(F::Addr, Be16, u8), V>);

impl<F: Family, V> Default for FrontendMap<F, V> {
    fn default() -> Self {
        FrontendMap(HashMap::new())
    }
}

impl<F: Family, V> FrontendMap<F, V> {
    pub(crate) fn get(&self, key: &ServiceKey<F>) -> Option<&V> {
        self.0.get(&(key.addr, key.port, key.proto))
    }
    pub(crate) fn get_mut(&mut self, key: &ServiceKey<F>) -> Option<&mut V> {
        self.0.get_mut(&(key.addr, key.port, key.proto))
    }
    pub(crate) fn contains_key(&self, key: &ServiceKey<F>) -> bool {
        self.get(key).is_some()
    }
    pub(crate) fn insert(&mut self, key: &ServiceKey<F>, value: V) -> Option<V> {
        self.0.insert((key.addr, key.port, key.proto), value)
    }
    pub(crate) fn remove(&mut self, key: &ServiceKey<F>) -> Option<V> {
        self.0.remove(&(key.addr, key.port, key.proto))
    }
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ServiceKey<F>, &V)> {
        self.0
            .iter()
            .map(|((addr, port, proto), v)| (ServiceKey::new(*addr, *port, *proto), v))
    }
    pub(crate) fn keys(&self) -> impl Iterator<Item = ServiceKey<F>> {
        self.iter().map(|(key, _)| key)
    }
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values()
    }
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<F: Family> FromIterator<ServiceKey<F>> for FrontendMap<F, ()> {
    fn from_iter<I: IntoIterator<Item = ServiceKey<F>>>(keys: I) -> Self {
        FrontendMap(
            keys.into_iter()
                .map(|k| ((k.addr, k.port, k.proto), ()))
                .collect(),
        )
    }
}
