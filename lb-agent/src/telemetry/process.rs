//! The agent's own process and build → rows of `/metrics`.

use crate::exposition::Text;

/// The agent's own process: what dashboards of Kubernetes ask for.
pub(crate) fn render_process(out: &mut Text) {
    let Some(process) = Process::read() else {
        return;
    };
    let gauges = [
        (
            "resident_memory_bytes",
            "Resident memory",
            process.resident_bytes,
        ),
        (
            "virtual_memory_bytes",
            "Address space",
            process.virtual_bytes,
        ),
        (
            "start_time_seconds",
            "When the agent started",
            process.start_seconds,
        ),
        ("open_fds", "Open file descriptors", process.open_fds),
        ("max_fds", "Most open file descriptors", process.max_fds),
    ];
    let cpu = (
        "cpu_seconds_total",
        "CPU time of the agent",
        process.cpu_seconds,
    );
    let counter = [("counter", cpu)];
    let rows = gauges.map(|row| ("gauge", row));
    for (kind, (name, help, value)) in counter.into_iter().chain(rows) {
        let name = format!("process_{name}");
        out.head(&name, kind, &format!("{help}."));
        out.row(&name, &[], value);
    }
}

/// Which build this is. `kubernetes_build_info` would claim a version of Kubernetes.
pub(crate) fn render_build(out: &mut Text) {
    out.head("lb_build_info", "gauge", "Version of the agent.");
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    out.row("lb_build_info", &version, 1);
}

/// Gates that mean something here, as far as they are set (semantics 24.14).
pub(crate) fn render_gates(out: &mut Text, gates: &serde_json::Value) {
    let name = "kubernetes_feature_enabled";
    out.head(name, "gauge", "Feature gates: 1 on, 0 off.");
    let gate = "AllowServiceExternalIPs";
    let is_on = gates[gate].as_bool().unwrap_or(true);
    out.row(name, &[("name", gate), ("stage", "")], u8::from(is_on));
}

struct Process {
    cpu_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    start_seconds: f64,
    open_fds: f64,
    max_fds: f64,
}

impl Process {
    fn read() -> Option<Process> {
        // Clock ticks of /proc are a hundredth of a second on every machine that Linux supports.
        const TICKS: f64 = 100.0;
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let fields: Vec<f64> = stat
            .rsplit_once(')')?
            .1
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0.0))
            .collect();
        let boot = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = boot
            .lines()
            .find_map(|line| line.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()?;
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let bytes = |field: &str| {
            let size = status.lines().find_map(|line| line.strip_prefix(field))?;
            let kib: f64 = size.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(kib * 1024.0)
        };
        let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
        let max_fds = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))?;
        let open_fds = std::fs::read_dir("/proc/self/fd").ok()?.count();
        // Fields count from the state, which is number 3 in proc(5): 14 utime, 15 stime, 22 starttime.
        Some(Process {
            cpu_seconds: (fields.get(11)? + fields.get(12)?) / TICKS,
            resident_bytes: bytes("VmRSS:")?,
            virtual_bytes: bytes("VmSize:")?,
            open_fds: u32::try_from(open_fds).ok()?.into(),
            max_fds: max_fds.split_whitespace().next()?.parse().ok()?,
            start_seconds: boot + fields.get(19)? / TICKS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_tells_of_itself() {
        let mut out = Text::default();
        render_process(&mut out);
        assert!(out.into_string().contains("\nprocess_start_time_seconds 1"));
    }
}
