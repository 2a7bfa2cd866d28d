//! `/healthz`, `/livez`, `/readyz` and the metrics port (semantics 16), and the ports that load balancers ask for single
//! Services (semantics 15).

mod answers;
#[cfg(test)]
mod exposed_tests;
mod http;
mod lock;
mod node_port;
mod plan;
mod serve;
mod shared;

pub(crate) use self::{
    plan::Plan,
    serve::{Addresses, serve},
    shared::{BindFailure, Shared},
};
