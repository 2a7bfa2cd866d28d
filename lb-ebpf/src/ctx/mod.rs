//! Contexts as packets: the windows that speak to the verifier.

pub(crate) mod fib;
pub(crate) mod tc;
pub(crate) mod xdp;
