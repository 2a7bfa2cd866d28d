//! One packet through one loaded program: `BPF_PROG_TEST_RUN` over maps that a test fills by hand.
//!
//! Nothing is attached or pinned; everything goes with [`Programs`].

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray},
    programs::Program,
};
use lb_agent::bpf::features::Features;
use lb_common::{
    Family,
    abi::{
        Affinity, AffinityKey, Backend, Be32, Config, Interface, NodeAddrKey, PacketCount,
        PortFilter, SelectionBlock, Service, ServiceKey, ServiceStats, XdpDevice,
    },
    flow_table::{Geometry, TableFamily, WAYS},
    names,
};

use crate::cases::SEEDS;
use crate::mapped_table::{MappedTable, seed_words};

/// What a tc program returns for "not ours": TC_ACT_UNSPEC, TCX_NEXT.
pub const TC_NEXT: u32 = u32::MAX;
/// TC_ACT_OK.
pub const TC_PASS: u32 = 0;
/// TC_ACT_SHOT.
pub const TC_DROP: u32 = 2;
/// TC_ACT_REDIRECT.
pub const TC_REDIRECT: u32 = 7;
/// XDP_DROP.
pub const XDP_DROP: u32 = 1;
/// XDP_PASS.
pub const XDP_PASS: u32 = 2;
/// XDP_TX.
pub const XDP_TX: u32 = 3;
/// XDP_REDIRECT.
pub const XDP_REDIRECT: u32 = 4;

/// The interface that a program sees unless told otherwise: the loopback of the caller's namespace.
pub const LOOPBACK: u32 = 1;

/// The loaded BPF object with maps of its own.
#[derive(Debug)]
pub struct Programs {
    ebpf: Ebpf,
    flows: TableSize,
}

/// Buckets and index lines of both families' tables of flows: powers of two, at least 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableSize {
    /// Buckets of 14 records.
    pub buckets: u32,
    /// Lines of 7 entries.
    pub lines: u32,
}

impl TableSize {
    /// What no case fills.
    pub const SMALL: TableSize = TableSize {
        buckets: 64,
        lines: 256,
    };
    /// What a few flows fill.
    pub const CROWDED: TableSize = TableSize {
        buckets: 2,
        lines: 64,
    };
    /// The smallest table that is at most 60 % full of so many flows, with as many lines as the agent makes.
    pub fn of(flows: u32) -> TableSize {
        let buckets = (flows.div_ceil(WAYS) * 10)
            .div_ceil(6)
            .next_power_of_two()
            .max(2);
        TableSize {
            buckets,
            lines: buckets * 4,
        }
    }

    /// Places for flows.
    pub const fn places(self) -> u32 {
        self.buckets * WAYS
    }
}

/// What a program did with a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// What it returned.
    pub verdict: u32,
    /// The packet as it left.
    pub packet: Vec<u8>,
    /// Time of one run; the mean where there were several.
    pub duration: Duration,
}

/// Bytes of stack that each program of the object uses: the lowest address that it forms from the frame pointer.
pub fn stack_depths() -> Result<BTreeMap<String, u32>> {
    /// `BPF_ALU64 | BPF_MOV | BPF_X` and `BPF_ALU64 | BPF_ADD | BPF_K`.
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;
    const FRAME: u8 = 10;
    /// Classes of instructions that access memory by a register and an offset.
    const LDX: u8 = 1;
    const ST: u8 = 2;
    const STX: u8 = 3;
    let path = object_path();
    let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let object = aya_obj::Object::parse(&object).context("cannot parse the object")?;
    let depth = |function: &aya_obj::obj::Function| {
        let instructions = &function.instructions;
        let direct = instructions.iter().filter_map(|i| match i.code & 7 {
            ST | STX if i.dst_reg() == FRAME => Some(i32::from(i.off)),
            LDX if i.src_reg() == FRAME => Some(i32::from(i.off)),
            _ => None,
        });
        let formed = instructions.windows(2).filter_map(|pair| {
            let copies = pair[0].code == MOVE && pair[0].src_reg() == FRAME;
            let moves = pair[1].code == ADD && pair[1].dst_reg() == pair[0].dst_reg();
            (copies && moves).then_some(pair[1].imm)
        });
        direct.chain(formed).min().unwrap_or(0).unsigned_abs()
    };
    Ok(object
        .functions
        .values()
        .map(|function| (function.name.clone(), depth(function)))
        .collect())
}

/// Where `cargo xtask build` leaves the programs.
pub fn object_path() -> PathBuf {
    crate::agent::target_dir().join("bpf/lb.o")
}

impl Programs {
    /// Loads the object with small maps: big enough for a test, quick to make.
    pub fn load() -> Result<Programs> {
        Programs::load_for(&Features::probe())
    }

    /// The same as on a kernel with these features.
    pub fn load_for(features: &Features) -> Result<Programs> {
        Programs::load_sized(features, TableSize::SMALL)
    }

    /// The same with tables of flows of a size.
    pub fn load_sized(features: &Features, flows: TableSize) -> Result<Programs> {
        let small = |names: [&'static str; 2], entries: u32| names.map(|name| (name, entries));
        let sizes = [
            small(names::maps::SERVICES, 1024),
            small(names::maps::BACKENDS, 4096),
            small(names::maps::AFFINITY, 1024),
        ];
        let sizes = [sizes.concat(), vec![(names::maps::SELECTION, 64)]].concat();
        Programs::load_with(&sizes, flows, features)
    }

    /// Loads the object; maps named here get so many entries.
    pub fn load_with(
        sizes: &[(&str, u32)],
        flows: TableSize,
        features: &Features,
    ) -> Result<Programs> {
        let path = object_path();
        let object = fs::read(&path)
            .with_context(|| format!("cannot read {}; run `cargo xtask build`", path.display()))?;
        let mut loader = EbpfLoader::new();
        loader.allow_unsupported_maps();
        for (name, entries) in sizes {
            loader.map_max_entries(name, *entries);
        }
        for family in 0..2 {
            loader.map_max_entries(names::maps::FLOWS[family], flows.buckets);
            loader.map_max_entries(names::maps::FLOW_INDEX[family], flows.lines);
        }
        let (buckets, lines) = ([flows.buckets - 1; 2], [flows.lines - 1; 2]);
        let seeds = seed_words(&SEEDS);
        loader.override_global(names::constants::FLOW_BUCKET_MASKS, &buckets, true);
        loader.override_global(names::constants::FLOW_LINE_MASKS, &lines, true);
        loader.override_global(names::constants::FLOW_SEEDS, &seeds, true);
        let constants = features.constants();
        for (name, value) in &constants {
            loader.override_global(name, value, true);
        }
        let ebpf = loader
            .load(&object)
            .with_context(|| format!("cannot load {}", path.display()))?;
        Ok(Programs { ebpf, flows })
    }

    /// Names of all programs of the object.
    pub fn names(&self) -> Vec<String> {
        self.ebpf
            .programs()
            .map(|(name, _)| name.to_owned())
            .collect()
    }

    /// The verifier's verdict on one program; loads it unless that has been done.
    pub fn verify(&mut self, name: &str) -> Result<&mut Program> {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("no program `{name}` in the object"))?;
        if program.fd().is_err() {
            match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                _ => bail!("program `{name}` is of an unexpected type"),
            }
            .with_context(|| format!("the verifier rejects `{name}`"))?;
        }
        Ok(program)
    }

    /// Puts a program into a tail-call map.
    pub fn set_tail(&mut self, map: &str, index: u32, program: &str) -> Result<()> {
        self.verify(program)?;
        let fd = match self.ebpf.program(program) {
            Some(program) => program.fd()?.try_clone()?,
            None => bail!("no program `{program}` in the object"),
        };
        let map = self
            .ebpf
            .map_mut(map)
            .ok_or_else(|| anyhow!("no map `{map}` in the object"))?;
        let mut tails = aya::maps::ProgramArray::try_from(map)?;
        Ok(tails.set(index, &fd, 0)?)
    }

    /// Runs a packet through a program, as if it came in or went out by [`LOOPBACK`].
    pub fn run(&mut self, name: &str, packet: &[u8]) -> Result<Run> {
        self.run_at(name, packet, LOOPBACK)
    }

    /// The same at an interface of the caller's network namespace.
    pub fn run_at(&mut self, name: &str, packet: &[u8], ifindex: u32) -> Result<Run> {
        self.run_many(name, packet, ifindex, 1)
    }

    /// Runs a program `repeat` times. The packet is the program's output from the second time on.
    pub fn run_many(
        &mut self,
        name: &str,
        packet: &[u8],
        ifindex: u32,
        repeat: u32,
    ) -> Result<Run> {
        let program = self.verify(name)?;
        let length = u32::try_from(packet.len())?;
        let mut output = vec![0u8; packet.len() + 256];
        let context = match program {
            Program::Xdp(_) => xdp_md(length, ifindex),
            _ => sk_buff(ifindex),
        };
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut output),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::new()
        };
        let result = match program {
            Program::Xdp(program) => program.test_run(options),
            Program::SchedClassifier(program) => program.test_run(options),
            _ => bail!("program `{name}` cannot be run on a packet"),
        }
        .with_context(|| format!("cannot run `{name}` on a packet of {length} bytes"))?;
        output.truncate(usize::try_from(result.data_size_out)?);
        Ok(Run {
            verdict: result.return_value,
            packet: output,
            duration: result.duration,
        })
    }

    /// The flows of a family.
    pub fn table<F: TableFamily>(&self) -> Result<MappedTable<F>> {
        let map = |name| {
            self.ebpf
                .map(name)
                .ok_or_else(|| anyhow!("no map `{name}` in the object"))
        };
        let geometry = Geometry {
            bucket_mask: self.flows.buckets - 1,
            line_mask: self.flows.lines - 1,
            seeds: SEEDS,
        };
        MappedTable::new(
            map(names::maps::FLOWS[F::INDEX])?,
            map(names::maps::FLOW_INDEX[F::INDEX])?,
            geometry,
        )
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf
            .map_mut(name)
            .ok_or_else(|| anyhow!("no map `{name}` in the object"))
    }

    fn hash<K: Layout, V: Layout>(
        &mut self,
        name: &str,
    ) -> Result<HashMap<&mut MapData, Element<K>, Element<V>>> {
        HashMap::try_from(self.map(name)?).with_context(|| format!("map `{name}`"))
    }

    fn array<V: Layout>(&mut self, name: &str) -> Result<Array<&mut MapData, Element<V>>> {
        Array::try_from(self.map(name)?).with_context(|| format!("map `{name}`"))
    }

    /// Writes an element of a hash map.
    pub fn insert<K: Layout, V: Layout>(&mut self, name: &str, key: K, value: V) -> Result<()> {
        let written = self.hash(name)?.insert(Element(key), Element(value), 0);
        written.with_context(|| format!("cannot write to map `{name}`"))
    }

    /// Removes an element of a hash map.
    pub fn remove<K: Layout, V: Layout>(&mut self, name: &str, key: K) -> Result<()> {
        let removed = self.hash::<K, V>(name)?.remove(&Element(key));
        removed.with_context(|| format!("cannot remove from map `{name}`"))
    }

    /// An element of a hash map.
    pub fn lookup<K: Layout, V: Layout>(&mut self, name: &str, key: K) -> Result<Option<V>> {
        match self.hash::<K, V>(name)?.get(&Element(key), 0) {
            Ok(Element(value)) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read map `{name}`")),
        }
    }

    /// All elements of a hash map.
    pub fn entries<K: Layout, V: Layout>(&mut self, name: &str) -> Result<Vec<(K, V)>> {
        let map = self.hash::<K, V>(name)?;
        let plain = |entry: Result<(Element<K>, Element<V>), MapError>| {
            entry.map(|(key, value)| (key.0, value.0))
        };
        map.iter()
            .map(|entry| plain(entry).with_context(|| format!("cannot read map `{name}`")))
            .collect()
    }

    /// Removes all elements of a hash map.
    pub fn clear<K: Layout, V: Layout>(&mut self, name: &str) -> Result<()> {
        let entries = self.entries::<K, V>(name)?;
        let mut map = self.hash::<K, V>(name)?;
        for (key, _) in entries {
            map.remove(&Element(key))
                .with_context(|| format!("cannot remove from map `{name}`"))?;
        }
        Ok(())
    }

    /// Writes an element of an array.
    pub fn set<V: Layout>(&mut self, name: &str, index: u32, value: V) -> Result<()> {
        self.array(name)?
            .set(index, Element(value), 0)
            .with_context(|| format!("cannot write to map `{name}`"))
    }

    /// Reads an element of an array.
    pub fn get<V: Layout>(&mut self, name: &str, index: u32) -> Result<V> {
        let Element(value) = self
            .array(name)?
            .get(&index, 0)
            .with_context(|| format!("cannot read map `{name}`"))?;
        Ok(value)
    }

    /// Puts one address into the source ranges of a service port.
    pub fn allow_source<F: Family>(&mut self, service_id: u32, client: F::Addr) -> Result<()> {
        let name = names::maps::SRC_RANGES[F::INDEX];
        let bits = 32 + if F::IS_V6 { 128 } else { 32 };
        let range = SourceRange::<F> {
            service_id: Be32::from_host(service_id),
            client,
        };
        let mut map = LpmTrie::<_, Element<SourceRange<F>>, u32>::try_from(self.map(name)?)
            .with_context(|| format!("map `{name}`"))?;
        Ok(map.insert(&aya::maps::lpm_trie::Key::new(bits, Element(range)), 1, 0)?)
    }

    /// Empties the source ranges.
    pub fn clear_sources<F: Family>(&mut self) -> Result<()> {
        let name = names::maps::SRC_RANGES[F::INDEX];
        let mut map = LpmTrie::<_, Element<SourceRange<F>>, u32>::try_from(self.map(name)?)
            .with_context(|| format!("map `{name}`"))?;
        let keys: Vec<_> = map.keys().collect::<Result<_, _>>()?;
        for key in keys {
            map.remove(&key)?;
        }
        Ok(())
    }

    /// A counter ([`lb_common::abi::Counter`] or [`lb_common::abi::DropReason`] as a number) summed over
    /// all CPUs.
    pub fn counter(&mut self, index: u32) -> Result<u64> {
        let map =
            PerCpuArray::<_, Element<PacketCount>>::try_from(self.map(names::maps::COUNTERS)?)?;
        Ok(map
            .get(&index, 0)?
            .iter()
            .map(|Element(count)| count.packets)
            .sum())
    }
}

/// What follows the prefix length in a key of `src_ranges_*`.
#[derive(Clone, Copy)]
#[repr(C)]
struct SourceRange<F: Family> {
    service_id: Be32,
    client: F::Addr,
}

// SAFETY: integers without gaps: four bytes, then 32-bit words.
unsafe impl<F: Family> Layout for SourceRange<F> {}

/// A type whose bytes are what lies in a map.
///
/// # Safety
/// `#[repr(C)]` of integers without hidden padding; every bit pattern is valid.
pub unsafe trait Layout: Copy + 'static {}

macro_rules! layout {
    ($($name:ty),+) => { $(
        // SAFETY: integers, or a type of `lb_common::abi`: `repr(C)`, integers only, gaps are named.
        unsafe impl Layout for $name {}
    )+ };
}
layout!(
    u32,
    u64,
    Service,
    Affinity,
    Config,
    Interface,
    PacketCount,
    PortFilter,
    ServiceStats,
    XdpDevice,
    SelectionBlock
);

macro_rules! layout_of_family {
    ($($name:ident),+) => { $(
        // SAFETY: a type of `lb_common::abi`: `repr(C)`, integers only, gaps are named.
        unsafe impl<F: Family> Layout for $name<F> {}
    )+ };
}
layout_of_family!(ServiceKey, Backend, AffinityKey, NodeAddrKey);

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Element<T>(T);

// SAFETY: transparent over a `Layout`, whose bytes are all initialised and may be anything.
unsafe impl<T: Layout> Pod for Element<T> {}

/// `struct xdp_md` as input: a packet of `length` bytes, received by `ifindex`.
fn xdp_md(length: u32, ifindex: u32) -> Vec<u8> {
    let mut context = vec![0u8; 24];
    context[4..8].copy_from_slice(&length.to_ne_bytes()); // data_end
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes()); // ingress_ifindex
    context
}

/// `struct __sk_buff` as input, with nothing set but the interface.
fn sk_buff(ifindex: u32) -> Vec<u8> {
    let mut context = vec![0u8; 192];
    context[36..40].copy_from_slice(&ifindex.to_ne_bytes()); // ingress_ifindex
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes()); // ifindex
    context
}
