//! Settings of the kernel's conntrack that kube-proxy makes (semantics 24.9). The agent does not need them: flows are not
//! held there. What else the node tracks was sized by them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// More entries are never asked for.
const MOST: u32 = 1_048_576;

/// A setting of the kernel's conntrack, by its file below `net/netfilter`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Setting {
    /// Entries for each CPU, and the least of all together.
    Max(u32, u32),
    /// A file and its value.
    Value(&'static str, u64),
}

/// A setting that the kernel does not have now.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot set {} to {value}; make it writable, or name a writable copy of /proc/sys in LB_PROC_SYS",
    path.display()
)]
pub(crate) struct Unset {
    pub setting: Setting,
    path: PathBuf,
    value: u64,
    #[source]
    source: io::Error,
}

/// There are no settings of the network where `/proc/sys` should be.
#[derive(Debug, thiserror::Error)]
#[error(
    "no settings of the network in {}; name the node's /proc/sys, or what it is mounted as, in LB_PROC_SYS",
    path.display()
)]
pub(crate) struct NoProcSys {
    path: PathBuf,
}

impl Unset {
    /// The kernel has no such file: conntrack is not loaded.
    pub(crate) fn is_absent(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Where the host's `/proc/sys` is: a container that is not privileged has it elsewhere.
pub(crate) fn proc_sys() -> PathBuf {
    std::env::var_os("LB_PROC_SYS").map_or_else(|| "/proc/sys".into(), PathBuf::from)
}

/// CPUs of the host, whatever part of them this process may use.
pub(crate) fn host_cpus() -> u32 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let usable = || {
        let usable = std::thread::available_parallelism().map_or(1, |count| count.get());
        u32::try_from(usable).unwrap_or(u32::MAX)
    };
    count(online.trim()).unwrap_or_else(usable)
}

/// CPUs of a list such as `0-3,8`.
fn count(list: &str) -> Option<u32> {
    let of = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        (last.checked_sub(first)?).checked_add(1)
    };
    list.split(',').map(of).sum()
}

/// Sets what is not so already; tells what it could not set.
pub(crate) fn write(
    settings: &[Setting],
    proc_sys: &Path,
    cpus: u32,
) -> Result<Vec<Unset>, NoProcSys> {
    let net = proc_sys.join("net");
    if !net.is_dir() {
        return Err(NoProcSys { path: net });
    }
    let one = |setting: &Setting| {
        let written = match setting {
            Setting::Max(per_core, min) => {
                let max = u64::from(max(*per_core, *min, cpus));
                set(proc_sys, "nf_conntrack_max", max, |now| now != max)
                    // Four entries a bucket, as kube-proxy has it through the module's parameter.
                    .and_then(|()| {
                        set(proc_sys, "nf_conntrack_buckets", max / 4, |now| {
                            now < max / 4
                        })
                    })
            }
            Setting::Value(name, value) => set(proc_sys, name, *value, |now| now != *value),
        };
        written.err().map(|(path, value, source)| Unset {
            setting: setting.clone(),
            path,
            value,
            source,
        })
    };
    Ok(settings.iter().filter_map(one).collect())
}

fn max(per_core: u32, min: u32, cpus: u32) -> u32 {
    per_core.saturating_mul(cpus).max(min).min(MOST)
}

/// Nothing is written that is so already: after `--init-only` the files may be read-only.
fn set(
    proc_sys: &Path,
    name: &str,
    value: u64,
    differs: impl Fn(u64) -> bool,
) -> Result<(), (PathBuf, u64, io::Error)> {
    let path = proc_sys.join("net/netfilter").join(name);
    let result = fs::read_to_string(&path).and_then(|now| match now.trim().parse() {
        Ok(now) if !differs(now) => Ok(()),
        _ => fs::write(&path, value.to_string()),
    });
    result.map_err(|source| (path, value, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    // semantics 24.9
    #[test]
    fn the_table_follows_the_cpus_within_bounds() {
        assert_eq!(max(32_768, 131_072, 2), 131_072);
        assert_eq!(max(32_768, 131_072, 8), 262_144);
        assert_eq!(max(32_768, 131_072, 64), 1_048_576);
        for (list, cpus) in [
            ("0", Some(1)),
            ("0-3,8", Some(5)),
            ("", None),
            ("3-1", None),
        ] {
            assert_eq!(count(list), cpus, "{list}");
        }
        assert!(host_cpus() >= 1);
    }

    // semantics 24.9
    #[test]
    fn what_differs_is_written_and_what_cannot_be_is_named() {
        let dir = TempDir::new();
        let netfilter = dir.path().join("net/netfilter");
        fs::create_dir_all(&netfilter).unwrap();
        let put = |name: &str, text: &str| fs::write(netfilter.join(name), text).unwrap();
        let has = |name: &str| fs::read_to_string(netfilter.join(name)).unwrap();
        put("nf_conntrack_max", "65536\n");
        put("nf_conntrack_buckets", "65536\n");
        put("nf_conntrack_tcp_timeout_close_wait", "60\n");
        put("nf_conntrack_tcp_timeout_established", "86400\n");
        let settings = [
            Setting::Max(32_768, 131_072),
            Setting::Value("nf_conntrack_tcp_timeout_close_wait", 3600),
            Setting::Value("nf_conntrack_tcp_timeout_established", 86_400),
            Setting::Value("nf_conntrack_udp_timeout", 30),
        ];
        let unset = write(&settings, dir.path(), 2).unwrap();
        assert_eq!(has("nf_conntrack_max"), "131072");
        assert_eq!(has("nf_conntrack_buckets"), "65536\n", "enough of them");
        assert_eq!(has("nf_conntrack_tcp_timeout_close_wait"), "3600");
        let same = has("nf_conntrack_tcp_timeout_established");
        assert_eq!(same, "86400\n", "not written again");
        assert_eq!(unset.len(), 1);
        assert_eq!(unset[0].setting, settings[3]);
        assert!(unset[0].is_absent());
        assert!(unset[0].to_string().contains("nf_conntrack_udp_timeout"));
        put("nf_conntrack_buckets", "1024\n");
        assert!(write(&settings[..1], dir.path(), 8).unwrap().is_empty());
        assert_eq!(has("nf_conntrack_max"), "262144");
        assert_eq!(has("nf_conntrack_buckets"), "65536");
    }

    // semantics 24.9
    #[test]
    fn conntrack_that_is_not_loaded_differs_from_a_wrong_place() {
        let dir = TempDir::new();
        let settings = [Setting::Value("nf_conntrack_udp_timeout", 30)];
        let error = write(&settings, dir.path(), 2).unwrap_err().to_string();
        assert!(error.contains("LB_PROC_SYS"), "{error}");
        fs::create_dir(dir.path().join("net")).unwrap();
        let unset = write(&settings, dir.path(), 2).unwrap();
        assert!(unset[0].is_absent());
    }
}
