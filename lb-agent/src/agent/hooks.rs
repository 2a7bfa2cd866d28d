//! The interfaces that we serve → entries of `interfaces` and `xdp_devices`, and programs at their hooks.
//!
//! An entry is written before its hooks are attached and removed after them. What fails at one interface is kept
//! as the reason in [`InterfaceState`]; the others go on.

use std::{collections::BTreeMap, path::Path};

use lb_common::{
    abi::{self, InterfaceFlags, InterfaceRole, MacAddr, XdpDevice},
    names::{maps as names, programs},
};

use crate::{
    bpf::{
        attach::{AttachError, Attacher, TcMode, XdpKind},
        load::{LoadError, Loaded},
        maps::{Access, MapError, TypedMap, XDP_DEVICES},
    },
    config::SocketLb,
    error::chain,
    node::{Interface, XdpMode},
};

/// Why hooks cannot be served at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    /// A program or pin.
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Map(#[from] MapError),
    /// The list of links.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A netlink socket.
    #[error("cannot open a netlink socket")]
    Netlink(#[source] std::io::Error),
}

/// How an interface is served: for tables, metrics and the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct InterfaceState {
    pub interface: Interface,
    /// How tc programs are attached, or why they are not.
    pub tc: Result<TcMode, String>,
    /// How XDP is attached, or why it is not.
    pub xdp: Result<XdpKind, String>,
}

#[derive(Debug)]
pub(super) struct Hooks {
    loaded: Loaded,
    attacher: Attacher,
    xdp: XdpMode,
    interfaces: TypedMap<u32, abi::Interface>,
    xdp_devices: TypedMap<u32, XdpDevice>,
    states: BTreeMap<u32, InterfaceState>,
    started: bool,
}

impl Hooks {
    /// Over a loaded object.
    pub(super) fn new(loaded: Loaded, tc: TcMode, xdp: XdpMode) -> Result<Hooks, HookError> {
        let dir = loaded.dir();
        Ok(Hooks {
            interfaces: TypedMap::open(dir, names::INTERFACES, Access::Write)?,
            xdp_devices: TypedMap::open(dir, XDP_DEVICES, Access::Write)?,
            attacher: Attacher::new(dir, tc).map_err(HookError::Netlink)?,
            loaded,
            xdp,
            states: BTreeMap::new(),
            started: false,
        })
    }

    /// How each interface is served.
    pub(super) fn states(&self) -> impl Iterator<Item = &InterfaceState> {
        self.states.values()
    }

    /// Loads what every node needs while the objects are on their way: the verifier takes a second of its own. What fails
    /// is tried again when it is needed, and fatal there.
    pub(super) fn preload(&mut self, mode: SocketLb) {
        const TC: [&str; 3] = [programs::TC_EXT_IN, programs::TC_POD_IN, programs::TC_OUT];
        let sockets = programs::CGROUP
            .into_iter()
            .filter(|_| mode != SocketLb::Off);
        for name in TC.into_iter().chain(sockets) {
            if let Err(error) = self.loaded.program(name) {
                tracing::debug!(program = name, "{}", chain(&error));
            }
        }
    }

    /// Loads what is still missing and attaches the socket hooks; returns the reasons of those that failed.
    pub(super) fn sockets(
        &mut self,
        mode: SocketLb,
        cgroup: Option<&Path>,
    ) -> Result<Vec<String>, HookError> {
        let Some(cgroup) = cgroup.filter(|_| mode != SocketLb::Off) else {
            self.attacher.no_cgroup()?;
            return Ok(Vec::new());
        };
        let mut reasons = Vec::new();
        for (index, name) in programs::CGROUP.into_iter().enumerate() {
            let program = self.loaded.program(name)?;
            if let Err(error) = self.attacher.cgroup(cgroup, index, program) {
                reasons.push(format!("{name}: {}", chain(&error)));
            }
        }
        Ok(reasons)
    }

    /// Brings entries and attachments to this list of interfaces; says whether anything changed.
    pub(super) fn reconcile(&mut self, wanted: Vec<Interface>) -> Result<bool, HookError> {
        let first = !std::mem::replace(&mut self.started, true);
        if first {
            // Programs, links and entries of an earlier agent.
            self.loaded.stage()?;
        }
        let mut changed = first;
        let keep = |ifindex: u32| wanted.iter().any(|interface| interface.ifindex == ifindex);
        let gone: Vec<u32> = self
            .states
            .keys()
            .copied()
            .filter(|ifindex| !keep(*ifindex))
            .collect();
        for ifindex in gone {
            changed = true;
            // The device may be gone together with its hooks: nothing to detach is as good as detached.
            if let Err(error) = self.attacher.detach(ifindex) {
                tracing::debug!(ifindex, "{}", chain(&error));
            }
            self.states.remove(&ifindex);
        }
        if first || changed {
            self.attacher.prune(&keep)?;
            self.forget(&keep)?;
        }
        for interface in wanted {
            changed |= self.serve(interface)?;
        }
        if first {
            self.loaded.commit()?;
            self.loaded.unstage()?;
        }
        Ok(changed)
    }

    /// Forgets the interfaces whose hooks somebody took away, so that [`Hooks::reconcile`] serves them anew (semantics
    /// 22.6); returns their names.
    pub(super) fn forget_detached(&mut self) -> Vec<String> {
        let attacher = &mut self.attacher;
        let detached: Vec<u32> = self
            .states
            .iter()
            .filter(|(ifindex, state)| {
                let xdp = state.xdp.as_ref().ok().copied();
                state.tc.is_ok() && !attacher.is_attached(**ifindex, xdp)
            })
            .map(|(ifindex, _)| *ifindex)
            .collect();
        detached
            .iter()
            .filter_map(|ifindex| self.states.remove(ifindex))
            .map(|state| state.interface.name)
            .collect()
    }

    /// Whether the socket hooks that were attached still are.
    pub(super) fn are_sockets_attached(&self) -> bool {
        self.attacher.is_cgroup_attached()
    }

    /// Removes entries of interfaces that are not served any more.
    fn forget(&self, keep: &dyn Fn(u32) -> bool) -> Result<(), HookError> {
        for (ifindex, _) in self.interfaces.entries()? {
            if !keep(ifindex) {
                self.interfaces.delete(&ifindex)?;
            }
        }
        for slot in 0..XdpDevice::SLOTS {
            let device = self.xdp_devices.lookup(&slot)?.unwrap_or_default();
            if device.ifindex != 0 && !keep(device.ifindex) {
                self.xdp_devices.update(&slot, &XdpDevice::default())?;
            }
        }
        Ok(())
    }

    fn serve(&mut self, interface: Interface) -> Result<bool, HookError> {
        let old = self.states.get(&interface.ifindex);
        if old.is_some_and(|old| old.interface == interface) {
            return Ok(false);
        }
        let same_hooks = old.is_some_and(|old| {
            let o = &old.interface;
            o.role == interface.role
                && o.l3 == interface.l3
                && o.xdp == interface.xdp
                && old.tc.is_ok()
        });
        let (tc, xdp) = match old {
            Some(old) if same_hooks => (old.tc.clone(), old.xdp.clone()),
            _ => {
                self.interfaces
                    .update(&interface.ifindex, &entry(&interface, false))?;
                let tc = self.attach_tc(&interface)?;
                // XDP alone could not restore what tc must: it comes only above working tc hooks.
                let xdp = match &tc {
                    Ok(_) => self.attach_xdp(&interface)?,
                    Err(_) => Err(String::from("its tc hooks are missing")),
                };
                report(&interface, &tc, &xdp);
                (tc, xdp)
            }
        };
        let xdp = self.write(&interface, xdp)?;
        self.states
            .insert(interface.ifindex, InterfaceState { interface, tc, xdp });
        Ok(true)
    }

    fn attach_tc(&mut self, interface: &Interface) -> Result<Result<TcMode, String>, HookError> {
        let (ingress, egress) = tc_programs(interface);
        // Both are loaded before either is borrowed.
        self.loaded.program(ingress)?;
        self.loaded.program(egress)?;
        let egress_fd = self.loaded.loaded(egress)?;
        let ingress_fd = self.loaded.loaded(ingress)?;
        let attached = self.attacher.tc(
            interface.ifindex,
            (ingress_fd, ingress),
            (egress_fd, egress),
        );
        Ok(attached
            .map(|()| self.attacher.tc_mode())
            .map_err(|error| chain(&error)))
    }

    fn attach_xdp(&mut self, interface: &Interface) -> Result<Result<XdpKind, String>, HookError> {
        if let Err(reason) = interface.xdp {
            let removed = self.attacher.no_xdp(interface.ifindex);
            return Ok(Err(removed
                .err()
                .map_or_else(|| reason.to_owned(), |error| chain(&error))));
        }
        let kind = match self.xdp {
            XdpMode::Generic => XdpKind::Generic,
            _ => XdpKind::Native,
        };
        let program = self.loaded.program(programs::XDP_EXT_IN)?;
        let attached = self.attacher.xdp(interface.ifindex, kind, program);
        Ok(attached.map(|()| kind).map_err(|error| chain(&error)))
    }

    /// Writes the entries of an interface as its XDP turned out.
    fn write(
        &self,
        interface: &Interface,
        xdp: Result<XdpKind, String>,
    ) -> Result<Result<XdpKind, String>, HookError> {
        let slot = XdpDevice::slot(interface.ifindex);
        let there = self.xdp_devices.lookup(&slot)?.unwrap_or_default();
        let free = there.ifindex == 0 || there.ifindex == interface.ifindex;
        let transmit = xdp.is_ok() && free && interface.mac.is_some();
        self.interfaces
            .update(&interface.ifindex, &entry(interface, transmit))?;
        if transmit {
            self.xdp_devices.update(
                &slot,
                &XdpDevice::new(interface.ifindex, interface.mtu, mac(interface)),
            )?;
        } else if there.ifindex == interface.ifindex {
            self.xdp_devices.update(&slot, &XdpDevice::default())?;
        }
        if xdp.is_ok() && !free {
            tracing::warn!(
                interface = interface.name,
                other = there.ifindex,
                "XDP does not transmit: another interface has its slot"
            );
        }
        Ok(xdp)
    }
}

/// Ingress and egress program of an interface.
const fn tc_programs(interface: &Interface) -> (&'static str, &'static str) {
    match (interface.role, interface.l3) {
        (InterfaceRole::Pod, false) => (programs::TC_POD_IN, programs::TC_OUT),
        (InterfaceRole::Pod, true) => (programs::TC_POD_IN_L3, programs::TC_OUT_L3),
        (InterfaceRole::External, false) => (programs::TC_EXT_IN, programs::TC_OUT),
        (InterfaceRole::External, true) => (programs::TC_EXT_IN_L3, programs::TC_OUT_L3),
    }
}

fn mac(interface: &Interface) -> MacAddr {
    interface.mac.map(MacAddr::new).unwrap_or_default()
}

fn entry(interface: &Interface, transmit: bool) -> abi::Interface {
    let transmit = if transmit {
        InterfaceFlags::XDP_TRANSMIT
    } else {
        InterfaceFlags::NONE
    };
    let l3 = if interface.l3 {
        InterfaceFlags::L3
    } else {
        InterfaceFlags::NONE
    };
    abi::Interface {
        saddr_v4: interface.saddr_v4.map(Into::into).unwrap_or_default(),
        saddr_v6: interface.saddr_v6.map(Into::into).unwrap_or_default(),
        mtu: interface.mtu,
        mac: mac(interface),
        role: interface.role as u8,
        flags: transmit | l3,
    }
}

fn report(interface: &Interface, tc: &Result<TcMode, String>, xdp: &Result<XdpKind, String>) {
    let Interface {
        name,
        ifindex,
        role,
        ..
    } = interface;
    match tc {
        Ok(tc) => tracing::info!(
            interface = name,
            ifindex,
            ?role,
            tc = tc.name(),
            xdp = xdp.as_ref().map_or("no", |kind| kind.name()),
            "interface served"
        ),
        Err(reason) => tracing::error!(interface = name, ifindex, "interface not served: {reason}"),
    }
    if let Err(reason) = xdp {
        tracing::debug!(interface = name, "no XDP: {reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(role: InterfaceRole, l3: bool) -> Interface {
        Interface {
            ifindex: 7,
            name: "x".into(),
            role,
            saddr_v4: Some("192.0.2.1".parse().unwrap()),
            saddr_v6: None,
            mtu: 1400,
            mac: (!l3).then_some([2, 0, 0, 0, 0, 1]),
            l3,
            xdp: Err("test"),
        }
    }

    #[test]
    fn programs_follow_role_and_header() {
        assert_eq!(
            tc_programs(&interface(InterfaceRole::Pod, false)),
            ("tc_pod_in", "tc_out")
        );
        assert_eq!(
            tc_programs(&interface(InterfaceRole::External, true)),
            ("tc_ext_in_l3", "tc_out_l3")
        );
    }

    #[test]
    fn entries_carry_what_programs_read() {
        let entry = entry(&interface(InterfaceRole::External, false), true);
        assert_eq!(
            (entry.mtu, entry.role, entry.flags),
            (1400, 1, InterfaceFlags::XDP_TRANSMIT)
        );
        assert_eq!(entry.mac.octets(), [2, 0, 0, 0, 0, 1]);
        assert_eq!(
            std::net::Ipv4Addr::from(entry.saddr_v4),
            std::net::Ipv4Addr::new(192, 0, 2, 1)
        );
    }
}
