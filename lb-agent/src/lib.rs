//! The node agent: Services and EndpointSlices become BPF map entries. What is public is for this workspace: the binary,
//! the tests, the benchmark and the fuzzers.

mod agent;
pub mod bpf;
pub mod cli;
mod clock;
mod config;
mod dataplane;
pub mod desired;
mod error;
mod exposition;
mod health;
pub mod kube;
pub mod net;
mod node;
mod port_set;
mod telemetry;
#[cfg(test)]
mod temp_dir;
