//! bpf(2): the object is loaded, its maps and programs are pinned, its programs attached.
//!
//! Nothing here knows Kubernetes. What other rooms use: [`maps::Maps::open_pinned`] to read a node's maps
//! without an agent, [`store::PinnedStore`] behind the dataplane, [`load`] and [`attach`] from `run`.

pub mod attach;
pub mod features;
pub mod load;
pub mod maps;
pub mod store;
pub mod sys;
