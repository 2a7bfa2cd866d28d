//! Flags, environment and files → a checked [`Config`].

mod compat;
pub(crate) mod conntrack;
mod error;
mod families;
pub(crate) mod file;
mod flags;
mod kube_proxy;
mod source;
mod validate;
mod values;
mod written;

pub(crate) use self::{
    flags::{DEFAULT_BPFFS, LogFormat, Masquerade, RunArgs, SocketLb, TcAttach},
    source::ObjectSource,
    values::Config,
};
