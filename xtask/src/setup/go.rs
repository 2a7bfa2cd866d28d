//! A Go compiler that the tools module accepts.
//!
//! Any Go since 1.21 fetches the release that a module asks for. Where there is none, Debian's backports have one; its
//! files go into the cache, not into the system.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Steps, apt};
use crate::{command, paths};

/// The release that builds the control plane.
const RELEASE: &str = "1.26.0";
/// Oldest release that fetches newer ones.
const OLDEST: (u32, u32) = (1, 21);
/// Newest first: the suites of Debian that have a Go new enough.
const SUITES: [&str; 3] = ["trixie-backports", "trixie", "bookworm-backports"];
/// Minor releases of Go that those suites have.
const MINORS: [u32; 5] = [26, 25, 24, 23, 22];

/// A Go that can build.
pub(super) struct Go {
    program: PathBuf,
    /// The compiler's own folder, where it cannot find that by itself.
    root: Option<PathBuf>,
    /// `GOTOOLCHAIN`.
    toolchain: OsString,
}

impl Go {
    /// `go`, which uses the right release.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("GOTOOLCHAIN", &self.toolchain);
        if let Some(root) = &self.root {
            command.env("GOROOT", root);
        }
        command
    }

    /// Makes it the `go` of another program.
    pub(super) fn point(&self, command: &mut Command) -> Result<()> {
        command.env("GOTOOLCHAIN", &self.toolchain);
        if let Some(root) = &self.root {
            command.env("GOROOT", root);
        }
        if let Some(folder) = self.program.parent().filter(|path| path.is_absolute()) {
            let present = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&present));
            command.env("PATH", std::env::join_paths(folders)?);
        }
        Ok(())
    }
}

/// Finds or fetches one.
pub(super) fn install(steps: &Steps) -> Result<Go> {
    for program in ["go", "/usr/local/go/bin/go"] {
        if let Some(release) = release(Path::new(program), None)
            && release >= OLDEST
        {
            return Ok(Go {
                program: program.into(),
                root: None,
                toolchain: toolchain(release),
            });
        }
    }
    let root = paths::cache()?.join("go");
    let program = root.join("bin/go");
    if !program.is_file() {
        steps
            .during("Go: taking Debian's package of it", || from_debian(&root))
            .context("cannot install Go, which builds the tests' control plane; install Go 1.21 or newer")?;
    }
    let release = release(&program, Some(&root)).context("Debian's Go does not run")?;
    Ok(Go {
        program,
        root: (release >= parsed(RELEASE).unwrap_or_default()).then_some(root),
        toolchain: toolchain(release),
    })
}

/// A release that is new enough builds itself; another fetches the one named.
fn toolchain(release: (u32, u32)) -> OsString {
    match parsed(RELEASE) {
        Some(wanted) if release >= wanted => "local".into(),
        _ => format!("go{RELEASE}").into(),
    }
}

/// Major and minor number of a `go`.
fn release(program: &Path, root: Option<&Path>) -> Option<(u32, u32)> {
    let mut command = Command::new(program);
    command.env("GOTOOLCHAIN", "local");
    if let Some(root) = root {
        command.env("GOROOT", root);
    }
    let text = command::read(command.arg("version")).ok()?;
    parsed(text.split(' ').nth(2)?.strip_prefix("go")?)
}

fn parsed(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn from_debian(root: &Path) -> Result<()> {
    let mut failed = None;
    for repository in apt::debian_repositories()? {
        for suite in SUITES {
            match from_suite(&repository, suite, root) {
                Ok(()) => return Ok(()),
                Err(error) => failed = Some(error),
            }
        }
    }
    Err(failed.context("apt has no Debian repository to take it from")?)
}

fn from_suite(repository: &str, suite: &str, root: &Path) -> Result<()> {
    let lists = apt::Suite::open(repository, suite)?;
    let (minor, version) = MINORS
        .into_iter()
        .find_map(|minor| {
            let versions = lists.versions(&format!("golang-1.{minor}-go")).ok()?;
            Some((minor, versions.into_iter().next()?))
        })
        .with_context(|| format!("{suite} has no Go that is new enough"))?;
    let partial = root.with_extension("partial");
    fs::create_dir_all(&partial)?;
    // The sources are a package of their own, for all machines.
    for package in [
        format!("golang-1.{minor}-go"),
        format!("golang-1.{minor}-src"),
    ] {
        let file = lists.download(&package, &version)?;
        command::read(
            command::program("dpkg-deb")
                .arg("--extract")
                .arg(&file)
                .arg(&partial),
        )?;
        // The next download looks for its own file.
        fs::remove_file(&file)?;
    }
    // Debian spreads the tree and links its parts together by absolute paths.
    let lib = partial.join(format!("usr/lib/go-1.{minor}"));
    let share = partial.join(format!("usr/share/go-1.{minor}"));
    for entry in fs::read_dir(&share)? {
        let entry = entry?;
        let place = lib.join(entry.file_name());
        if place.is_symlink() {
            fs::remove_file(&place)?;
        }
        if !place.exists() {
            fs::rename(entry.path(), &place)?;
        }
    }
    fs::rename(&lib, root).with_context(|| format!("cannot create {}", root.display()))?;
    fs::remove_dir_all(&partial)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_go_fetches_the_release_that_a_new_one_is() {
        assert_eq!(parsed("1.19.8"), Some((1, 19)));
        assert_eq!(toolchain((1, 24)), OsString::from("go1.26.0"));
        assert_eq!(toolchain((1, 26)), OsString::from("local"));
    }
}
