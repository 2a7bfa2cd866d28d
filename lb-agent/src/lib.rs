//! The node agent: Services and EndpointSlices become BPF map entries.
mod agent;
pub mod bpf;
pub mod cli;
mod clock;
pub mod config;
pub mod dataplane;
pub mod desired;
mod error;
mod exposition;
pub mod health;
pub mod kube;
pub mod net;
pub mod node;
pub mod telemetry;
#[cfg(test)]
mod temp_dir;
