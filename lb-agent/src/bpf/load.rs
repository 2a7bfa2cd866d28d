//! The embedded object → maps and programs in the kernel, pinned below `<bpffs>/lb/v<ABI>/`.
//!
//! Maps keep their pins over restarts. Programs are loaded one by one, when they are first asked for. The
//! tail-call arrays are new with every load, because an array that two loads share would send packets of old
//! programs into new ones: they wait under a temporary name until [`Loaded::commit`].

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::Map,
    programs::{Program, ProgramError},
};
use lb_common::{
    abi::SELECTION_BLOCK_ROWS,
    flow_table::Seeds,
    names::{PIN_ROOT, constants, maps as names, programs},
};

use super::{
    features::Features,
    flow_size::{FlowSize, random_seeds},
    maps::{Access, MapError, TypedMap, bytes, pin_dir, program_pin},
    sys,
};

/// The BPF object that this build carries; empty when it was built without.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb.o"));

/// Why the dataplane cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Built without the BPF target.
    #[error("this lb-agent has no BPF programs inside; build it with `cargo xtask build`")]
    NoObject,
    /// Not root, and without the capabilities.
    #[error(
        "no permission for bpf(2); run as root or with the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    Privilege(#[source] io::Error),
    /// No bpf filesystem.
    #[error("cannot mount a bpf filesystem at {}; mount one, or name another mount with --bpffs", path.display())]
    Bpffs {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A pin cannot be made or read.
    #[error("cannot {what} {}", path.display())]
    Pin {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A pinned map is of another build.
    #[error(
        "pinned map {map} has {field} {found}, this build needs {wanted}; run `lb-agent cleanup`, then start again (flows are lost)"
    )]
    Unfit {
        map: String,
        /// The property that differs, in words.
        field: &'static str,
        /// In the kernel.
        found: u32,
        /// In the object.
        wanted: u32,
    },
    /// The object cannot be read.
    #[error("cannot read the embedded BPF object; build again with `cargo xtask build`")]
    Object(#[source] aya_obj::ParseError),
    /// Maps cannot be made.
    #[error(
        "cannot create the BPF maps; lower --max-frontends, --max-backends or --flow-table-size if memory is short"
    )]
    Maps(#[source] Box<EbpfError>),
    /// A program is refused.
    #[error("the kernel refuses the program {program}: {source}; the verifier's last lines: {log}")]
    Program {
        program: &'static str,
        /// Last lines of the verifier's log.
        log: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No random numbers.
    #[error("cannot draw the keys of the table of flows")]
    Seeds(#[source] io::Error),
    /// Their map cannot be read or written.
    #[error("cannot keep the keys of the table of flows")]
    SeedsMap(#[source] MapError),
    /// Not in the object.
    #[error(
        "the embedded BPF object has no {what} named {name}; build again with `cargo xtask build`"
    )]
    Absent {
        /// Program or map.
        what: &'static str,
        name: &'static str,
    },
}

/// Entries of the maps, decided before they are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sizes {
    /// `services_*`; `service_stats` has twice as many, for both families.
    pub frontends: u32,
    /// Elements of each of `backends_*`.
    pub backends: u32,
    /// The tables of flows.
    pub flows: FlowSize,
    /// Rows of `selection`, which lie in blocks.
    pub rows: u32,
}

/// What tables may take of a machine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MemoryShare {
    /// The tables of flows.
    pub flows: FlowSize,
    /// Elements of each of `backends_*`.
    pub backends: u32,
    /// Rows of `selection`.
    pub rows: u32,
}

impl MemoryShare {
    /// A 128th of the memory for flows, a 320th for backends of both families, and for selection tables a 160th up to
    /// 68 MiB, beyond that a 512th. What fits stands in docs/limits.md.
    pub(crate) fn of(memory_bytes: u64) -> MemoryShare {
        MemoryShare {
            flows: FlowSize::within(memory_bytes / 128),
            // 48 B: an element of either family.
            backends: share(memory_bytes / 320 / 48, 1 << 18, 1 << 21),
            rows: share(
                (memory_bytes / 160).min(68 << 20).max(memory_bytes / 512) / 4,
                1 << 22,
                1 << 26,
            ),
        }
    }
}

impl Sizes {
    fn blocks(&self) -> u32 {
        let block = u32::try_from(SELECTION_BLOCK_ROWS).unwrap_or(1024);
        self.rows.div_ceil(block)
    }

    fn entries(&self) -> [(&'static str, u32); 10] {
        [
            (names::SERVICES[0], self.frontends),
            (names::SERVICES[1], self.frontends),
            // Ids are unique over both families.
            (names::SERVICE_STATS, self.frontends.saturating_mul(2)),
            (names::BACKENDS[0], self.backends),
            (names::BACKENDS[1], self.backends),
            (names::SELECTION, self.blocks()),
            (names::FLOWS[0], self.flows.buckets()),
            (names::FLOWS[1], self.flows.buckets()),
            (names::FLOW_INDEX[0], self.flows.lines()),
            (names::FLOW_INDEX[1], self.flows.lines()),
        ]
    }
}

fn share(amount: u64, least: u32, most: u32) -> u32 {
    u32::try_from(amount).unwrap_or(u32::MAX).clamp(least, most)
}

/// Bytes of memory of this machine.
pub(crate) fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = line
        .and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(1 << 20);
    kib * 1024
}

/// The object in the kernel.
#[derive(Debug)]
pub(crate) struct Loaded {
    dir: PathBuf,
    ebpf: Ebpf,
    programs: HashMap<&'static str, OwnedFd>,
    tails: Vec<(&'static str, OwnedFd)>,
    /// Sizes that a flag asked for and a kept map does not have: map, has, asked.
    pub kept_sizes: Vec<(String, u32, u32)>,
}

impl Loaded {
    /// Makes or adopts the maps. No program is loaded yet.
    pub(crate) fn new(
        bpffs: &Path,
        sizes: &Sizes,
        features: &Features,
    ) -> Result<Loaded, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        raise_memlock();
        mount_bpffs(bpffs)?;
        let dir = pin_dir(bpffs);
        for sub in [
            bpffs.join(PIN_ROOT),
            dir.clone(),
            dir.join("programs"),
            dir.join("links"),
        ] {
            make_dir(&sub)?;
        }
        let object = aya_obj::Object::parse(OBJECT).map_err(LoadError::Object)?;
        let mut kept_sizes = Vec::new();
        let mut loader = EbpfLoader::new();
        let mut sizes: HashMap<&str, u32> = sizes.entries().into();
        for (name, map) in &object.maps {
            let Some(name) = pinned_name(name) else {
                continue;
            };
            let wanted = sizes.get(name).copied();
            let wanted = wanted.unwrap_or_else(|| map.max_entries());
            let size = check_pinned(&dir, name, map)?.unwrap_or(wanted);
            if size != wanted {
                kept_sizes.push((name.to_owned(), size, wanted));
            }
            sizes.insert(name, size);
            loader.map_max_entries(name, size);
            loader.map_pin_path(name, dir.join(name));
        }
        let features = features.constants();
        for (name, value) in &features {
            loader.override_global(name, value, true);
        }
        // Programs find flows by the sizes that the tables have and by the keys that they were made with.
        let kept_seeds = pinned_seeds(&dir)?;
        let seeds = match kept_seeds {
            Some(seeds) => seeds,
            None => random_seeds().map_err(LoadError::Seeds)?,
        };
        let buckets = masks(names::FLOWS, &sizes)?;
        let lines = masks(names::FLOW_INDEX, &sizes)?;
        loader.override_global(constants::FLOW_BUCKET_MASKS, buckets.as_slice(), true);
        loader.override_global(constants::FLOW_LINE_MASKS, lines.as_slice(), true);
        loader.override_global(constants::FLOW_SEEDS, bytes(&seeds), true);
        let ebpf = loader
            .load(OBJECT)
            .map_err(|error| match io_cause(&error) {
                Some(libc::EPERM) => {
                    LoadError::Privilege(io::Error::from_raw_os_error(libc::EPERM))
                }
                _ => LoadError::Maps(Box::new(error)),
            })?;
        // Before any program of this table is loaded: an agent that is killed in between finds none, and draws anew.
        if kept_seeds.is_none() {
            keep_seeds(&dir, &seeds)?;
        }
        let tails =
            [names::TAILS_XDP, names::TAILS_TC].map(|name| Ok((name, prog_array(&ebpf, name)?)));
        let tails = tails.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(Loaded {
            dir,
            ebpf,
            programs: HashMap::new(),
            tails,
            kept_sizes,
        })
    }

    /// The directory of this version's pins.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A program's descriptor; loads it and its tail calls when it is asked for first.
    pub(crate) fn program(&mut self, name: &'static str) -> Result<BorrowedFd<'_>, LoadError> {
        if !self.programs.contains_key(name) {
            self.load_tails(name)?;
            let fd = self.load_program(name)?;
            self.programs.insert(name, fd);
        }
        self.programs
            .get(name)
            .map(AsFd::as_fd)
            .ok_or(LoadError::Absent {
                what: "program",
                name,
            })
    }

    /// The descriptor of a program that was loaded before.
    pub(crate) fn loaded(&self, name: &'static str) -> Result<BorrowedFd<'_>, LoadError> {
        self.programs
            .get(name)
            .map(AsFd::as_fd)
            .ok_or(LoadError::Absent {
                what: "loaded program",
                name,
            })
    }

    fn load_tails(&mut self, caller: &'static str) -> Result<(), LoadError> {
        let (array, slots) = match caller {
            programs::XDP_EXT_IN => (0, programs::TAILS_XDP_SLOTS),
            _ if caller.starts_with("tc_") => (1, programs::TAILS_TC_SLOTS),
            _ => return Ok(()),
        };
        for (slot, name) in slots {
            if self.programs.contains_key(name) {
                continue;
            }
            let fd = self.load_program(name)?;
            let (map, array) = &self.tails[array];
            let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
            sys::map_update(array.as_fd(), bytes(slot), &raw.to_ne_bytes(), 0).map_err(
                |source| LoadError::Pin {
                    what: "fill the tail calls of",
                    path: self.dir.join(map),
                    source,
                },
            )?;
            self.programs.insert(name, fd);
        }
        Ok(())
    }

    fn load_program(&mut self, name: &'static str) -> Result<OwnedFd, LoadError> {
        let program = self.ebpf.program_mut(name).ok_or(LoadError::Absent {
            what: "program",
            name,
        })?;
        let loaded = match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => {
                return Err(LoadError::Absent {
                    what: "XDP, tc or socket program",
                    name,
                });
            }
        };
        loaded.map_err(|error| refused(name, error))?;
        let fd = program.fd().map_err(|error| refused(name, error))?;
        let fd = fd.as_fd().try_clone_to_owned();
        let path = program_pin(&self.dir, name);
        let fd = fd.map_err(|source| LoadError::Pin {
            what: "keep",
            path: path.clone(),
            source,
        })?;
        pin_over(fd.as_fd(), &path)?;
        tracing::debug!(program = name, "program loaded");
        Ok(fd)
    }

    /// After every attachment runs the new programs: the new tail-call arrays take the place of the old.
    pub(crate) fn commit(&self) -> Result<(), LoadError> {
        for (name, array) in &self.tails {
            pin_over(array.as_fd(), &self.dir.join(name))?;
        }
        Ok(())
    }

    /// Before attaching: the new tail-call arrays get a pin of their own, so that they live as long as the programs
    /// even when the agent is killed between attaching and [`Loaded::commit`].
    pub(crate) fn stage(&self) -> Result<(), LoadError> {
        for (name, array) in &self.tails {
            pin_over(array.as_fd(), &self.dir.join(format!("{name}_next")))?;
        }
        Ok(())
    }

    /// The pins of [`Loaded::stage`] go once [`Loaded::commit`] is through.
    pub(crate) fn unstage(&self) -> Result<(), LoadError> {
        for (name, _) in &self.tails {
            remove_file(&self.dir.join(format!("{name}_next")))?;
        }
        Ok(())
    }
}

/// Which maps of the object are pinned for good: all but tail-call arrays and the compiler's data sections.
fn pinned_name(name: &str) -> Option<&str> {
    let ours = !name.contains('.') && name != names::TAILS_XDP && name != names::TAILS_TC;
    ours.then_some(name)
}

/// Number of elements of two arrays less one, by which programs find an element.
fn masks(arrays: [&'static str; 2], sizes: &HashMap<&str, u32>) -> Result<[u32; 2], LoadError> {
    let mut masks = [0; 2];
    for (mask, map) in masks.iter_mut().zip(arrays) {
        let size = sizes.get(map).copied().ok_or(LoadError::Absent {
            what: "map",
            name: map,
        })?;
        if size < 2 || !size.is_power_of_two() {
            return Err(LoadError::Unfit {
                map: map.to_owned(),
                field: "a number of entries that is no power of two:",
                found: size,
                wanted: size.next_power_of_two().max(2),
            });
        }
        *mask = size - 1;
    }
    Ok(masks)
}

/// Where the keys of the tables of flows are kept, if that map is there.
fn seeds_map(dir: &Path) -> Result<Option<TypedMap<u32, Seeds>>, LoadError> {
    match TypedMap::open(dir, names::FLOW_SEEDS, Access::Write) {
        Ok(map) => Ok(Some(map)),
        Err(MapError::Missing { .. }) => Ok(None),
        Err(error) => Err(LoadError::SeedsMap(error)),
    }
}

/// The keys that the pinned tables of flows were made with.
fn pinned_seeds(dir: &Path) -> Result<Option<Seeds>, LoadError> {
    let Some(map) = seeds_map(dir)? else {
        return Ok(None);
    };
    let seeds = map.lookup(&0).map_err(LoadError::SeedsMap)?;
    Ok(seeds.filter(|seeds| *seeds != Seeds::default()))
}

fn keep_seeds(dir: &Path, seeds: &Seeds) -> Result<(), LoadError> {
    match seeds_map(dir)? {
        Some(map) => map.update(&0, seeds).map_err(LoadError::SeedsMap),
        None => Err(LoadError::Absent {
            what: "map",
            name: names::FLOW_SEEDS,
        }),
    }
}

/// Compares a pinned map, if there is one, with the object's, and gives its number of entries: that is kept.
fn check_pinned(dir: &Path, name: &str, map: &aya_obj::Map) -> Result<Option<u32>, LoadError> {
    let path = dir.join(name);
    let fd = match sys::obj_get(&path, 0) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(LoadError::Pin {
                what: "open the pinned map",
                path,
                source,
            });
        }
    };
    let info = sys::map_info(fd.as_fd()).map_err(|source| LoadError::Pin {
        what: "describe the pinned map",
        path,
        source,
    })?;
    let fields = [
        ("type", info.map_type, map.map_type()),
        ("key size", info.key_size, map.key_size()),
        ("value size", info.value_size, map.value_size()),
        ("flags", info.map_flags, map.map_flags()),
    ];
    for (field, found, wanted) in fields {
        // A ring buffer's sizes are 0 in the kernel whatever the object's BTF says of its records.
        let ring = info.key_size == 0 && field.ends_with("size");
        if found != wanted && !ring {
            return Err(LoadError::Unfit {
                map: name.to_owned(),
                field,
                found,
                wanted,
            });
        }
    }
    Ok(Some(info.max_entries))
}

fn prog_array(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, LoadError> {
    let absent = LoadError::Absent { what: "map", name };
    // Left in its place: closing it would pull the descriptor from under the programs' relocations.
    let Some(Map::ProgramArray(map)) = ebpf.map(name) else {
        return Err(absent);
    };
    map.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| LoadError::Pin {
            what: "keep",
            path: name.into(),
            source,
        })
}

/// The `errno` at the bottom of a chain of causes.
fn io_cause(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = error.source();
    }
    None
}

fn refused(program: &'static str, error: ProgramError) -> LoadError {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            tracing::debug!(program, "verifier log:\n{log}");
            if io_error.raw_os_error() == Some(libc::EPERM) && log.trim().is_empty() {
                return LoadError::Privilege(io_error);
            }
            let lines: Vec<&str> = log.trim_end().lines().collect();
            let log = lines[lines.len().saturating_sub(12)..].join("\n");
            LoadError::Program {
                program,
                log,
                source: Box::new(io_error),
            }
        }
        error => LoadError::Program {
            program,
            log: String::from("none"),
            source: Box::new(error),
        },
    }
}

/// Pins over whatever has the name: a rename in the bpf filesystem is atomic.
pub(crate) fn pin_over(fd: BorrowedFd<'_>, path: &Path) -> Result<(), LoadError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push("_new");
    let temporary = PathBuf::from(temporary);
    remove_file(&temporary)?;
    sys::obj_pin(fd, &temporary).map_err(|source| LoadError::Pin {
        what: "pin",
        path: temporary.clone(),
        source,
    })?;
    fs::rename(&temporary, path).map_err(|source| LoadError::Pin {
        what: "pin",
        path: path.to_owned(),
        source,
    })
}

/// Removes a file; one that is not there is as good as removed.
pub(crate) fn remove_file(path: &Path) -> Result<(), LoadError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LoadError::Pin {
            what: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn make_dir(path: &Path) -> Result<(), LoadError> {
    match fs::create_dir(path) {
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            Err(LoadError::Privilege(source))
        }
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(LoadError::Pin {
            what: "create the directory",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Whether a bpf filesystem is mounted there.
pub(crate) fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path =
        std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
    // SAFETY: all integers; any bit pattern is valid.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated path and a live struct.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The C libraries disagree about the types.
    #[allow(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::unnecessary_cast,
        reason = "magic numbers have 32 bits"
    )]
    Ok(stat.f_type as u32 == libc::BPF_FS_MAGIC as u32)
}

fn mount_bpffs(path: &Path) -> Result<(), LoadError> {
    let failed = |source| LoadError::Bpffs {
        path: path.to_owned(),
        source,
    };
    fs::create_dir_all(path).map_err(failed)?;
    if is_bpffs(path).map_err(failed)? {
        return Ok(());
    }
    let target = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|error| failed(io::Error::other(error)))?;
    // SAFETY: terminated strings that live through the call; no data.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            target.as_ptr(),
            c"bpf".as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    if result != 0 {
        Err(failed(io::Error::last_os_error()))
    } else {
        Ok(())
    }
}

/// Before 5.11 maps count against this limit; later kernels ignore it, so a failure means nothing.
fn raise_memlock() {
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a live struct that the kernel reads.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "cannot raise the limit of locked memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_memory_stay_within_their_bounds() {
        assert_eq!(share(5, 10, 20), 10);
        assert_eq!(share(u64::MAX, 10, 20), 20);
        assert_eq!(share(15, 10, 20), 15);
    }

    #[test]
    fn tail_calls_and_data_sections_have_no_lasting_pin() {
        assert_eq!(pinned_name("flows_v4"), Some("flows_v4"));
        assert_eq!(pinned_name("tails_tc"), None);
        assert_eq!(pinned_name(".rodata"), None);
    }

    #[test]
    fn masks_are_of_powers_of_two() {
        let masks = |a: u32, b: u32| masks(["a", "b"], &HashMap::from([("a", a), ("b", b)])).ok();
        assert_eq!(masks(2, 4096), Some([1, 4095]));
        assert_eq!(masks(2, 3), None);
        assert_eq!(masks(1, 2), None);
    }
}
