//! The state file: what a running agent knows and maps do not hold, above all names. Commands read it beside the
//! pinned maps; it outlives the agent, as they do. Without it they show ids.
//!
//! `/run/lb-agent/<hash of the pin directory>.json`, replaced by rename. Beside it `….lock`, which the agent keeps
//! locked: it tells whether an agent runs, whatever PID namespace one asks from. `LB_RUN_DIR` names another
//! directory.

use std::{
    collections::HashMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::bpf::maps::pin_dir;

const RUN_DIR: &str = "/run/lb-agent";
const RUN_DIR_VARIABLE: &str = "LB_RUN_DIR";

/// Everything in the file. Fields that another build does not write are empty.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
#[serde(default)]
pub(crate) struct State {
    /// Version of the agent.
    pub version: String,
    /// Name of its node.
    pub node: String,
    /// Its process, in its own PID namespace.
    pub pid: u32,
    /// When it started.
    pub started_at: String,
    /// When the file was written.
    pub written_at: String,
    /// When it ended by a signal; absent while it runs, and where it was killed.
    pub stopped_at: Option<String>,
    /// Whether its first complete state was in the maps.
    pub is_ready: bool,
    /// Service ports by id, in order of their names.
    pub services: Vec<ServiceName>,
    /// Service ports that are not, or not fully, in the maps.
    pub unserved: Vec<Unserved>,
    /// Broken manifest files.
    pub manifest_problems: Vec<ManifestProblem>,
    /// Frontends that several service ports claim.
    pub conflicts: Vec<Conflict>,
    /// Services that are served, but not as they say.
    pub warnings: Vec<Warning>,
    /// Interfaces as they are served.
    pub interfaces: Vec<InterfaceReport>,
    /// Socket hooks that are not attached, with the reason.
    pub socket_problems: Vec<String>,
}

/// Name of a service port in one family.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct ServiceName {
    /// Id in the maps.
    pub id: u32,
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port; empty for an unnamed one.
    pub port: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
}

impl ServiceName {
    /// `namespace/name:port`.
    pub(crate) fn full(&self) -> String {
        let colon = if self.port.is_empty() { "" } else { ":" };
        format!("{}/{}{colon}{}", self.namespace, self.name, self.port)
    }
}

/// A service port that the maps do not hold as wanted.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Unserved {
    /// `namespace/name:port/protocol`.
    pub service: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The full map, where that is the reason.
    pub map: Option<String>,
    /// What is wrong.
    pub message: String,
}

/// A file that cannot be used.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ManifestProblem {
    pub file: String,
    /// What is wrong, and where.
    pub message: String,
}

/// A frontend with several claims.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Conflict {
    /// Address and port.
    pub frontend: String,
    pub protocol: String,
    /// Who serves it.
    pub winner: String,
    pub losers: Vec<String>,
}

/// What a person should know about a Service.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Warning {
    /// `namespace/name`.
    pub service: String,
    pub message: String,
}

/// How an interface is served.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct InterfaceReport {
    pub ifindex: u32,
    pub name: String,
    /// `pod` or `external`.
    pub role: String,
    /// `tcx` or `clsact`; absent where tc programs are not attached.
    pub tc: Option<String>,
    pub tc_problem: Option<String>,
    /// `native` or `generic`; absent where XDP is not attached.
    pub xdp: Option<String>,
    pub xdp_reason: Option<String>,
}

impl InterfaceReport {
    /// `tc+xdp`, `tc` or `failed`.
    pub(crate) fn state(&self) -> &'static str {
        match (&self.tc, &self.xdp) {
            (Some(_), Some(_)) => "tc+xdp",
            (Some(_), None) => "tc",
            (None, _) => "failed",
        }
    }
}

/// Whether an agent runs.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Running {
    /// It holds its lock.
    Running,
    /// It left its lock, or none.
    Stopped,
}

/// Why the state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is not what this build writes.
    #[error("{} is no state file of an agent; the agent writes it anew when it starts", path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// Where the state of an agent is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// Of the agent that uses this mount of the bpf filesystem.
    pub(crate) fn of(bpffs: &Path) -> StateFile {
        let dir = std::env::var_os(RUN_DIR_VARIABLE)
            .map_or_else(|| PathBuf::from(RUN_DIR), PathBuf::from);
        StateFile::within(&dir, bpffs)
    }

    fn within(dir: &Path, bpffs: &Path) -> StateFile {
        // One mount may be named in several ways.
        let bpffs = fs::canonicalize(bpffs).unwrap_or_else(|_absent| bpffs.to_owned());
        let name = hash(pin_dir(&bpffs).as_os_str().as_encoded_bytes());
        StateFile {
            path: dir.join(format!("{name:016x}.json")),
        }
    }

    fn lock_path(&self) -> PathBuf {
        self.path.with_extension("lock")
    }

    pub(crate) fn write(&self, state: &State) -> Result<(), StateError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { what, path, source }
        };
        let next = self.path.with_extension("next");
        let json = serde_json::to_vec(state).map_err(|source| StateError::Json {
            path: self.path.clone(),
            source,
        })?;
        fs::write(&next, json).map_err(failed("write", &next))?;
        fs::rename(&next, &self.path).map_err(failed("replace", &self.path))
    }

    /// Reads it; `None`: there is none.
    pub(crate) fn read(&self) -> Result<Option<State>, StateError> {
        let path = self.path.clone();
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| StateError::Json { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io {
                what: "read",
                path,
                source,
            }),
        }
    }

    /// Locks it for as long as the file lives that comes back; `None`: another agent has it.
    pub(crate) fn lock(&self) -> Result<Option<File>, StateError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { what, path, source }
        };
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(failed("create", dir))?;
        }
        let path = self.lock_path();
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
        }
    }

    /// Whether an agent runs.
    pub(crate) fn running(&self) -> Running {
        match File::open(self.lock_path()).map(|file| file.try_lock_shared()) {
            Ok(Err(TryLockError::WouldBlock)) => Running::Running,
            _ => Running::Stopped,
        }
    }

    /// Removes it with its lock; says whether there was one.
    pub(crate) fn remove(&self) -> Result<bool, StateError> {
        let mut removed = false;
        for path in [self.path.clone(), self.lock_path()] {
            match fs::remove_file(&path) {
                Ok(()) => removed = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(StateError::Io {
                        what: "remove",
                        path,
                        source,
                    });
                }
            }
        }
        Ok(removed)
    }
}

/// FNV-1a: the same for every build.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Names of service ports by id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(HashMap<u32, ServiceName>);

impl Names {
    /// From a state; empty without one.
    pub(crate) fn new(state: Option<&State>) -> Names {
        let services = state
            .map(|state| state.services.as_slice())
            .unwrap_or_default();
        Names(
            services
                .iter()
                .map(|name| (name.id, name.clone()))
                .collect(),
        )
    }
    /// The name of a service port.
    pub(crate) fn name(&self, id: u32) -> Option<&ServiceName> {
        self.0.get(&id)
    }
    /// `namespace/name:port`, or the id where the name is not known.
    pub(crate) fn full(&self, id: u32) -> String {
        self.0
            .get(&id)
            .map_or_else(|| format!("id {id}"), ServiceName::full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own, removed on drop.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let path = std::env::temp_dir().join(format!("lb-state-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Dir(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn name(id: u32, port: &str) -> ServiceName {
        ServiceName {
            id,
            namespace: "shop".into(),
            name: "web".into(),
            port: port.into(),
            protocol: "TCP".into(),
            family: "IPv4".into(),
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_unknown_fields_do_no_harm() {
        let dir = Dir::new("read");
        let file = StateFile::within(&dir.0, Path::new("/sys/fs/bpf"));
        assert_eq!(file.read().unwrap(), None);
        let state = State {
            node: "a".into(),
            services: vec![name(3, "http")],
            ..State::default()
        };
        file.write(&state).unwrap();
        assert_eq!(file.read().unwrap(), Some(state.clone()));
        let names = Names::new(Some(&state));
        assert_eq!(
            (names.full(3).as_str(), names.full(4).as_str()),
            ("shop/web:http", "id 4")
        );
        fs::write(&file.path, r#"{"node": "b", "of_tomorrow": 1}"#).unwrap();
        assert_eq!(file.read().unwrap().unwrap().node, "b");
        fs::write(&file.path, "{").unwrap();
        assert!(file.read().unwrap_err().to_string().contains(".json"));
        assert!(file.remove().unwrap());
        assert!(!file.remove().unwrap());
    }

    #[test]
    fn every_mount_has_a_file_of_its_own() {
        let path = |bpffs: &str| StateFile::within(Path::new("/run/x"), Path::new(bpffs)).path;
        assert_ne!(path("/mnt/one"), path("/mnt/two"));
        assert_eq!(path("/tmp/../tmp"), path("/tmp"));
    }

    #[test]
    fn the_lock_tells_whether_an_agent_runs() {
        let dir = Dir::new("lock");
        let file = StateFile::within(&dir.0, Path::new("/sys/fs/bpf"));
        assert_eq!(file.running(), Running::Stopped);
        let lock = file.lock().unwrap().unwrap();
        assert_eq!(file.running(), Running::Running);
        assert!(file.lock().unwrap().is_none());
        drop(lock);
        assert_eq!(file.running(), Running::Stopped);
    }

    #[test]
    fn an_unnamed_port_is_left_out() {
        assert_eq!(name(1, "").full(), "shop/web");
    }
}
