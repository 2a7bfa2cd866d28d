//! Manifest files → object events. Each object belongs to the first file that has it; a broken file
//! keeps its last good objects. Only files that are named are read again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, Metadata},
    hash::{DefaultHasher, Hasher},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::{
    decode::{self, Contents, ObjectId, Reduced},
    intern::Interner,
    objects::{EndpointSlice, Key, ObjectEvent},
};

/// What is wrong with a file at present.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileProblem {
    /// Its name.
    pub file: String,
    /// Document, object, field and what is wrong.
    pub message: String,
}

/// The problems of all files, shared with whoever shows them.
#[derive(Clone, Debug, Default)]
pub struct ManifestProblems(Arc<Mutex<Vec<FileProblem>>>);

impl ManifestProblems {
    /// The present problems, sorted by file.
    pub fn list(&self) -> Vec<FileProblem> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
    pub(super) fn set(&self, problems: Vec<FileProblem>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }
}

/// What tells whether a file changed without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Stamp {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[derive(Debug)]
struct File {
    stamp: Option<Stamp>,
    /// Of the bytes that were last read.
    hash: u64,
    /// Of its last good state.
    ids: Vec<ObjectId>,
}

/// One file's wish to define an object.
#[derive(Debug)]
struct Claim {
    file: Arc<str>,
    document: usize,
    reduced: Reduced,
    reported: bool,
}

/// A file as it was just read.
struct Read {
    name: Arc<str>,
    outcome: Outcome,
}

enum Outcome {
    Gone,
    Unchanged(Option<Stamp>),
    Broken {
        stamp: Option<Stamp>,
        hash: u64,
        message: String,
    },
    Good {
        stamp: Stamp,
        hash: u64,
        contents: Contents,
    },
}

/// All files of the directory and the objects in them.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    node_name: String,
    files: HashMap<Arc<str>, File>,
    /// Who has each object; the first one is in force.
    claims: HashMap<ObjectId, Vec<Claim>>,
    /// Objects with several claims.
    contested: BTreeSet<ObjectId>,
    broken: BTreeMap<Arc<str>, String>,
    dir_problem: Option<String>,
    names: Interner,
    problems: ManifestProblems,
}

/// Whether a file of this name holds manifests. Hidden files are editors' and ConfigMaps' own.
pub(super) fn is_manifest(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

impl Files {
    pub(super) fn new(dir: &Path, node_name: &str) -> Self {
        Files {
            dir: dir.to_owned(),
            node_name: node_name.to_owned(),
            files: HashMap::new(),
            claims: HashMap::new(),
            contested: BTreeSet::new(),
            broken: BTreeMap::new(),
            dir_problem: None,
            names: Interner::default(),
            problems: ManifestProblems::default(),
        }
    }

    pub(super) fn problems(&self) -> ManifestProblems {
        self.problems.clone()
    }

    pub(super) fn is_broken(&self, name: &str) -> bool {
        self.broken.contains_key(name)
    }

    /// Says what is wrong with the directory itself, or that nothing is.
    pub(super) fn set_dir_problem(&mut self, problem: Option<String>) {
        if let Some(problem) = problem
            .as_ref()
            .filter(|p| self.dir_problem.as_ref() != Some(*p))
        {
            tracing::error!("{problem}");
        }
        self.dir_problem = problem;
        self.publish_problems();
    }

    /// Reads the files of these names again.
    pub(super) fn refresh(&mut self, names: &BTreeSet<String>) -> Vec<ObjectEvent> {
        let mut reads = Vec::with_capacity(names.len());
        for name in names {
            let known = self.files.get_key_value(name.as_str());
            let shared = known.map_or_else(|| Arc::from(name.as_str()), |(name, _)| name.clone());
            let outcome = read(
                &self.dir,
                name,
                known.map(|(_, file)| file),
                &mut self.names,
            );
            reads.push(Read {
                name: shared,
                outcome,
            });
        }
        self.take(reads)
    }

    /// Lists the directory and reads those files that are new or changed.
    pub(super) fn rescan(&mut self) -> io::Result<Vec<ObjectEvent>> {
        let mut names: BTreeSet<String> = self.files.keys().map(|name| name.to_string()).collect();
        for entry in fs::read_dir(&self.dir)? {
            if let Ok(name) = entry?.file_name().into_string()
                && is_manifest(&name)
            {
                names.insert(name);
            }
        }
        names.retain(|name| {
            let known = self.files.get(name.as_str()).and_then(|file| file.stamp);
            let present = fs::metadata(self.dir.join(name))
                .ok()
                .map(|meta| Stamp::of(&meta));
            present.is_none() || present != known
        });
        let names: Vec<String> = names.into_iter().collect();
        let reads = self.read_all(&names);
        Ok(self.take(reads))
    }

    /// Reads and decodes on all processors: at the start there may be very many files.
    fn read_all(&mut self, names: &[String]) -> Vec<Read> {
        let workers = thread::available_parallelism()
            .map_or(1, usize::from)
            .min(8);
        let share = names.len().div_ceil(workers).max(64);
        let (dir, files) = (&self.dir, &self.files);
        let mut interner = std::mem::take(&mut self.names);
        let read_some = |names: &[String], interner: &mut Interner| -> Vec<Read> {
            let read_one = |name: &String| {
                let outcome = read(dir, name, files.get(name.as_str()), interner);
                Read {
                    name: name.as_str().into(),
                    outcome,
                }
            };
            names.iter().map(read_one).collect()
        };
        let mut shares = names.chunks(share);
        let own = shares.next().unwrap_or(&[]);
        let reads = thread::scope(|scope| {
            let others: Vec<_> = shares
                .map(|names| {
                    (
                        names,
                        scope.spawn(move || read_some(names, &mut Interner::default())),
                    )
                })
                .collect();
            let mut reads = read_some(own, &mut interner);
            for (names, other) in others {
                // A worker that died leaves its share to this thread.
                reads.extend(
                    other
                        .join()
                        .unwrap_or_else(|_panic| read_some(names, &mut interner)),
                );
            }
            reads
        });
        self.names = interner;
        reads
    }

    /// Takes files as read. Objects are first taken from files that lost them and then given, so
    /// that one may move between files within a batch.
    fn take(&mut self, reads: Vec<Read>) -> Vec<ObjectEvent> {
        let mut before: BTreeMap<ObjectId, Option<Reduced>> = BTreeMap::new();
        for read in &reads {
            let kept: BTreeSet<&ObjectId> = match &read.outcome {
                Outcome::Good { contents, .. } => contents.objects.iter().map(|o| &o.id).collect(),
                Outcome::Gone => BTreeSet::new(),
                _ => continue,
            };
            let Some(file) = self.files.get_mut(&read.name) else {
                continue;
            };
            file.ids.retain(|id| {
                let keep = kept.contains(id);
                if !keep && let Some(claims) = self.claims.get_mut(id) {
                    before.entry(id.clone()).or_insert_with(|| in_force(claims));
                    claims.retain(|claim| claim.file != read.name);
                    if claims.is_empty() {
                        self.claims.remove(id);
                    }
                }
                keep
            });
        }
        for read in reads {
            self.take_file(read, &mut before);
        }
        let mut events = Vec::with_capacity(before.len());
        for (id, before) in before {
            self.report_duplicates(&id);
            let after = self.claims.get(&id).and_then(|claims| claims.first());
            push_events(
                &id,
                before.as_ref(),
                after.map(|claim| &claim.reduced),
                &self.node_name,
                &mut events,
            );
        }
        self.publish_problems();
        events
    }

    fn take_file(&mut self, read: Read, before: &mut BTreeMap<ObjectId, Option<Reduced>>) {
        let Read { name, outcome } = read;
        match outcome {
            Outcome::Gone => {
                self.files.remove(&name);
                self.broken.remove(&name);
            }
            Outcome::Unchanged(stamp) => {
                if let Some(file) = self.files.get_mut(&name) {
                    file.stamp = stamp;
                }
            }
            Outcome::Broken {
                stamp,
                hash,
                message,
            } => {
                tracing::error!(file = %name, "{message}; the last good state of the file serves");
                self.broken.insert(name.clone(), message);
                let file = self.files.entry(name).or_insert(File {
                    stamp,
                    hash,
                    ids: Vec::new(),
                });
                (file.stamp, file.hash) = (stamp, hash);
            }
            Outcome::Good {
                stamp,
                hash,
                contents,
            } => {
                self.broken.remove(&name);
                if !contents.ignored.is_empty() {
                    let kinds = contents.ignored.join(", ");
                    tracing::warn!(file = %name, "objects of these kinds are ignored: {kinds}");
                }
                let ids = self.claim_all(&name, contents, before);
                self.files.insert(
                    name,
                    File {
                        stamp: Some(stamp),
                        hash,
                        ids,
                    },
                );
            }
        }
    }

    /// Enters the objects of a file; one that it had already keeps its place.
    fn claim_all(
        &mut self,
        file: &Arc<str>,
        contents: Contents,
        before: &mut BTreeMap<ObjectId, Option<Reduced>>,
    ) -> Vec<ObjectId> {
        let mut ids: Vec<ObjectId> = Vec::with_capacity(contents.objects.len());
        let mut seen: BTreeSet<ObjectId> = BTreeSet::new();
        for object in contents.objects {
            let claims = self.claims.entry(object.id.clone()).or_default();
            before
                .entry(object.id.clone())
                .or_insert_with(|| in_force(claims));
            let claim = Claim {
                file: file.clone(),
                document: object.document,
                reduced: object.reduced,
                reported: false,
            };
            if seen.insert(object.id.clone()) {
                let place = claims.iter().position(|claim| claim.file == *file);
                claims.retain(|claim| claim.file != *file);
                claims.insert(place.unwrap_or(claims.len()), claim);
                ids.push(object.id);
            } else {
                claims.push(claim);
            }
        }
        ids
    }

    fn report_duplicates(&mut self, id: &ObjectId) {
        let claims = self
            .claims
            .get_mut(id)
            .map_or(&mut [][..], Vec::as_mut_slice);
        if claims.len() < 2 {
            self.contested.remove(id);
        } else {
            self.contested.insert(id.clone());
        }
        if let Some((first, others)) = claims.split_first_mut() {
            first.reported = false;
            for other in others.iter_mut().filter(|claim| !claim.reported) {
                other.reported = true;
                tracing::error!(file = %other.file, "{}", duplicate_text(id, first, other));
            }
        }
    }

    fn publish_problems(&self) {
        let mut problems: Vec<FileProblem> = Vec::new();
        let problem = |file: &str, message| FileProblem {
            file: file.to_owned(),
            message,
        };
        for (name, message) in &self.broken {
            problems.push(problem(name, message.clone()));
        }
        for id in &self.contested {
            if let Some((first, others)) =
                self.claims.get(id).and_then(|claims| claims.split_first())
            {
                let texts = others
                    .iter()
                    .map(|other| problem(&other.file, duplicate_text(id, first, other)));
                problems.extend(texts);
            }
        }
        problems.sort_by(|a, b| a.file.cmp(&b.file));
        if let Some(text) = &self.dir_problem {
            problems.insert(0, problem("", text.clone()));
        }
        self.problems.set(problems);
    }
}

fn duplicate_text(id: &ObjectId, first: &Claim, other: &Claim) -> String {
    format!(
        "document {}: {id} is in {} (document {}), too, which serves; remove one of them",
        other.document, first.file, first.document
    )
}

fn in_force(claims: &[Claim]) -> Option<Reduced> {
    claims.first().map(|claim| claim.reduced.clone())
}

/// Reads and decodes one file. `known` is what was read of it before.
fn read(dir: &Path, name: &str, known: Option<&File>, names: &mut Interner) -> Outcome {
    let path = dir.join(name);
    let (stamp, bytes) = match stamp_and_bytes(&path) {
        Ok(Some(read)) => read,
        Ok(None) => return Outcome::Gone,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return if known.is_some_and(|file| is_backed_up(&path, file)) {
                Outcome::Unchanged(known.and_then(|file| file.stamp))
            } else {
                Outcome::Gone
            };
        }
        Err(error) => {
            let message = format!("cannot read the file: {error}");
            return broken(None, hash(message.as_bytes()), message, known);
        }
    };
    let hash = hash(&bytes);
    if known.is_some_and(|file| file.hash == hash) {
        return Outcome::Unchanged(Some(stamp));
    }
    if bytes.trim_ascii().is_empty() && known.is_some_and(|file| !file.ids.is_empty()) {
        let message = "the file is empty; to remove its objects, remove the file".to_owned();
        return broken(Some(stamp), hash, message, known);
    }
    match decode::decode(name, &bytes, names) {
        Ok(contents) => Outcome::Good {
            stamp,
            hash,
            contents,
        },
        Err(error) => broken(Some(stamp), hash, error.to_string(), known),
    }
}

fn broken(stamp: Option<Stamp>, hash: u64, message: String, known: Option<&File>) -> Outcome {
    if known.is_some_and(|file| file.hash == hash) {
        return Outcome::Unchanged(stamp);
    }
    Outcome::Broken {
        stamp,
        hash,
        message,
    }
}

/// `None` where it is no file.
fn stamp_and_bytes(path: &Path) -> io::Result<Option<(Stamp, Vec<u8>)>> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Ok(None);
    }
    Ok(Some((Stamp::of(&meta), fs::read(path)?)))
}

/// Whether the vanished file lies beside under its name with a tilde: an editor is about to write it
/// anew.
fn is_backed_up(path: &Path, file: &File) -> bool {
    let mut backup = path.as_os_str().to_owned();
    backup.push("~");
    fs::metadata(PathBuf::from(backup)).is_ok_and(|meta| {
        file.stamp
            .is_some_and(|stamp| (stamp.dev, stamp.ino) == (meta.dev(), meta.ino()))
    })
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// The events that lead from one state of an object to the next.
fn push_events(
    id: &ObjectId,
    before: Option<&Reduced>,
    after: Option<&Reduced>,
    node_name: &str,
    events: &mut Vec<ObjectEvent>,
) {
    if before == after {
        return;
    }
    let service = |reduced: Option<&Reduced>| match reduced {
        Some(Reduced::Service(service)) => Some(service.clone()),
        _ => None,
    };
    let node = |reduced: Option<&Reduced>| match reduced {
        Some(Reduced::Node(node)) if node.name.eq_ignore_ascii_case(node_name) => {
            Some(node.clone())
        }
        _ => None,
    };
    match id.kind {
        decode::Kind::Service => {
            let (before, after) = (service(before), service(after));
            if before != after {
                events.push(ObjectEvent::Service(id.key.clone(), after));
            }
        }
        decode::Kind::Node => {
            let (before, after) = (node(before), node(after));
            if before != after {
                events.push(ObjectEvent::Node(after));
            }
        }
        decode::Kind::EndpointSlice | decode::Kind::Endpoints => {
            let (before, after) = (slices(before), slices(after));
            let find = |list: &[Arc<EndpointSlice>], key: &Key| {
                list.iter().find(|slice| slice.key == *key).cloned()
            };
            for slice in before
                .iter()
                .filter(|slice| find(after, &slice.key).is_none())
            {
                events.push(ObjectEvent::Slice(slice.key.clone(), None));
            }
            for slice in after
                .iter()
                .filter(|slice| find(before, &slice.key).as_ref() != Some(*slice))
            {
                events.push(ObjectEvent::Slice(slice.key.clone(), Some(slice.clone())));
            }
        }
    }
}

fn slices(reduced: Option<&Reduced>) -> &[Arc<EndpointSlice>] {
    match reduced {
        Some(Reduced::Slices(slices)) => slices,
        _ => &[],
    }
}
