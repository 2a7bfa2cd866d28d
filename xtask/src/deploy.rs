//! Checks of deploy/: what the kustomize base and the Helm chart give, and that both give the same.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::{command, paths};

fn file(name: &str) -> String {
    fs::read_to_string(paths::workspace().join("deploy").join(name)).unwrap()
}

fn documents(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .filter(|document: &Value| !document.is_null())
        .collect()
}

/// By kind and name.
fn objects(text: &str) -> BTreeMap<(String, String), Value> {
    documents(text)
        .into_iter()
        .map(|object| {
            let kind = object["kind"].as_str().unwrap().to_owned();
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            ((kind, name), object)
        })
        .collect()
}

fn base() -> BTreeMap<(String, String), Value> {
    let list = &documents(&file("kustomize/base/kustomization.yaml"))[0];
    list["resources"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|name| objects(&file(&format!("kustomize/base/{}", name.as_str().unwrap()))))
        .collect()
}

fn helm() -> Option<PathBuf> {
    let built = paths::cache().ok()?.join("kind/bin/helm");
    if built.exists() {
        return Some(built);
    }
    command::exists("helm").then(|| PathBuf::from("helm"))
}

/// A test that cannot run says so: it counts as skipped, not as passed.
fn skip(name: &str, reason: &str) {
    if let Some(path) = std::env::var_os("LB_TEST_SKIPS") {
        let mut skips = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        writeln!(skips, "{name}: {reason}").unwrap();
    }
    eprintln!("skipped: {reason}");
}

#[test]
fn agent_has_named_capabilities_and_nothing_to_write_to() {
    let base = base();
    let daemon = &base[&("DaemonSet".to_owned(), "lb-agent".to_owned())];
    let pod = &daemon["spec"]["template"]["spec"];
    let agent = &pod["containers"][0];
    assert_eq!(
        agent["securityContext"],
        json!({
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsUser": 0,
            "runAsGroup": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
            "capabilities": { "drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"] },
        })
    );
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    // Semantics 28.39: /healthz would restart the agent of a node that is drained.
    assert_eq!(agent["livenessProbe"]["httpGet"]["path"], "/livez");
    assert_eq!(pod["tolerations"], json!([{ "operator": "Exists" }]));
    for volume in pod["volumes"].as_array().unwrap() {
        let mounts = agent["volumeMounts"].as_array().unwrap();
        assert!(
            mounts.iter().any(|mount| mount["name"] == volume["name"]),
            "{volume}"
        );
    }
}

/// Semantics 2.11.
#[test]
fn role_allows_what_the_agent_reads_and_events() {
    let base = base();
    let role = &base[&("ClusterRole".to_owned(), "lb-agent".to_owned())];
    for rule in role["rules"].as_array().unwrap() {
        let verbs = match rule["resources"] == json!(["events"]) {
            true => json!(["create", "patch"]),
            false => json!(["get", "list", "watch"]),
        };
        assert_eq!(rule["verbs"], verbs, "{rule}");
    }
}

#[test]
fn chart_describes_every_value() {
    let values = &documents(&file("helm/lb-ebpf/values.yaml"))[0];
    let schema: Value = serde_json::from_str(&file("helm/lb-ebpf/values.schema.json")).unwrap();
    for (name, value) in values.as_object().unwrap() {
        let described = &schema["properties"][name];
        assert!(described.is_object(), "`{name}` is not in the schema");
        if let (Some(inner), Some(inner_schema)) =
            (value.as_object(), described["properties"].as_object())
        {
            assert!(
                inner.keys().eq(inner_schema.keys()),
                "`{name}` differs from its schema"
            );
        }
    }
}

#[test]
fn chart_and_base_give_the_same_objects() {
    let Some(helm) = helm() else {
        skip("chart_and_base_give_the_same_objects", "there is no `helm`");
        return;
    };
    let render = |values: &[&str]| {
        let mut helm = command::program(&helm.to_string_lossy());
        helm.args([
            "template",
            "lb",
            "--namespace=kube-system",
            "--kube-version=1.36.0",
        ])
        .args(values.iter().flat_map(|value| ["--set", value]))
        .arg(paths::workspace().join("deploy/helm/lb-ebpf"));
        command::read(&mut helm)
    };
    let address = "apiServer=https://set-the-api-server-address.invalid:6443";
    let chart = objects(&render(&[address]).unwrap());
    let base = base();
    assert!(
        chart.keys().eq(base.keys()),
        "{:?} {:?}",
        chart.keys(),
        base.keys()
    );
    for (name, object) in &base {
        assert_eq!(&chart[name], object, "{name:?}");
    }
    assert!(render(&[]).is_err(), "an address is required");
    assert!(
        render(&[address, "metricss.service=false"]).is_err(),
        "a typing error passes"
    );
    let fewer = objects(&render(&[address, "metrics.service=false"]).unwrap());
    assert_eq!(fewer.len(), base.len() - 1);
}
