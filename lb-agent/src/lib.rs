//! The node agent: Services and EndpointSlices become BPF map entries.
pub mod bpf;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod desired;
pub mod health;
pub mod hooks;
pub mod kube;
pub mod node;
pub mod shutdown;
pub mod telemetry;
