//! bpf(2): the object is loaded, its maps and programs are pinned, its programs attached.
//!
//! Nothing here knows Kubernetes. What other rooms use: [`maps::Maps::open_pinned`] to read a node's maps
//! without an agent, the same maps to write behind the dataplane, [`load`] and [`attach`] from the agent.

pub(crate) mod attach;
pub(crate) mod barrier;
pub(crate) mod config;
pub mod features;
pub(crate) mod flow_size;
pub(crate) mod load;
pub mod maps;
pub(crate) mod sys;
