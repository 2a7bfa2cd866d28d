//! Objects → requests to the API server, and what it answers.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use http::{Method, Request};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use super::PATIENCE;
use crate::{manifest::NAMESPACE, netns::NetNs, topology::Place};

/// Reads and writes objects, from inside the control plane's namespace. Clones share connections.
#[derive(Clone)]
pub struct Api {
    client: Client,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// Who owns the fields that tests apply.
const MANAGER: &str = "fieldManager=test&force=true";

impl Api {
    pub(super) fn new(ns: &NetNs, kubeconfig: &Path) -> Result<Api> {
        let inside = ns.clone();
        let failed = Arc::new(Mutex::new(None));
        let failure = Arc::clone(&failed);
        // Sockets belong to the namespace of the thread that makes them; all requests are made by these.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .on_thread_start(move || {
                if let Err(error) = inside.enter() {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            })
            .build()?;
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let client = runtime.block_on(async {
            tokio::spawn(async {
                let mut config =
                    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                        .await?;
                config.connect_timeout = Some(Duration::from_secs(5));
                config.read_timeout = Some(PATIENCE);
                anyhow::Ok(Client::try_from(config)?)
            })
            .await?
        })?;
        if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        Ok(Api {
            client,
            runtime: Arc::new(runtime),
        })
    }

    /// One request; answers that are no success are errors.
    pub fn text(&self, method: Method, path: &str, body: &Value) -> Result<String> {
        let what = format!("{method} {path}");
        let kind = match () {
            () if method != Method::PATCH => "application/json",
            () if path.contains(MANAGER) => "application/apply-patch+yaml",
            () => "application/merge-patch+json",
        };
        let bytes = match body {
            Value::Null => Vec::new(),
            body => body.to_string().into_bytes(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(bytes)?;
        let client = self.client.clone();
        self.runtime
            .block_on(
                self.runtime
                    .spawn(async move { client.request_text(request).await }),
            )?
            .with_context(|| format!("{what}: {body}"))
    }

    /// One request that answers with an object.
    pub fn request(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(method, path, body)?)?)
    }

    /// An object or list by its path.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request(Method::GET, path, &Value::Null)
    }

    /// Creates an object or makes it as it is here, its status included.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let path = path(object)?;
        let mut applied = object.clone();
        let status = applied
            .as_object_mut()
            .and_then(|fields| fields.remove("status"));
        let applied = self.request(Method::PATCH, &format!("{path}?{MANAGER}"), &applied)?;
        match status {
            // Merged, not applied: a Node's addresses of one type have one key.
            Some(status) => {
                let status = json!({ "status": status });
                self.request(Method::PATCH, &format!("{path}/status"), &status)
            }
            None => Ok(applied),
        }
    }

    /// Creates an object that is not there yet: cheaper for the server than [`Api::apply`].
    pub fn create(&self, object: &Value) -> Result<Value> {
        let path = path(object)?;
        let (collection, _name) = path
            .rsplit_once('/')
            .with_context(|| format!("not the path of an object: {path}"))?;
        self.request(Method::POST, collection, object)
    }

    /// Applies all of them.
    pub fn apply_all(&self, objects: &[Value]) -> Result<()> {
        for object in objects {
            self.apply(object)?;
        }
        Ok(())
    }

    /// Changes some fields of an object.
    pub fn patch(&self, object: &Value, patch: &Value) -> Result<Value> {
        self.request(Method::PATCH, &path(object)?, patch)
    }

    /// Deletes an object at once.
    pub fn delete(&self, object: &Value) -> Result<()> {
        self.delete_in(object, Duration::ZERO)
    }

    /// Deletes an object with a grace period. Pods stay, terminating, until they are deleted at once.
    pub fn delete_in(&self, object: &Value, grace: Duration) -> Result<()> {
        let options = json!({ "gracePeriodSeconds": grace.as_secs() });
        self.text(Method::DELETE, &path(object)?, &options)
            .map(drop)
    }

    /// Writes a Pod that runs at a place on a node, ready, with these labels.
    pub fn run_pod(&self, pod: &Place, node: &Place, labels: &Value) -> Result<Value> {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": pod.name, "namespace": NAMESPACE, "labels": labels },
            "spec": {
                "nodeName": node.name,
                "containers": [{ "name": "server", "image": "none", "ports": [{ "name": "web", "containerPort": crate::scene::TARGET }] }],
            },
        });
        let written = self.apply(&object)?;
        self.pod_ready(pod, node, true)?;
        Ok(written)
    }

    /// Writes a Pod's status.
    pub fn pod_ready(&self, pod: &Place, node: &Place, is_ready: bool) -> Result<()> {
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": pod.v4, "podIPs": [{ "ip": pod.v4 }, { "ip": pod.v6 }],
            "hostIP": node.v4, "hostIPs": [{ "ip": node.v4 }, { "ip": node.v6 }],
            "conditions": [{ "type": "Ready", "status": if is_ready { "True" } else { "False" } }],
        } });
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}/status", pod.name);
        self.request(Method::PATCH, &path, &status).map(drop)
    }
}

/// Where an object lives in the API.
pub fn path(object: &Value) -> Result<String> {
    let text = |value: &Value| {
        value
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("not a whole object: {object}"))
    };
    let version = text(&object["apiVersion"])?;
    let name = text(&object["metadata"]["name"])?;
    let kind = text(&object["kind"])?;
    let group = if version.contains('/') { "apis" } else { "api" };
    let plural = kind.to_lowercase() + "s";
    let namespace = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("namespaces/{namespace}/"),
        None => String::new(),
    };
    Ok(format!("/{group}/{version}/{namespace}{plural}/{name}"))
}
