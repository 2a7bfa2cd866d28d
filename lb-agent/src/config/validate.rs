//! Flags, and the file that `--config` names → a checked [`Config`].

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use super::{
    compat::{self, LocalDetector},
    error::{ConfigError, invalid},
    families,
    file::ConfigFile,
    flags::{Forwarding, RunArgs},
    kube_proxy,
    values::Config,
    written,
};
use crate::{
    bpf::flow_size::FlowSize,
    net::{PortRange, PortRangeError, Prefix},
    node::Globs,
    port_set::PortSet,
};

/// Port of health where none is given.
const HEALTHZ_PORT: u16 = 10256;
/// Port of metrics where none is given.
const METRICS_PORT: u16 = 10249;

impl RunArgs {
    /// Reads the file of `--config`, where it is given, and checks every value.
    pub(crate) fn validate(&self) -> Result<Config, ConfigError> {
        let has_ipv6 = families::host_has_ipv6();
        let Some(path) = &self.config else {
            return self.checked(Vec::new(), has_ipv6);
        };
        let mut args = self.clone();
        let (text, warnings) = kube_proxy::read(path, &mut args)?;
        let mut config = args.checked(warnings, has_ipv6)?;
        config.file = Some(ConfigFile::new(path.clone(), text));
        Ok(config)
    }

    pub(super) fn checked(
        &self,
        mut warnings: Vec<String>,
        has_ipv6: bool,
    ) -> Result<Config, ConfigError> {
        self.refuse_what_is_not_built()?;
        warnings.extend(self.compat.warnings());
        let cluster_cidrs = prefixes("cluster-cidr", &self.cluster_cidr)?;
        let local_detector = LocalDetector::new(
            self.detect_local_mode.as_deref(),
            &cluster_cidrs,
            &self.compat,
        )?;
        let mut pod_interfaces = self.pod_interfaces.clone();
        pod_interfaces.extend(local_detector.pod_pattern());
        let bind_address = self.compat.bind_address()?;
        families::check(self, &cluster_cidrs, bind_address, has_ipv6, &mut warnings)?;
        let (healthz, metrics) = self.served_addresses(bind_address)?;
        Ok(Config {
            source: self.source()?,
            node_name: node_name(self.hostname_override.as_deref())?,
            external_interfaces: globs("external-interfaces", &self.external_interfaces)?,
            pod_interfaces: globs("pod-interfaces", &pod_interfaces)?,
            cluster_cidrs,
            node_port_addresses: self
                .nodeport_addresses
                .parse()
                .map_err(|error| invalid("nodeport-addresses", &self.nodeport_addresses, error))?,
            node_port_list: self.nodeport_addresses.clone(),
            xdp: self.xdp,
            socket_lb: self.socket_lb,
            cgroup: self.cgroup.clone(),
            masquerade: self.masquerade,
            masquerade_all: self.masquerade_all,
            flow_table_size: auto_or_number(
                "flow-table-size",
                &self.flow_table_size,
                FlowSize::CONNECTIONS,
            )?,
            max_frontends: self.max_frontends,
            max_backends: auto_or_number("max-backends", &self.max_backends, 16..=16_777_216)?,
            selection_rows: auto_or_number("selection-rows", &self.selection_rows, 1024..=1 << 30)?,
            snat_ports: snat_ports(&self.snat_ports)?,
            refusals_per_sec: self.refusals_per_sec,
            bpffs: self.bpffs.clone(),
            healthz,
            metrics,
            bind_hard_fail: self.compat.bind_address_hard_fail.unwrap_or(false),
            bind_address: bind_address.filter(|addr| !addr.is_unspecified()),
            tc_attach: self.tc_attach,
            local_detector,
            allow_external_ips: compat::allows_external_ips(
                &self.compat.feature_gates,
                &mut warnings,
            )?,
            oom_score_adj: self.compat.oom_score_adj,
            conntrack: self.compat.conntrack()?,
            effective: written::effective(self, healthz, metrics),
            file: None,
            warnings,
        })
    }

    /// Addresses of health and metrics. Port 0 of kube-proxy's old flags switches one off, another goes with an address
    /// that names none (semantics 24.4).
    fn served_addresses(
        &self,
        bind: Option<IpAddr>,
    ) -> Result<(Option<SocketAddr>, Option<SocketAddr>), ConfigError> {
        let is_v6 = bind.is_some_and(|addr| addr.is_ipv6());
        let (all, own) = if is_v6 {
            ("::", "::1")
        } else {
            ("0.0.0.0", "127.0.0.1")
        };
        let compat = &self.compat;
        fn given(flag: &Option<String>) -> Option<&str> {
            flag.as_deref().filter(|text| !text.is_empty())
        }
        let healthz = served(
            "healthz-bind-address",
            given(&self.healthz_bind_address).unwrap_or(all),
            compat.healthz_port.unwrap_or(HEALTHZ_PORT),
        )?;
        let metrics = served(
            "metrics-bind-address",
            given(&self.metrics_bind_address).unwrap_or(own),
            compat.metrics_port.unwrap_or(METRICS_PORT),
        )?;
        Ok((healthz, metrics))
    }

    fn refuse_what_is_not_built(&self) -> Result<(), ConfigError> {
        if self.forwarding == Forwarding::Dsr {
            return Err(invalid(
                "forwarding",
                "dsr",
                "this build has no direct server return; use snat",
            ));
        }
        Ok(())
    }
}

fn node_name(given: Option<&str>) -> Result<String, ConfigError> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default(),
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        return Err(ConfigError::Missing(
            "this node has no name: give it with --hostname-override NAME",
        ));
    }
    Ok(name)
}

fn prefixes(flag: &'static str, texts: &[String]) -> Result<Vec<Prefix>, ConfigError> {
    let one = |text: &String| {
        Prefix::parse(text.trim())
            .ok_or_else(|| invalid(flag, text, "is no prefix; write ADDRESS/LENGTH"))
    };
    texts.iter().map(one).collect()
}

fn auto_or_number(
    flag: &'static str,
    text: &str,
    range: std::ops::RangeInclusive<u32>,
) -> Result<Option<u32>, ConfigError> {
    if text == "auto" {
        return Ok(None);
    }
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.map(Some).ok_or_else(|| {
        invalid(
            flag,
            text,
            format!(
                "write auto or a number from {} to {}",
                range.start(),
                range.end()
            ),
        )
    })
}

/// `None`: what the host leaves.
fn snat_ports(text: &str) -> Result<Option<PortSet>, ConfigError> {
    if text.trim() == "auto" {
        return Ok(None);
    }
    let range = |item: &str| {
        let range = item.parse::<PortRange>().ok();
        range
            .filter(|range| range.first > 0)
            .ok_or_else(|| invalid("snat-ports", text, PortRangeError))
    };
    text.split(',')
        .map(range)
        .collect::<Result<_, _>>()
        .map(Some)
}

fn globs(flag: &'static str, patterns: &[String]) -> Result<Globs, ConfigError> {
    Globs::new(patterns).map_err(|error| invalid(flag, patterns.join(","), error))
}

/// An address with or without a port; `None`: it is switched off.
fn served(flag: &'static str, text: &str, port: u16) -> Result<Option<SocketAddr>, ConfigError> {
    let alone = || text.parse().ok().map(|addr| SocketAddr::new(addr, port));
    let addr = text
        .parse()
        .ok()
        .or_else(alone)
        .ok_or_else(|| invalid(flag, text, "write ADDRESS:PORT"))?;
    Ok((port != 0).then_some(addr))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::Parser as _;

    use super::{
        super::{conntrack::Setting, flags::SocketLb, source::ObjectSource},
        *,
    };
    use crate::kube::api::ApiAccess;

    #[derive(clap::Parser)]
    #[command(args_override_self = true)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(flags: &[&str]) -> Result<Config, String> {
        let line = ["lb-agent", "--manifests", "/"].iter().chain(flags);
        let parsed = Line::try_parse_from(line).map_err(|error| error.to_string())?;
        parsed.run.validate().map_err(|error| error.to_string())
    }

    #[test]
    fn flags_without_values_take_the_documented_defaults() {
        // semantics 16.1, 16.11
        let config = parse(&[]).unwrap();
        assert_eq!(config.snat_ports, None);
        assert_eq!(
            (
                config.max_frontends,
                config.max_backends,
                config.flow_table_size
            ),
            (65_536, None, None)
        );
        assert_eq!(config.healthz.unwrap().to_string(), "0.0.0.0:10256");
        assert_eq!(config.metrics.unwrap().to_string(), "127.0.0.1:10249");
        assert_eq!(config.bpffs, PathBuf::from("/sys/fs/bpf"));
        assert_eq!(config.socket_lb, SocketLb::Host);
    }

    #[test]
    fn ports_for_source_translation_are_a_list_of_ranges() {
        let ports = |text| parse(&["--snat-ports", text]).map(|config| config.snat_ports);
        let given = ports("61000-65535,20000 - 29999").unwrap().unwrap();
        assert_eq!(given.to_string(), "20000-29999,61000-65535");
        let error = ports("20000-29999,7").unwrap_err();
        assert!(
            error.ends_with("write FIRST-LAST, such as 20000-29999"),
            "{error}"
        );
    }

    #[test]
    fn a_size_of_the_flow_table_that_is_none_is_told_in_a_sentence() {
        for bad in ["1023", "many", "67108865"] {
            assert_eq!(
                parse(&["--flow-table-size", bad]).unwrap_err(),
                format!("--flow-table-size {bad}: write auto or a number from 1024 to 67108864")
            );
        }
        let config = parse(&["--flow-table-size", "100000"]).unwrap();
        assert_eq!(config.flow_table_size, Some(100_000));
    }

    // semantics 24.3
    #[test]
    fn node_names_are_lower_cased() {
        assert_eq!(
            parse(&["--hostname-override", "Node-A"]).unwrap().node_name,
            "node-a"
        );
    }

    #[test]
    fn bad_values_name_the_flag() {
        for (flag, value) in [
            ("--snat-ports", "3000"),
            ("--snat-ports", "9-8"),
            ("--snat-ports", "20000-29999,0-9"),
            ("--snat-ports", ""),
            ("--nodeport-addresses", "everywhere"),
            ("--cluster-cidr", "10.0.0.0"),
            ("--flow-table-size", "7"),
            ("--healthz-bind-address", "here"),
            ("--external-interfaces", "eth0,,"),
            ("--forwarding", "dsr"),
            ("--detect-local-mode", "Guess"),
            ("--feature-gates", "Nothing"),
            ("--config", "/nonexistent/c"),
        ] {
            let error = parse(&[flag, value]).unwrap_err();
            assert!(error.contains(flag), "{flag} {value}: {error}");
        }
    }

    #[test]
    fn flags_of_kube_proxy_are_accepted_and_others_are_not() {
        // semantics 24.5, 24.8, 24.10
        let given = [
            "--proxy-mode=ipvs",
            "--ipvs-strict-arp",
            "--v=4",
            "--iptables-sync-period",
            "30s",
        ];
        let config = parse(&given).unwrap();
        let warning = config.warnings.join(" ");
        for flag in [
            "--proxy-mode",
            "--ipvs-strict-arp",
            "--v",
            "--iptables-sync-period",
        ] {
            assert!(warning.contains(flag), "{flag} in {warning}");
        }
        assert!(parse(&[]).unwrap().warnings.is_empty());
        assert!(parse(&["--no-such-flag"]).is_err());
    }

    // semantics 24.4
    #[test]
    fn port_0_of_the_old_flags_switches_an_address_off() {
        let addresses = |flags: &[&str]| {
            let config = parse(flags).unwrap();
            [config.healthz, config.metrics].map(|addr| addr.map(|addr| addr.to_string()))
        };
        let (healthz, metrics) = ("0.0.0.0:10256".to_owned(), "127.0.0.1:10249".to_owned());
        assert_eq!(addresses(&["--healthz-port=0"]), [None, Some(metrics)]);
        assert_eq!(addresses(&["--metrics-port=0"]), [Some(healthz), None]);
        let given = [
            "--healthz-bind-address=192.0.2.1",
            "--healthz-port=7",
            "--metrics-port=8",
        ];
        let bound = ["192.0.2.1:7", "127.0.0.1:8"].map(|addr| Some(addr.to_owned()));
        assert_eq!(addresses(&given), bound);
        let whole = ["--healthz-bind-address=192.0.2.1:9", "--healthz-port=7"];
        assert_eq!(addresses(&whole)[0].as_deref(), Some("192.0.2.1:9"));
        assert!(addresses(&["--healthz-bind-address="])[0].is_some());
    }

    #[test]
    fn of_a_flag_that_is_given_twice_the_last_counts() {
        let flags = [
            "--conntrack-min=1",
            "--conntrack-min=2",
            "--conntrack-max-per-core=1",
        ];
        let config = parse(&flags).unwrap();
        assert_eq!(config.conntrack, [Setting::Max(1, 2)]);
        let config = parse(&["--masquerade-all", "--masquerade-all"]).unwrap();
        assert!(config.masquerade_all);
        let lists = parse(&["--pod-interfaces=a", "--pod-interfaces=b"]).unwrap();
        assert!(
            lists.pod_interfaces.matches("b"),
            "{:?}",
            lists.pod_interfaces
        );
        assert!(lists.pod_interfaces.matches("a"), "lists grow");
    }

    // semantics 24.2, 24.11
    #[test]
    fn flags_that_end_at_once_exclude_each_other() {
        assert!(parse(&["--cleanup", "--init-only"]).is_err());
        let rates = ["--kube-api-qps=5", "--kube-api-burst=10"];
        let config = parse(&rates).unwrap();
        assert!(config.warnings[0].contains("kube-api-qps, --kube-api-burst"));
    }

    #[test]
    fn interface_detectors_name_pod_interfaces() {
        // semantics 9.3
        let mode = ["--detect-local-mode", "InterfaceNamePrefix"];
        let config =
            parse(&[&mode[..], &["--pod-interface-name-prefix", "cali"]].concat()).unwrap();
        assert!(config.pod_interfaces.matches("cali12"));
        assert!(!config.pod_interfaces.matches("eth0"));
    }

    #[test]
    fn without_manifests_the_api_server_is_asked() {
        // semantics 24.2
        let parsed = |flags: &[&str]| {
            let line = ["lb-agent"].iter().chain(flags);
            Line::try_parse_from(line).map(|line| line.run.validate().unwrap().source)
        };
        let access = ApiAccess {
            kubeconfig: Some("/k".into()),
            server: Some("https://192.0.2.1:6443".into()),
        };
        assert_eq!(
            parsed(&["--kubeconfig", "/k", "--master", "https://192.0.2.1:6443"]).unwrap(),
            ObjectSource::Api(access)
        );
        assert_eq!(
            parsed(&[]).unwrap(),
            ObjectSource::Api(ApiAccess::default())
        );
        assert!(parsed(&["--manifests", "/", "--kubeconfig", "/k"]).is_err());
    }

    #[test]
    fn a_missing_directory_of_manifests_is_named() {
        let line = Line::try_parse_from(["lb-agent", "--manifests", "/nonexistent/m"]).unwrap();
        assert!(
            line.run
                .validate()
                .unwrap_err()
                .to_string()
                .contains("/nonexistent/m")
        );
    }
}
