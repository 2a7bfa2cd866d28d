//! bpf(2) as far as timing needs it: a test run by descriptor, and CPU time.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use anyhow::{Context as _, Result};

const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// `union bpf_attr` as BPF_PROG_TEST_RUN reads it.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

/// What a run gave.
pub struct Ran {
    /// The last return value.
    pub verdict: u32,
    /// The packet as it left.
    pub packet: Vec<u8>,
    /// CPU time of this thread.
    pub time: Duration,
}

/// Runs a program `repeat` times on a packet.
pub fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    context: &[u8],
    repeat: u32,
) -> Result<Ran> {
    let mut output = vec![0u8; packet.len() + 256];
    let mut attr = TestRun {
        prog_fd: u32::try_from(program.as_raw_fd())?,
        data_size_in: u32::try_from(packet.len())?,
        data_size_out: u32::try_from(output.len())?,
        data_in: packet.as_ptr() as u64,
        data_out: output.as_mut_ptr() as u64,
        repeat,
        ctx_size_in: u32::try_from(context.len())?,
        ctx_in: context.as_ptr() as u64,
        ..TestRun::default()
    };
    let before = cpu_time();
    // SAFETY: the kernel reads and writes `attr` and the buffers that it points to, all alive and of the
    // sizes given.
    let code = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attr,
            size_of::<TestRun>(),
        )
    };
    let time = cpu_time().saturating_sub(before);
    if code < 0 {
        return Err(io::Error::last_os_error()).context("cannot run a program on a packet");
    }
    output.truncate(usize::try_from(attr.data_size_out)?);
    Ok(Ran {
        verdict: attr.retval,
        packet: output,
        time,
    })
}

/// CPU time of this thread.
pub fn cpu_time() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    )
}

/// Keeps this thread on the last processor, away from interrupts on the first.
pub fn pin() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // SAFETY: all zero is an empty set; the macros' functions write inside it.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the index is less than the set's size on any machine that Linux runs on.
    unsafe { libc::CPU_SET(cores - 1, &mut set) };
    // SAFETY: the kernel reads the set. A failure leaves the thread where the scheduler wants it.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
}

/// Index of an interface of this thread's network namespace.
pub fn ifindex(name: &str) -> Result<u32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the kernel's library reads a string that ends in 0.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error())
            .with_context(|| format!("no interface {}", name.to_string_lossy())),
        index => Ok(index),
    }
}
