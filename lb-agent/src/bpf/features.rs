//! What this kernel can do, found by trying it.

use std::{fs, os::fd::AsFd as _};

use super::sys;

/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const CGROUP_SOCK_ADDR: u32 = 18;

/// Features that decide how we attach and what programs may use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Features {
    /// The kernel's release, for messages.
    pub release: String,
    /// TCX links (6.6); tc programs are else attached by clsact.
    pub tcx: bool,
    /// `BPF_F_IPV6` of `bpf_l4_csum_replace` (6.16 and backports).
    pub csum_ipv6: bool,
    /// `bpf_set_retval` in socket hooks (5.18): a refused connect fails with ECONNREFUSED, else EPERM.
    pub set_retval: bool,
}

impl Features {
    /// Tries everything. A probe that fails for another reason counts as "no".
    pub fn probe() -> Features {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned();
        Features {
            release,
            tcx: tcx(),
            csum_ipv6: csum_ipv6(),
            set_retval: set_retval(),
        }
    }
}

impl Features {
    /// What the object's read-only data say of the kernel. Constants to the verifier, which removes what this kernel
    /// lacks.
    pub fn constants(&self) -> [(&'static str, u8); 2] {
        [
            ("HAS_SET_RETVAL", u8::from(self.set_retval)),
            ("HAS_CSUM_IPV6", u8::from(self.csum_ipv6)),
        ]
    }
}

/// One instruction of the eBPF machine.
const fn insn(code: u8, dst: u8, imm: i32) -> u64 {
    code as u64 | (dst as u64) << 8 | (imm.cast_unsigned() as u64) << 32
}
const fn mov(dst: u8, imm: i32) -> u64 {
    insn(0xb7, dst, imm)
}
const fn call(helper: i32) -> u64 {
    insn(0x85, 0, helper)
}
const EXIT: u64 = insn(0x95, 0, 0);

/// A query of a device that cannot exist: ENODEV from TCX, EINVAL from a kernel without.
fn tcx() -> bool {
    let answer = sys::prog_query(i32::MAX.cast_unsigned(), sys::attach_type::TCX_INGRESS);
    answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

/// Runs `bpf_l4_csum_replace(skb, 20, 0, 0, BPF_F_PSEUDO_HDR | BPF_F_IPV6)`: -EINVAL where the flag is unknown.
fn csum_ipv6() -> bool {
    let program = [
        mov(2, 20),
        mov(3, 0),
        mov(4, 0),
        mov(5, 0x90),
        call(11),
        EXIT,
    ];
    let run = sys::prog_load(SCHED_CLS, 0, &program)
        .and_then(|program| sys::prog_test_run(program.as_fd(), &mut [0; 64]));
    run.is_ok_and(|result| result == 0)
}

/// Loads a connect4 program that calls `bpf_set_retval(-ECONNREFUSED)`.
fn set_retval() -> bool {
    let program = [mov(1, -libc::ECONNREFUSED), call(187), mov(0, 0), EXIT];
    sys::prog_load(CGROUP_SOCK_ADDR, sys::attach_type::CGROUP[0], &program).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_have_the_kernels_layout() {
        assert_eq!(
            mov(1, -1).to_le_bytes(),
            [0xb7, 1, 0, 0, 0xff, 0xff, 0xff, 0xff]
        );
        assert_eq!(EXIT.to_le_bytes(), [0x95, 0, 0, 0, 0, 0, 0, 0]);
    }
}
