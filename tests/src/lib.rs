//! Harness of the tests, demo and benchmark: network namespaces in a small world, an agent in each
//! node, servers that tell whom they saw, packets built byte by byte, programs run on one packet.
//!
//! Everything that a test makes (namespaces, mounts, cgroups, processes) is its own, has a unique
//! name, and goes away when its value is dropped, after a panic, too.

pub mod agent;
pub mod bench;
pub mod cases;
pub mod cgroup;
pub mod control_plane;
pub mod demo;
pub mod differential;
pub mod echo;
mod leftovers;
pub mod loaded;
pub mod manifest;
pub mod mapped_table;
pub mod native;
pub mod netns;
pub mod packet;
pub mod prog_run;
pub mod requires;
pub mod scene;
pub mod table_trial;
pub mod tempdir;
pub mod topology;
pub mod trials;
pub mod wait;
pub mod xdp_pass;
