//! Checks of deploy/: what the kustomize base and the Helm chart give, and that both give the same.

#![allow(
    clippy::unwrap_used,
    reason = "what is not as it should be in our own files fails the test"
)]

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "deploy"]
        .iter()
        .collect()
}

fn file(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
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

/// What the chart gives with these values.
fn render(values: &[&str]) -> Result<String> {
    let output = Command::new("helm")
        .args(["template", "lb", "--namespace=kube-system"])
        .arg("--kube-version=1.36.0")
        .args(values.iter().flat_map(|value| ["--set", value]))
        .arg(folder().join("helm/lb-ebpf"))
        .output()
        .context("there is no `helm`; `cargo xtask test deploy` brings it")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "helm: {error}");
    Ok(String::from_utf8(output.stdout)?)
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
fn chart_and_base_give_the_same_objects() -> Result<()> {
    let address = "apiServer=https://set-the-api-server-address.invalid:6443";
    let chart = objects(&render(&[address])?);
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
    let fewer = objects(&render(&[address, "metrics.service=false"])?);
    assert_eq!(fewer.len(), base.len() - 1);
    Ok(())
}
