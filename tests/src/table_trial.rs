//! The record table's own BPF object, loaded with a size: its programs on a CPU each, its arrays as a table at rest.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::Array,
    programs::{Program, Xdp},
};
use lb_common::flow_table::{
    Bucket, BucketCells, Geometry, Head, INDEX_WAYS, IndexLine, LineCells, Memory, RecordCells,
    Seeds, TableFamily, WAYS, native::Table,
};

use crate::bench::sys::test_run;

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

/// Of the programs.
const SEEDS: Seeds = Seeds {
    offset: 0x243f_6a88_85a3_08d3,
    factors: [
        0x9e37_79b9_7f4a_7c15,
        0xd6e8_feb8_6659_fd93,
        0xa076_1d64_78bd_642f,
        0xe703_7ed1_a0b4_28db,
        0xbf58_476d_1ce4_e5b9,
    ],
};

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
        for name in ["buckets_v4", "buckets_v6"] {
            loader.map_max_entries(name, buckets);
        }
        for name in ["lines_v4", "lines_v6"] {
            loader.map_max_entries(name, lines);
        }
        loader.override_global("BUCKET_MASK", &bucket_mask, true);
        loader.override_global("LINE_MASK", &line_mask, true);
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

    /// A copy of a family's arrays, which nobody changes meanwhile.
    pub fn copy<F: TableFamily>(&self) -> Result<Table> {
        let copy: Table = Table::new::<F>(self.geometry);
        let (buckets, lines) = if F::IS_V6 {
            ("buckets_v6", "lines_v6")
        } else {
            ("buckets_v4", "lines_v4")
        };
        if F::IS_V6 {
            self.copy_buckets::<F, 16>(buckets, &copy)?;
        } else {
            self.copy_buckets::<F, 8>(buckets, &copy)?;
        }
        let map = self
            .ebpf
            .map(lines)
            .ok_or_else(|| anyhow!("no map `{lines}`"))?;
        let map = Array::<_, Element<IndexLine>>::try_from(map)?;
        for index in 0..=self.geometry.line_mask {
            let Element(line) = map.get(&index, 0)?;
            let Some(cells) = Memory::<F>::line(&&copy, index) else {
                continue;
            };
            head(cells, line.lock, line.spill);
            for (way, entry) in (0..INDEX_WAYS).zip(line.entries) {
                cells.set_entry(way, entry);
            }
        }
        Ok(copy)
    }

    fn copy_buckets<F: TableFamily, const WORDS: usize>(
        &self,
        name: &str,
        copy: &Table,
    ) -> Result<()> {
        let map = self
            .ebpf
            .map(name)
            .ok_or_else(|| anyhow!("no map `{name}`"))?;
        let map = Array::<_, Element<Bucket<WORDS>>>::try_from(map)?;
        for index in 0..=self.geometry.bucket_mask {
            let Element(bucket) = map.get(&index, 0)?;
            let Some(cells) = Memory::<F>::bucket(&copy, index) else {
                continue;
            };
            head(cells, bucket.lock, bucket.spill);
            for (way, i) in (0..WAYS).zip(0..) {
                let at: usize = i;
                BucketCells::<F>::set_fingerprint(cells, way, bucket.fingerprints[at]);
                BucketCells::<F>::set_meta(cells, way, bucket.meta[at]);
                let Some(record) = BucketCells::<F>::record(cells, way) else {
                    continue;
                };
                for (i, word) in bucket.records[at].iter().enumerate() {
                    RecordCells::<F>::store(record, i, *word);
                }
            }
        }
        Ok(())
    }
}

fn head<H: Head>(cells: H, lock: u32, spill: u32) {
    cells.add_spill(spill.cast_signed());
    if lock != 0 {
        cells.try_lock();
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

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Element<T>(T);
// SAFETY: transparent over integers of a `repr(C)` type whose gaps are named.
unsafe impl Pod for Element<IndexLine> {}
// SAFETY: as above.
unsafe impl<const WORDS: usize> Pod for Element<Bucket<WORDS>> {}
