//! bpf(2): one function a command, raw bytes in and out, errors as [`io::Error`].
//!
//! Every attribute struct has the layout of `union bpf_attr` in `linux/bpf.h` for its command; the kernel
//! takes shorter and longer ones, unknown tails must be 0.

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Map types of `enum bpf_map_type` that are named here.
pub(crate) mod map_type {
    /// `BPF_MAP_TYPE_ARRAY`.
    pub(crate) const ARRAY: u32 = 2;
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    pub(crate) const PERCPU_ARRAY: u32 = 6;
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
    pub(crate) const ARRAY_OF_MAPS: u32 = 12;
}

/// Attach types of `enum bpf_attach_type` that are named here.
pub(crate) mod attach_type {
    /// `BPF_XDP`.
    pub(crate) const XDP: u32 = 37;
    /// `BPF_TCX_INGRESS`.
    pub(crate) const TCX_INGRESS: u32 = 46;
    /// `BPF_TCX_EGRESS`.
    pub(crate) const TCX_EGRESS: u32 = 47;
    /// connect4, connect6, sendmsg4, sendmsg6, recvmsg4, recvmsg6, getpeername4, getpeername6.
    pub(crate) const CGROUP: [u32; 8] = [10, 11, 14, 15, 19, 20, 29, 30];
}

/// `BPF_F_MMAPABLE`.
pub(crate) const F_MMAPABLE: u32 = 1 << 10;
/// `BPF_F_RDONLY`, for [`obj_get`].
pub(crate) const F_RDONLY: u32 = 1 << 3;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_DELETE_BATCH: libc::c_long = 27;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// One bpf(2) call.
///
/// # Safety
/// Addresses inside `attr` must be valid for what `command` does with them.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live struct of the size that is passed; the caller answers for addresses in it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(pointer: *const T) -> u64 {
    pointer.cast::<u8>().expose_provenance() as u64
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just given this descriptor to us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[repr(C)]
#[derive(Default)]
struct Elem {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `BPF_MAP_LOOKUP_ELEM`; `false`: there is no such key. `value` must have the map's value size (per-CPU
/// maps: rounded up to 8, times the possible CPUs).
pub(crate) fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = Elem {
        map_fd: raw(map),
        key: address(key.as_ptr()),
        value: address(value.as_mut_ptr()),
        ..Elem::default()
    };
    // SAFETY: both slices live through the call; their lengths are the map's by the function's contract,
    // which `TypedMap` checks when it is opened.
    let result = unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) };
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `BPF_MAP_UPDATE_ELEM`.
pub(crate) fn map_update(
    map: BorrowedFd<'_>,
    key: &[u8],
    value: &[u8],
    flags: u64,
) -> io::Result<()> {
    let mut attr = Elem {
        map_fd: raw(map),
        key: address(key.as_ptr()),
        value: address(value.as_ptr()),
        flags,
        ..Elem::default()
    };
    // SAFETY: as in `map_lookup`; the kernel only reads both.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// `BPF_MAP_DELETE_ELEM`; `false`: there was no such key.
pub(crate) fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attr = Elem {
        map_fd: raw(map),
        key: address(key.as_ptr()),
        ..Elem::default()
    };
    // SAFETY: as in `map_lookup`; the kernel only reads the key.
    let result = unsafe { bpf(MAP_DELETE_ELEM, &mut attr) };
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `BPF_MAP_GET_NEXT_KEY`; `false`: `key` was the last (or the map is empty, without a key).
pub(crate) fn map_next_key(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    next: &mut [u8],
) -> io::Result<bool> {
    let mut attr = Elem {
        map_fd: raw(map),
        key: key.map_or(0, |key| address(key.as_ptr())),
        value: address(next.as_mut_ptr()),
        ..Elem::default()
    };
    // SAFETY: as in `map_lookup`; the kernel writes one key to `next`.
    let result = unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) };
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// What one `BPF_MAP_LOOKUP_BATCH` gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchRead {
    /// Entries written to the slices.
    pub count: usize,
    /// Whether the scan is over.
    pub end: bool,
}

/// `BPF_MAP_LOOKUP_BATCH` of up to `count` entries. `cursor` is where to begin when `go_on`, and receives
/// where to go on. ENOSPC: the next bucket holds more than `count` entries.
pub(crate) fn map_lookup_batch(
    map: BorrowedFd<'_>,
    go_on: bool,
    cursor: &mut [u8; 40],
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<BatchRead> {
    let before = *cursor;
    let mut attr = Batch {
        in_batch: if go_on { address(before.as_ptr()) } else { 0 },
        out_batch: address(cursor.as_mut_ptr()),
        keys: address(keys.as_mut_ptr()),
        values: address(values.as_mut_ptr()),
        count,
        map_fd: raw(map),
        ..Batch::default()
    };
    // SAFETY: the slices hold `count` keys and values by the function's contract (`TypedMap` makes them
    // so); a cursor is a u32 or a key of at most 40 bytes.
    let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) };
    match result {
        Ok(_) => Ok(BatchRead {
            count: attr.count as usize,
            end: false,
        }),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(BatchRead {
            count: attr.count as usize,
            end: true,
        }),
        Err(error) => Err(error),
    }
}

/// `BPF_MAP_DELETE_BATCH`; returns how many were deleted. A key that is not there ends the batch with
/// ENOENT, which the caller sees as a short count.
pub(crate) fn map_delete_batch(map: BorrowedFd<'_>, keys: &[u8], count: u32) -> io::Result<usize> {
    let mut attr = Batch {
        keys: address(keys.as_ptr()),
        count,
        map_fd: raw(map),
        ..Batch::default()
    };
    // SAFETY: the slice holds `count` keys by the function's contract.
    let result = unsafe { bpf(MAP_DELETE_BATCH, &mut attr) };
    match result {
        Ok(_) => Ok(attr.count as usize),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(attr.count as usize),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Default)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

/// `BPF_MAP_CREATE` of a map without BTF.
pub(crate) fn map_create(
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    inner: Option<BorrowedFd<'_>>,
    name: &str,
) -> io::Result<OwnedFd> {
    let mut attr = Create {
        map_type,
        key_size,
        value_size,
        max_entries,
        inner_map_fd: inner.map_or(0, raw),
        ..Create::default()
    };
    for (to, from) in attr.map_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the struct holds no address.
    unsafe { bpf(MAP_CREATE, &mut attr) }.map(owned)
}

#[repr(C)]
#[derive(Default)]
struct Obj {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `BPF_OBJ_PIN`.
pub(crate) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = Obj {
        pathname: address(path.as_ptr()),
        bpf_fd: raw(fd),
        file_flags: 0,
    };
    // SAFETY: the path is a terminated string that lives through the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// `BPF_OBJ_GET`; `flags` 0 or [`F_RDONLY`].
pub(crate) fn obj_get(path: &Path, flags: u32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = Obj {
        pathname: address(path.as_ptr()),
        bpf_fd: 0,
        file_flags: flags,
    };
    // SAFETY: the path is a terminated string that lives through the call.
    unsafe { bpf(OBJ_GET, &mut attr) }.map(owned)
}

#[repr(C)]
#[derive(Default)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

fn obj_info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let mut attr = Info {
        bpf_fd: raw(fd),
        info_len: len,
        info: address(std::ptr::from_mut(info)),
    };
    // SAFETY: the kernel writes at most `info_len` bytes of integers to `info`, which holds only integers.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

/// Beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct MapInfo {
    /// `enum bpf_map_type`.
    pub map_type: u32,
    /// The kernel's id of the map.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Most entries; bytes of a ring buffer.
    pub max_entries: u32,
    /// `BPF_F_…` of its creation.
    pub map_flags: u32,
}

/// `BPF_OBJ_GET_INFO_BY_FD` of a map.
pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    obj_info(fd, &mut info)?;
    Ok(info)
}

#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    prog_type: u32,
    id: u32,
}

/// The kernel's id of a program.
pub(crate) fn prog_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = ProgInfo::default();
    obj_info(fd, &mut info)?;
    Ok(info.id)
}

/// Beginning of `struct bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct LinkInfo {
    /// `enum bpf_link_type`.
    pub link_type: u32,
    /// The kernel's id of the link.
    pub id: u32,
    /// The program behind it.
    pub prog_id: u32,
    _pad: u32,
    /// XDP and TCX: ifindex, 0 when the device is gone. cgroup: lower half of the cgroup's id.
    pub target: u32,
    /// TCX: attach type. cgroup: upper half of the cgroup's id.
    pub attach: u32,
}

/// `BPF_OBJ_GET_INFO_BY_FD` of a link.
pub(crate) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    obj_info(fd, &mut info)?;
    Ok(info)
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    _rest: [u64; 4],
}

/// `BPF_LINK_CREATE`; `target` is an ifindex or a cgroup's descriptor.
pub(crate) fn link_create(
    prog: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        prog_fd: raw(prog),
        target,
        attach_type,
        flags,
        _rest: [0; 4],
    };
    // SAFETY: the struct holds no address.
    unsafe { bpf(LINK_CREATE, &mut attr) }.map(owned)
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `BPF_LINK_UPDATE`: the link runs another program from one packet to the next.
pub(crate) fn link_update(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: raw(link),
        new_prog_fd: raw(prog),
        ..LinkUpdate::default()
    };
    // SAFETY: the struct holds no address.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// `BPF_LINK_DETACH` (5.9): detaches even while somebody else holds the link.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = raw(link);
    // SAFETY: the attribute is the descriptor alone.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    _pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// `BPF_PROG_QUERY`: ids of the programs at an ifindex (TCX) or a cgroup's descriptor.
pub(crate) fn prog_query(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; 64];
    let mut attr = Query {
        target,
        attach_type,
        prog_ids: address(ids.as_mut_ptr()),
        count: 64,
        ..Query::default()
    };
    // SAFETY: the kernel writes at most `count` ids to the vector.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    ids.truncate(attr.count as usize);
    Ok(ids)
}

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
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _pad: u32,
}

/// `BPF_PROG_TEST_RUN`, once: the packet goes in and comes out of `packet` (a longer one is cut); returns
/// the program's return value.
pub(crate) fn prog_test_run(prog: BorrowedFd<'_>, packet: &mut [u8]) -> io::Result<u32> {
    let len = u32::try_from(packet.len()).map_err(io::Error::other)?;
    let input = packet.to_vec();
    let mut attr = TestRun {
        prog_fd: raw(prog),
        data_size_in: len,
        data_size_out: len,
        data_in: address(input.as_ptr()),
        data_out: address(packet.as_mut_ptr()),
        repeat: 1,
        ..TestRun::default()
    };
    // SAFETY: both buffers have the lengths that are passed and live through the call.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.retval)
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `BPF_PROG_LOAD` of a few instructions, for probes.
pub(crate) fn prog_load(
    prog_type: u32,
    expected_attach_type: u32,
    insns: &[u64],
) -> io::Result<OwnedFd> {
    let count = u32::try_from(insns.len()).map_err(io::Error::other)?;
    let license = c"GPL";
    let mut attr = ProgLoad {
        prog_type,
        expected_attach_type,
        insn_cnt: count,
        insns: address(insns.as_ptr()),
        license: address(license.as_ptr()),
        ..ProgLoad::default()
    };
    // SAFETY: instructions and license live through the call, with the count that is passed.
    unsafe { bpf(PROG_LOAD, &mut attr) }.map(owned)
}
