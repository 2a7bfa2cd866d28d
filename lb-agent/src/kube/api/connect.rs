//! Where the API server is and who we are to it: kubeconfig, the Pod's service account, or a bare
//! address.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const CONNECT: Duration = Duration::from_secs(10);
const WRITE: Duration = Duration::from_secs(10);

/// How to reach the API server.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ApiAccess {
    /// `--kubeconfig`; `None`: the Pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// `--apiserver`: takes the place of the address that the kubeconfig or the Pod names.
    pub server: Option<String>,
}

impl ApiAccess {
    /// Whether an agent could start with it: reads all that a start reads. Asks nothing of the server. Needs a runtime.
    pub(crate) async fn check(&self) -> Result<(), AccessError> {
        connect(self).await.map(drop)
    }

    /// The given address. A template that is filled with nothing gives an empty one, which is none.
    fn given(&self) -> Option<&str> {
        self.server
            .as_deref()
            .map(str::trim)
            .filter(|server| !server.is_empty())
    }
}

/// Why it is not clear how to reach the API server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}", path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: Box<KubeconfigError>,
    },
    /// There is no kubeconfig, and this is no Pod with a service account.
    #[error(
        "this is no Pod with a service account; name a kubeconfig with --kubeconfig FILE, or serve manifests with --manifests DIR"
    )]
    NoPod(#[source] Box<InClusterError>),
    /// The address is none.
    #[error("--apiserver {server}: write https://ADDRESS:PORT")]
    Server {
        /// What was given.
        server: String,
        #[source]
        source: http::uri::InvalidUri,
    },
    /// Credentials or certificates cannot be used.
    #[error("credentials for {address}")]
    Client {
        address: String,
        #[source]
        source: Box<kube::Error>,
    },
}

/// A client and what to call its server.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) address: String,
    /// Host and port.
    pub(super) host: String,
    /// The address is the ClusterIP that Pods are told, which nobody may be serving yet.
    pub(super) is_cluster_ip: bool,
}

/// Reads the access; asks nothing of the server. Needs a runtime.
pub(super) async fn connect(access: &ApiAccess) -> Result<Connection, AccessError> {
    let mut config = config(access).await?;
    let is_cluster_ip = access.kubeconfig.is_none() && access.given().is_none();
    config.connect_timeout = Some(CONNECT);
    // A silent watch is told by its bookmarks, not here.
    config.read_timeout = None;
    config.write_timeout = Some(WRITE);
    // The watchers have their own pace, and count what fails.
    config.default_retry = false;
    let address = config.cluster_url.to_string();
    let host = config
        .cluster_url
        .authority()
        .map_or_else(|| address.clone(), ToString::to_string);
    let client = Client::try_from(config).map_err(|source| AccessError::Client {
        address: address.clone(),
        source: Box::new(source),
    })?;
    Ok(Connection {
        client,
        address,
        host,
        is_cluster_ip,
    })
}

async fn config(access: &ApiAccess) -> Result<Config, AccessError> {
    let server = access.given().map(uri).transpose()?;
    if let Some(path) = &access.kubeconfig {
        return kubeconfig(path, server).await;
    }
    let no_pod = |source| AccessError::NoPod(Box::new(source));
    let Some(server) = server else {
        return Config::incluster().map_err(no_pod);
    };
    if !Path::new(SERVICE_ACCOUNT_TOKEN).exists() {
        // Such as a local proxy that has credentials of its own.
        return Ok(Config::new(server));
    }
    let mut config = Config::incluster_dns().map_err(no_pod)?;
    config.cluster_url = server;
    Ok(config)
}

async fn kubeconfig(path: &Path, server: Option<http::Uri>) -> Result<Config, AccessError> {
    let failed = |source| AccessError::Kubeconfig {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let file = Kubeconfig::read_from(path).map_err(failed)?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(failed)?;
    if let Some(server) = server {
        config.cluster_url = server;
    }
    Ok(config)
}

/// A URL; an address without a scheme is `https`.
fn uri(server: &str) -> Result<http::Uri, AccessError> {
    let with_scheme = if server.contains("://") {
        server.to_owned()
    } else {
        format!("https://{server}")
    };
    with_scheme.parse().map_err(|source| AccessError::Server {
        server: server.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn the_given_address_takes_the_place_of_the_kubeconfigs() {
        // semantics 21.8
        let dir = TempDir::new();
        let path = dir.path().join("kubeconfig");
        let text = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "clusters": [{"name": "k", "cluster": {"server": "https://10.96.0.1:443"}}]}"#;
        std::fs::write(&path, text).unwrap();
        let mut access = ApiAccess {
            kubeconfig: Some(path),
            server: None,
        };
        let address = |access: &ApiAccess| block_on(connect(access)).unwrap().address;
        assert_eq!(address(&access), "https://10.96.0.1:443/");
        access.server = Some(" ".into());
        assert_eq!(address(&access), "https://10.96.0.1:443/");
        access.server = Some("192.0.2.1:6443".into());
        assert_eq!(address(&access), "https://192.0.2.1:6443/");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let access = |kubeconfig: Option<&str>, server: Option<&str>| ApiAccess {
            kubeconfig: kubeconfig.map(PathBuf::from),
            server: server.map(str::to_owned),
        };
        let cases = [
            (access(Some("/nonexistent/k"), None), "/nonexistent/k"),
            (access(None, Some("http://a b")), "--apiserver http://a b"),
        ];
        for (access, part) in cases {
            let error = block_on(connect(&access)).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
