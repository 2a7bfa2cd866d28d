//! The running kernel and the caller's privileges → what they lack, one sentence each.

use std::fs;
use std::path::Path;

/// The first kernel whose verifier and helpers the programs need.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
/// Network namespaces and devices; loading programs and mounting bpffs. Numbers as in `linux/capability.h`.
const CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// What this machine lacks for loading programs and making namespaces; `None` if nothing.
pub(crate) fn lacks() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    lacks_privilege(&status)
        .or_else(|| lacks_version(release.trim()))
        .or_else(|| lacks_filesystem(&filesystems))
        .or_else(|| {
            let missing = !Path::new("/proc/self/ns/net").exists();
            missing.then(|| "the kernel has no network namespaces (CONFIG_NET_NS)".to_owned())
        })
}

/// Whether the caller may install packages.
pub(super) fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    field(&status, "Uid").and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

fn lacks_privilege(status: &str) -> Option<String> {
    let held = field(status, "CapEff")
        .and_then(|set| u64::from_str_radix(set, 16).ok())
        .unwrap_or_default();
    let (_, name) = CAPABILITIES
        .into_iter()
        .find(|(bit, _)| held & (1 << bit) == 0)?;
    Some(format!(
        "{name} is missing, without which no network namespace can be made and no BPF program loaded; run as root \
         (in a container: privileged)"
    ))
}

fn lacks_version(release: &str) -> Option<String> {
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next()?, numbers.next()?);
    let (major, minor) = OLDEST_KERNEL;
    (version < OLDEST_KERNEL)
        .then(|| format!("the kernel is {release}, but the programs need {major}.{minor} or newer"))
}

fn lacks_filesystem(filesystems: &str) -> Option<String> {
    [("bpf", "CONFIG_BPF_SYSCALL"), ("cgroup2", "CONFIG_CGROUPS")]
        .into_iter()
        .find_map(|(name, option)| {
            let known = filesystems
                .lines()
                .any(|line| line.split_whitespace().last() == Some(name));
            (!known).then(|| format!("the kernel has no file system of type {name} ({option})"))
        })
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capability_is_named() {
        assert_eq!(
            lacks_privilege("Name:\tx\nCapEff:\t000001ffffffffff\n"),
            None
        );
        assert!(
            lacks_privilege("CapEff:\t0000000000001000\n")
                .unwrap()
                .starts_with("CAP_SYS_ADMIN")
        );
        assert!(lacks_privilege("").unwrap().starts_with("CAP_NET_ADMIN"));
    }

    #[test]
    fn old_kernel_is_named_and_new_ones_pass() {
        assert!(
            lacks_version("5.4.0-150-generic")
                .unwrap()
                .contains("5.4.0-150-generic")
        );
        assert_eq!(lacks_version("5.10.262"), None);
        assert_eq!(lacks_version("6.1.0-40-amd64"), None);
    }

    #[test]
    fn missing_file_system_is_named() {
        assert_eq!(
            lacks_filesystem("nodev\tbpf\nnodev\tcgroup2\n\text4\n"),
            None
        );
        assert!(
            lacks_filesystem("nodev\tcgroup2\n")
                .unwrap()
                .contains("type bpf")
        );
    }
}
