//! A directory of manifests → object events, live. The kernel names what changed (inotify), and only
//! that is read; events are coalesced by draining its queue, never by waiting.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::sync::mpsc;

use super::{
    files::{self, Files},
    objects::ObjectEvent,
};

pub use super::files::{FileProblem, ManifestProblems};

/// The manifest directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not there or is no directory.
    #[error("cannot open the manifest directory {}; create it or name another", dir.display())]
    Open {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel gives no inotify instance or no event.
    #[error(
        "cannot follow the manifest directory {}; look at fs.inotify.max_user_instances and \
         max_user_watches",
        dir.display()
    )]
    Follow {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Batches that wait for the reader before the source stops to read; meanwhile the kernel's queue
/// coalesces.
const BATCHES: usize = 4;
/// Room for some 2,000 events.
const BUFFER_BYTES: usize = 64 << 10;

/// A manifest directory, read and followed.
#[derive(Debug)]
pub struct ManifestSource {
    dir: PathBuf,
    files: Files,
    inotify: Inotify,
    buffer: Vec<u8>,
    /// The directory itself: its watch, device and inode.
    watched: Option<Watched>,
    parent: Option<WatchDescriptor>,
}

#[derive(Debug)]
struct Watched {
    watch: WatchDescriptor,
    dev: u64,
    ino: u64,
}

/// What a batch of kernel events asks for.
#[derive(Default)]
struct Todo {
    names: BTreeSet<String>,
    rescan: bool,
    recheck: bool,
    /// The directory was moved or deleted: its watch says nothing more of the path, even where a new
    /// one has the same inode number.
    unwatch: bool,
}

impl ManifestSource {
    /// Starts to follow a directory. `node_name` tells which Node object is this agent's.
    pub fn open(dir: &Path, node_name: &str) -> Result<Self, ManifestError> {
        let open_error = |source| ManifestError::Open {
            dir: dir.to_owned(),
            source,
        };
        let follow_error = |source| ManifestError::Follow {
            dir: dir.to_owned(),
            source,
        };
        fs::read_dir(dir).map_err(open_error)?;
        let path = std::path::absolute(dir).map_err(open_error)?;
        let inotify = Inotify::init().map_err(follow_error)?;
        let mut source = ManifestSource {
            files: Files::new(&path, node_name),
            dir: path,
            inotify,
            buffer: vec![0; BUFFER_BYTES],
            watched: None,
            parent: None,
        };
        // The parent tells when the directory, or a link that leads to it, is replaced.
        if let Some(parent) = source.dir.parent() {
            let mask = WatchMask::CREATE
                | WatchMask::MOVED_TO
                | WatchMask::MOVED_FROM
                | WatchMask::DELETE
                | WatchMask::ONLYDIR;
            source.parent = source.inotify.watches().add(parent, mask).ok();
        }
        source.watch_dir().map_err(follow_error)?;
        Ok(source)
    }

    /// Everything that the directory holds now.
    pub fn initial(&mut self) -> Result<Vec<ObjectEvent>, ManifestError> {
        self.rescan()
    }

    /// Waits for the next change of objects.
    pub fn next_batch(&mut self) -> Result<Vec<ObjectEvent>, ManifestError> {
        loop {
            let todo = self.wait()?;
            let events = self.handle(todo)?;
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    /// Compares every file with what is known of it and reads those that differ: a net below the
    /// kernel's events, for an audit.
    pub fn rescan(&mut self) -> Result<Vec<ObjectEvent>, ManifestError> {
        let dir = &self.dir;
        self.files.rescan().map_err(|source| ManifestError::Open {
            dir: dir.clone(),
            source,
        })
    }

    /// The present problems of the files, kept up to date.
    pub fn problems(&self) -> ManifestProblems {
        self.files.problems()
    }

    /// Follows the directory on a thread of its own, which ends with the receiver.
    pub fn follow(mut self) -> io::Result<Follower> {
        let (sender, events) = mpsc::channel(BATCHES);
        let problems = self.problems();
        thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || {
                loop {
                    match self.next_batch() {
                        Ok(batch) => {
                            if sender.blocking_send(batch).is_err() {
                                return;
                            }
                        }
                        Err(error) => {
                            let cause = std::error::Error::source(&error).map(ToString::to_string);
                            tracing::error!("{error}: {}", cause.unwrap_or_default());
                            return;
                        }
                    }
                }
            })?;
        Ok(Follower { events, problems })
    }

    /// Blocks for one kernel event and drains the queue behind it.
    fn wait(&mut self) -> Result<Todo, ManifestError> {
        let mut todo = Todo::default();
        let mut block = true;
        loop {
            let read = if block {
                self.inotify.read_events_blocking(&mut self.buffer)
            } else {
                self.inotify.read_events(&mut self.buffer)
            };
            let events = match read {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(todo),
                Err(source) => {
                    return Err(ManifestError::Follow {
                        dir: self.dir.clone(),
                        source,
                    });
                }
            };
            block = false;
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    (todo.rescan, todo.recheck) = (true, true);
                } else if self.parent.as_ref() == Some(&event.wd) {
                    todo.recheck |= event.name == self.dir.file_name();
                } else if self
                    .watched
                    .as_ref()
                    .is_some_and(|watched| watched.watch == event.wd)
                {
                    note(
                        &self.dir,
                        &self.files,
                        event.mask,
                        event.name.map(OsString::from),
                        &mut todo,
                    );
                }
            }
        }
    }

    fn handle(&mut self, todo: Todo) -> Result<Vec<ObjectEvent>, ManifestError> {
        let mut rescan = todo.rescan;
        if todo.unwatch
            && let Some(old) = self.watched.take()
        {
            // The kernel removes the watch of a deleted directory itself.
            self.inotify.watches().remove(old.watch).ok();
        }
        if todo.recheck {
            match self.watch_dir() {
                Ok(moved) => {
                    rescan |= moved;
                    self.files.set_dir_problem(None);
                }
                Err(error) => {
                    let problem = format!(
                        "the manifest directory {} is gone ({error}); the last state serves until \
                         it is back",
                        self.dir.display()
                    );
                    self.files.set_dir_problem(Some(problem));
                    return Ok(Vec::new());
                }
            }
        }
        if rescan {
            match self.rescan() {
                Ok(events) => return Ok(events),
                // It went away again; its parent will tell.
                Err(error) => {
                    tracing::warn!("{error}");
                    return Ok(Vec::new());
                }
            }
        }
        if self.watched.is_none() {
            return Ok(Vec::new());
        }
        Ok(self.files.refresh(&todo.names))
    }

    /// Watches what the path leads to now. Tells whether that is another directory than before.
    fn watch_dir(&mut self) -> io::Result<bool> {
        let mut watches = self.inotify.watches();
        let meta = match fs::metadata(&self.dir).and_then(|meta| {
            if meta.is_dir() {
                Ok(meta)
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        }) {
            Ok(meta) => meta,
            Err(error) => {
                if let Some(old) = self.watched.take() {
                    watches.remove(old.watch).ok();
                }
                return Err(error);
            }
        };
        let same = |watched: &Watched| (watched.dev, watched.ino) == (meta.dev(), meta.ino());
        if self.watched.as_ref().is_some_and(same) {
            return Ok(false);
        }
        if let Some(old) = self.watched.take() {
            watches.remove(old.watch).ok();
        }
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::CREATE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let watch = watches.add(&self.dir, mask)?;
        self.watched = Some(Watched {
            watch,
            dev: meta.dev(),
            ino: meta.ino(),
        });
        Ok(true)
    }
}

/// Notes what an event in the directory asks for.
fn note(dir: &Path, files: &Files, mask: EventMask, name: Option<OsString>, todo: &mut Todo) {
    if mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
        (todo.recheck, todo.unwatch) = (true, true);
        return;
    }
    let Some(name) = name.and_then(|name| name.into_string().ok()) else {
        return;
    };
    // A mounted ConfigMap is renewed by renaming this link.
    if name == "..data" {
        todo.rescan = true;
        return;
    }
    let name = match name.strip_suffix('~') {
        Some(original) if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) => {
            original.to_owned()
        }
        _ => name,
    };
    if !files::is_manifest(&name) {
        return;
    }
    let wanted = if mask.contains(EventMask::CREATE) {
        // A new file that is being written ends with CLOSE_WRITE; a link is whole from the start.
        fs::symlink_metadata(dir.join(&name))
            .is_ok_and(|meta| meta.is_symlink() || (meta.is_file() && meta.nlink() > 1))
    } else if mask.contains(EventMask::ATTRIB) {
        // It may have become readable.
        files.is_broken(&name)
    } else {
        true
    };
    if wanted {
        todo.names.insert(name);
    }
}

/// A manifest directory that a thread follows.
#[derive(Debug)]
pub struct Follower {
    /// Batches of changes, in order. Closed when the directory cannot be followed any more.
    pub events: mpsc::Receiver<Vec<ObjectEvent>>,
    /// The present problems of the files.
    pub problems: ManifestProblems,
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
