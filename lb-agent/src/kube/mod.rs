//! Where Services, EndpointSlices and the Node come from: sources emit [`objects::ObjectEvent`]s, the store
//! holds what they add up to and names the Services that an event concerns.

pub(crate) mod api;
pub(crate) mod batch;
mod check;
pub mod decode;
mod files;
pub mod intern;
pub mod manifests;
pub mod objects;
pub mod reduce;
pub(crate) mod source;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;
