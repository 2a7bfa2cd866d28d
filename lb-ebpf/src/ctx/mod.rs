//! Contexts as packets: the windows that speak to the verifier.

pub(crate) mod fib;
mod pointer;
pub(crate) mod sock_addr;
pub(crate) mod tc;
mod window;
pub(crate) mod xdp;

use pointer::packet_pointer;
