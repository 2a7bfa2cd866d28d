//! Where Services, EndpointSlices and the Node come from: sources emit [`ObjectEvent`]s, the store
//! holds what they add up to and names the Services that an event concerns.

pub mod api;
pub mod batch;
pub mod check;
pub mod decode;
mod files;
pub mod intern;
pub mod manifests;
pub mod objects;
pub mod reduce;
pub mod source;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;

pub use manifests::{FileProblem, Follower, ManifestError, ManifestProblems, ManifestSource};
pub use objects::{EndpointSlice, Key, Node, ObjectEvent, Service};
pub use store::{Dirty, ObjectStore};
