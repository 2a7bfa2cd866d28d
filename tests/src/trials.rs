//! Tests by name → a run of libtest-mimic: it filters and reports as `cargo test` does, and a test may find out while it
//! runs that this machine cannot run it, which libtest has no word for.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use libtest_mimic::{Arguments, Completion, Failed};

pub use libtest_mimic::Trial;

use crate::requires::Need;

/// A test that is reported as ignored where a need is missing, with what is missing.
pub fn trial(
    name: impl Into<String>,
    needs: &'static [Need],
    test: impl FnOnce() -> Result<()> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || {
        if let Some(missing) = needs.iter().find_map(|need| need.missing()) {
            return Ok(Completion::ignored_with(missing));
        }
        match test() {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        }
    })
}

/// Trials of functions by their names, all with the same needs: `tests!([Root, Bpf], [a_test, another])`.
#[macro_export]
macro_rules! tests {
    ([$($need:ident),* $(,)?], [$($test:ident),+ $(,)?] $(,)?) => {{
        const NEEDS: &[$crate::requires::Need] = &[$($crate::requires::Need::$need),*];
        vec![$($crate::trials::trial(stringify!($test), NEEDS, $test)),+]
    }};
}

/// Runs what the command line asks for: the body of `main` of a target with `harness = false`.
pub fn run(trials: Vec<Trial>) -> ExitCode {
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What several trials use one after the other: made by the first, dropped with the last.
pub struct Shared<T>(Arc<Mutex<Made<T>>>);

/// The error is kept for the trials that follow: what failed once would fail them all, slowly.
enum Made<T> {
    Not(Box<dyn FnOnce() -> Result<T> + Send>),
    Yes(Result<T, String>),
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared(Arc::clone(&self.0))
    }
}

impl<T> Shared<T> {
    /// To be made by `make` when it is needed.
    pub fn new(make: impl FnOnce() -> Result<T> + Send + 'static) -> Self {
        Shared(Arc::new(Mutex::new(Made::Not(Box::new(make)))))
    }

    /// Waits until no other trial uses it. After a trial that panicked it is as that left it.
    pub fn with(&self, use_it: impl FnOnce(&mut T) -> Result<()>) -> Result<()> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Made::Not(_) = *made {
            let before = "making it panicked".to_owned();
            if let Made::Not(make) = std::mem::replace(&mut *made, Made::Yes(Err(before))) {
                *made = Made::Yes(make().map_err(|error| format!("{error:#}")));
            }
        }
        match &mut *made {
            Made::Yes(Ok(made)) => use_it(made),
            Made::Yes(Err(error)) => Err(anyhow!("{error}")),
            Made::Not(_) => Err(anyhow!("it is not made")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    /// Else cargo takes one form for the other, and the tests of the file are lost without a word.
    #[test]
    fn a_file_has_a_runner_of_its_own_or_attributes_of_libtest() -> anyhow::Result<()> {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
        let manifest = fs::read_to_string(format!("{root}Cargo.toml"))?;
        for entry in fs::read_dir(format!("{root}tests"))? {
            let path = entry?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let text = fs::read_to_string(&path)?;
            let own = manifest.contains(&format!("name = \"{name}\"\nharness = false\n"));
            let of_libtest = text.lines().any(|line| line.trim() == "#[test]");
            assert_eq!(own, text.contains("\nfn main() -> ExitCode {\n"), "{name}");
            assert_eq!(own, !of_libtest, "{name}");
        }
        Ok(())
    }
}
