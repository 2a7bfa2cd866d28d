//! The agent: its parts joined, and the loop that drives them. What arrives (objects, netlink, time, signals) goes downhill:
//! store, desired, dataplane, maps. One thing at a time: no other thread writes maps.

mod addresses;
mod ageing;
mod attachments;
mod changes;
pub(crate) mod cleanup;
mod hooks;
#[cfg(test)]
mod limits;
mod observer;
mod parts;
mod reporter;
mod run;
mod signals;
mod stale_sockets;
mod start;
mod surroundings;

pub(crate) use self::{run::run, surroundings::init_only};
