//! Every kept input through its target: the corpus, and inputs that once failed.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::{fs, io};

use lb_fuzz::TARGETS;

/// The files of a folder in order; a target without a folder has none.
fn inputs(folder: &Path) -> io::Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut files = files.collect::<io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

/// Runs the inputs of a target and tells how many there were.
fn run(folder: &str, name: &str) -> io::Result<usize> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(folder)
        .join(name);
    let files = inputs(&folder)?;
    for target in TARGETS.iter().filter(|target| target.name == name) {
        for file in &files {
            let bytes = fs::read(file)?;
            let outcome = catch_unwind(|| (target.run)(&bytes));
            assert!(outcome.is_ok(), "{name} fails with {}", file.display());
        }
    }
    Ok(files.len())
}

macro_rules! targets {
    ($($target:ident),+) => {
        $(mod $target {
            #[test]
            fn corpus_finds_no_fault() -> std::io::Result<()> {
                assert!(super::run("corpus", stringify!($target))? > 0, "it has no corpus");
                Ok(())
            }
            #[test]
            fn inputs_that_once_failed_pass() -> std::io::Result<()> {
                super::run("regressions", stringify!($target))?;
                Ok(())
            }
        })+

        #[test]
        fn every_target_is_tested_and_has_a_program() {
            let names = TARGETS.map(|target| target.name);
            assert_eq!(names, [$(stringify!($target)),+]);
            let manifest = include_str!("../Cargo.toml");
            for name in names {
                let program = format!("path = \"fuzz_targets/{name}.rs\"");
                assert!(manifest.contains(&program), "{name}");
            }
        }
    };
}

targets!(checksum, rewrite, pipeline, manifests, objects);
