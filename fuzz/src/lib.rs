//! Bytes → one run of the code under test, which panics where a promise is broken.
//!
//! A target is a function over bytes, the same for libFuzzer (`fuzz_targets/`) and for the tests that run every kept
//! input through it (`tests/corpus.rs`): an input that once failed fails the tests, too, if the fault comes back.

pub mod checksum;
pub mod manifests;
pub mod objects;
pub mod pipeline;
pub mod reader;
pub mod rewrite;
mod world;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its program, of its module and of its folders in `corpus/` and `regressions/`.
    pub name: &'static str,
    /// Runs one input and panics where it finds a fault.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 5] = [
    Target {
        name: "checksum",
        run: checksum::run,
    },
    Target {
        name: "rewrite",
        run: rewrite::run,
    },
    Target {
        name: "pipeline",
        run: pipeline::run,
    },
    Target {
        name: "manifests",
        run: manifests::run,
    },
    Target {
        name: "objects",
        run: objects::run,
    },
];
