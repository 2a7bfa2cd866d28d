//! Entry points: wrap the context, call the pipeline, count, return.

mod cgroup;
mod tc;
mod xdp;
