//! Entry points: wrap the context, call the pipeline, count, return.

mod tc;
mod xdp;
