//! The node agent: Services and EndpointSlices become BPF map entries.
pub mod dataplane;
pub mod desired;
pub mod kube;
