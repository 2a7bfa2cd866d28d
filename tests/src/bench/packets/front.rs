//! The front program, which puts a row's packet back each time and goes on to the program that is timed.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ProgramArray},
    programs::Program,
};

use super::super::sys;
use super::filled::{Filled, State};
use super::rows::{Behind, Flows, Hook, PacketRow};
use crate::packet::Parsed;
use crate::prog_run::XDP_PASS;

/// Bytes of the packet that the front puts back.
const PAINTED: usize = 80;

/// `Plan` of the front program.
#[repr(C)]
#[derive(Clone, Copy)]
struct Plan {
    template: [u8; PAINTED],
    counter: u64,
    mask: u32,
    addr_at: u32,
    addr_base: u32,
    port_at: u32,
}

// SAFETY: `repr(C)` of integers without gaps; every bit pattern is valid.
unsafe impl aya::Pod for Plan {}

/// The front program.
pub(super) struct Front {
    ebpf: Ebpf,
    /// Number of the maps, and the program, that the front goes on to.
    behind: Option<(usize, Behind)>,
}

impl Front {
    pub(super) fn load() -> Result<Front> {
        let path = crate::agent::target_dir().join("bpf/front.o");
        let object = fs::read(&path)
            .with_context(|| format!("cannot read {}; run `cargo xtask bench`", path.display()))?;
        let mut ebpf = EbpfLoader::new()
            .load(&object)
            .context("cannot load the front program")?;
        for name in ["front_xdp", "empty_xdp"] {
            match ebpf.program_mut(name) {
                Some(Program::Xdp(program)) => program.load()?,
                _ => bail!("no XDP program `{name}` in the front object"),
            }
        }
        for name in ["front_tc", "empty_tc"] {
            match ebpf.program_mut(name) {
                Some(Program::SchedClassifier(program)) => program.load()?,
                _ => bail!("no tc program `{name}` in the front object"),
            }
        }
        Ok(Front { ebpf, behind: None })
    }

    /// Puts the row's program behind the front and its packet into it.
    fn prepare(&mut self, filled: &mut [Filled], row: &PacketRow) -> Result<()> {
        let wanted = (row.filled, row.behind);
        if self.behind != Some(wanted) {
            let fd = match row.behind {
                Behind::Empty(name) => {
                    let program = self.ebpf.program(name);
                    let program = program.ok_or_else(|| anyhow!("no `{name}`"))?;
                    program.fd()?.try_clone()?
                }
                Behind::Loaded(name) => {
                    let programs = &mut filled[row.filled].programs;
                    programs.verify(name)?.fd()?.try_clone()?
                }
            };
            let map = match row.path.hook() {
                Hook::Xdp => "front_xdp_jmp",
                Hook::Tc => "front_tc_jmp",
            };
            let map = self
                .ebpf
                .map_mut(map)
                .ok_or_else(|| anyhow!("no map `{map}` in the front object"))?;
            ProgramArray::try_from(map)?.set(0, &fd, 0)?;
            self.behind = Some(wanted);
        }
        Ok(())
    }

    fn plan(&mut self, row: &PacketRow, counter: u64) -> Result<()> {
        let mut template = [0u8; PAINTED];
        template.copy_from_slice(&row.packet[..PAINTED]);
        let map = self
            .ebpf
            .map_mut("front_plan")
            .ok_or_else(|| anyhow!("no map `front_plan`"))?;
        let plan = Plan {
            template,
            counter,
            mask: row.flows.mask(),
            addr_at: row.varies.0,
            addr_base: row.base,
            port_at: row.varies.1,
        };
        Ok(Array::<_, Plan>::try_from(map)?.set(0, plan, 0)?)
    }

    fn program(&self, hook: Hook) -> Result<BorrowedFd<'_>> {
        let name = match hook {
            Hook::Xdp => "front_xdp",
            Hook::Tc => "front_tc",
        };
        let program = self
            .ebpf
            .program(name)
            .ok_or_else(|| anyhow!("no `{name}`"))?;
        Ok(program.fd()?.as_fd())
    }

    fn run(&self, row: &PacketRow, ifindex: u32, repeat: u32) -> Result<sys::Ran> {
        let hook = row.path.hook();
        let context = context(hook, row.packet.len(), ifindex);
        sys::test_run(self.program(hook)?, &row.packet, &context, repeat)
    }

    /// Runs flow 0 twice (a flow's first packet takes the slow stage) and looks at the output.
    pub(super) fn check(
        &mut self,
        filled: &mut [Filled],
        row: &PacketRow,
        ifindex: u32,
    ) -> Result<()> {
        self.prepare(filled, row)?;
        filled[row.filled].put(row.v6, row.contents, row.is_spoilt)?;
        // What is due goes by the stack now and then, see `pipeline::transmit`.
        let is_free = row.contents.state == State::Due;
        for _ in 0..2 {
            self.plan(row, 0)?;
            let ran = self.run(row, ifindex, 1)?;
            if is_free && ran.verdict == XDP_PASS {
                break;
            }
            ensure!(
                ran.verdict == row.verdict,
                "{}: the program returned {}, wanted {}",
                row.id,
                ran.verdict.cast_signed(),
                row.verdict.cast_signed()
            );
            let parsed =
                Parsed::frame(&ran.packet).map_err(|error| anyhow!("{}: {error}", row.id))?;
            for (what, seen, wanted) in [
                ("source", parsed.source, row.source),
                ("destination", parsed.destination, row.destination),
            ] {
                if let Some(wanted) = wanted {
                    ensure!(
                        seen == wanted,
                        "{}: {what} is {seen}, wanted {wanted}",
                        row.id
                    );
                }
            }
        }
        if row.is_spoilt {
            filled[row.filled].spoil(row.v6);
        }
        Ok(())
    }

    pub(super) fn time(
        &mut self,
        filled: &mut [Filled],
        row: &PacketRow,
        ifindex: u32,
    ) -> Result<f64> {
        self.prepare(filled, row)?;
        filled[row.filled].put(row.v6, row.contents, row.is_spoilt)?;
        let warming = match row.flows {
            // Each of these is visited once.
            Flows::Each(_) if row.is_spoilt => 0,
            // Once around unmeasured: caches, branch predictors, and the renewal of times of use.
            Flows::Each(count) => count.max(1000),
            Flows::New => 1000,
        };
        self.plan(row, 0)?;
        if warming != 0 {
            self.run(row, ifindex, warming)?;
        }
        let before = count(filled, row)?;
        let ran = self.run(row, ifindex, row.packets)?;
        let counted = count(filled, row)? - before;
        ensure!(
            row.counted.is_none() || counted >= u64::from(row.packets) * 99 / 100,
            "{}: {} packets counted {counted}",
            row.id,
            row.packets
        );
        if row.is_spoilt {
            filled[row.filled].spoil(row.v6);
        }
        Ok(ran.time.as_secs_f64() * 1e9 / f64::from(row.packets))
    }
}

/// What the row's packets have counted so far.
fn count(filled: &mut [Filled], row: &PacketRow) -> Result<u64> {
    match row.counted {
        Some(counter) => filled[row.filled].programs.counter(counter as u32),
        None => Ok(0),
    }
}

fn context(hook: Hook, length: usize, ifindex: u32) -> Vec<u8> {
    let length = u32::try_from(length).unwrap_or(0);
    match hook {
        Hook::Xdp => {
            let mut context = vec![0u8; 24];
            context[4..8].copy_from_slice(&length.to_ne_bytes()); // data_end
            context[12..16].copy_from_slice(&ifindex.to_ne_bytes()); // ingress_ifindex
            context
        }
        Hook::Tc => {
            let mut context = vec![0u8; 192];
            context[36..40].copy_from_slice(&ifindex.to_ne_bytes()); // ingress_ifindex
            context[40..44].copy_from_slice(&ifindex.to_ne_bytes()); // ifindex
            context
        }
    }
}
