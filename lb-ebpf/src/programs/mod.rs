//! Entry points: wrap the context, call the pipeline, count, return.

mod cgroup;
mod reap;
mod tc;
mod xdp;

use lb_common::pipeline::ip::Ip;

use crate::look::LookFunctions;
use crate::maps::FamilyMaps;

/// A family whose packets a program handles.
pub(crate) trait PacketFamily: Ip + FamilyMaps + LookFunctions {}

impl<F: Ip + FamilyMaps + LookFunctions> PacketFamily for F {}
