//! The record table's own BPF object, loaded with a size: its programs on a CPU each, its arrays as a table at rest.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader, Pod,
    programs::{Program, Xdp},
};
use lb_common::flow_table::{Geometry, TableFamily};
use lb_common::names::{constants, maps};

use crate::bench::sys::test_run;
use crate::cases::SEEDS;
use crate::mapped_table::{MappedTable, seed_words};

/// Orders and results of a run, as `lb-ebpf`'s `table` reads and writes them in the packet.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Work {
    /// State of the random numbers; not 0.
    pub random: u64,
    /// Operations so far.
    pub counter: u64,
    /// Flows less one, a power of two less one.
    pub mask: u32,
    /// The first flow.
    pub base: u32,
    /// How many flows behind one is deleted.
    pub lag: u32,
    /// Whether a stress also confirms and closes.
    pub changes: u32,
    /// Insertions that made a record.
    pub inserted: u64,
    /// Insertions that found the tuple's record.
    pub had_record: u64,
    /// Insertions whose derived tuple was taken.
    pub exists: u64,
    /// Insertions without room.
    pub full: u64,
    /// Insertions that did not get a lock.
    pub busy: u64,
    /// Records that gave way.
    pub evicted: u64,
    /// Records found.
    pub found: u64,
    /// Tuples without a record.
    pub missed: u64,
    /// Deleted.
    pub deleted: u64,
    /// Confirmed or closed.
    pub changed: u64,
    /// Found, and not what was put in.
    pub wrong: u64,
    /// Of no meaning.
    pub sum: u64,
}

// SAFETY: integers only, without gaps.
unsafe impl Pod for Work {}

/// A table of the object.
#[derive(Debug)]
pub struct TableTrial {
    ebpf: Ebpf,
    geometry: Geometry,
}

impl TableTrial {
    /// Loads the object with arrays of this size, powers of two.
    pub fn load(buckets: u32, lines: u32) -> Result<Self> {
        let path = object_path();
        let object = std::fs::read(&path).with_context(|| {
            format!(
                "cannot read {}; run `cargo xtask build --bpf-only`",
                path.display()
            )
        })?;
        let (bucket_mask, line_mask) = (buckets - 1, lines - 1);
        let mut loader = EbpfLoader::new();
        for family in 0..2 {
            loader.map_max_entries(maps::FLOWS[family], buckets);
            loader.map_max_entries(maps::FLOW_INDEX[family], lines);
        }
        let (bucket_masks, line_masks, seeds) =
            ([bucket_mask; 2], [line_mask; 2], seed_words(&SEEDS));
        loader.override_global(constants::FLOW_BUCKET_MASKS, &bucket_masks, true);
        loader.override_global(constants::FLOW_LINE_MASKS, &line_masks, true);
        loader.override_global(constants::FLOW_SEEDS, &seeds, true);
        let ebpf = loader
            .load(&object)
            .with_context(|| format!("cannot load {}", path.display()))?;
        let geometry = Geometry {
            bucket_mask,
            line_mask,
            seeds: SEEDS,
        };
        Ok(TableTrial { ebpf, geometry })
    }

    /// Names of all programs.
    pub fn names(&self) -> Vec<String> {
        self.ebpf
            .programs()
            .map(|(name, _)| name.to_owned())
            .collect()
    }

    /// Loads a program.
    pub fn verify(&mut self, name: &str) -> Result<&Xdp> {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("no program `{name}`"))?;
        let Program::Xdp(program) = program else {
            return Err(anyhow!("program `{name}` is no XDP program"));
        };
        if program.fd().is_err() {
            program
                .load()
                .with_context(|| format!("the verifier rejects `{name}`"))?;
        }
        Ok(program)
    }

    /// Runs a program; gives what came of it, and the CPU time.
    pub fn run(&mut self, name: &str, work: Work, repeat: u32) -> Result<(Work, Duration)> {
        use std::os::fd::AsFd as _;
        let program = self.verify(name)?;
        run(program.fd()?.as_fd(), work, repeat)
    }

    /// Runs a program on several threads at once, each with its work, `rounds` times.
    pub fn run_at_once(
        &mut self,
        name: &str,
        works: &[Work],
        repeat: u32,
        rounds: u32,
    ) -> Result<Vec<Work>> {
        use std::os::fd::AsFd as _;
        let program = self.verify(name)?.fd()?.try_clone()?;
        std::thread::scope(|scope| {
            let threads: Vec<_> = works
                .iter()
                .map(|work| {
                    let program = program.as_fd();
                    scope.spawn(move || {
                        let mut work = *work;
                        for _ in 0..rounds {
                            work = run(program, work, repeat)?.0;
                        }
                        Ok(work)
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined
                .map(|result| result.unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
                .collect()
        })
    }

    /// A family's arrays.
    pub fn table<F: TableFamily>(&self) -> Result<MappedTable<F>> {
        let map = |name| {
            self.ebpf
                .map(name)
                .ok_or_else(|| anyhow!("no map `{name}`"))
        };
        MappedTable::new(
            map(maps::FLOWS[F::INDEX])?,
            map(maps::FLOW_INDEX[F::INDEX])?,
            self.geometry,
        )
    }
}

fn run(program: std::os::fd::BorrowedFd<'_>, work: Work, repeat: u32) -> Result<(Work, Duration)> {
    let packet = bytes(&work);
    // `struct xdp_md`, of which the kernel wants the packet's end.
    let mut context = [0u8; 24];
    context[4..8].copy_from_slice(&u32::try_from(packet.len())?.to_ne_bytes());
    let ran = test_run(program, &packet, &context, repeat)?;
    Ok((from_bytes(&ran.packet)?, ran.time))
}

fn bytes(work: &Work) -> Vec<u8> {
    // SAFETY: integers without gaps: every byte is initialised.
    let bytes: [u8; size_of::<Work>()] = unsafe { std::mem::transmute(*work) };
    bytes.to_vec()
}

fn from_bytes(bytes: &[u8]) -> Result<Work> {
    let bytes: [u8; size_of::<Work>()] = bytes
        .get(..size_of::<Work>())
        .context("the packet became shorter")?
        .try_into()?;
    // SAFETY: integers: any bytes are valid.
    Ok(unsafe { std::mem::transmute::<[u8; size_of::<Work>()], Work>(bytes) })
}

/// Where `cargo xtask build --bpf-only` leaves the programs.
fn object_path() -> PathBuf {
    crate::agent::target_dir().join("bpf/table.o")
}
