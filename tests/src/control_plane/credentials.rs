//! Roles → keys, certificates and kubeconfigs that the API server accepts.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use super::{SERVER, SERVER_PORT};

/// Who a process is to the API server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Everything is allowed.
    Admin,
    /// The agent, with the rights of `deploy/` and no others.
    Agent,
    /// kube-proxy, with the rights that every cluster gives it.
    KubeProxy,
}

impl Role {
    const ALL: [Role; 3] = [Role::Admin, Role::Agent, Role::KubeProxy];

    fn user(self) -> (&'static str, &'static str) {
        match self {
            Role::Admin => ("admin", "system:masters"),
            Role::Agent => (
                "system:serviceaccount:kube-system:lb-agent",
                "system:serviceaccounts",
            ),
            Role::KubeProxy => ("system:kube-proxy", "system:nodes-proxies"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Agent => "agent",
            Role::KubeProxy => "kube-proxy",
        }
    }
}

pub(super) fn kubeconfig_name(role: Role) -> String {
    format!("{}.kubeconfig", role.name())
}

/// Keys, certificates, tokens and a kubeconfig for each role.
pub(super) fn write_credentials(dir: &Path) -> Result<()> {
    let write = |name: &str, text: &str| {
        fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(DnType::CommonName, "authority of the tests");
    let authority_key = KeyPair::generate()?;
    write(
        "authority.crt",
        &authority.self_signed(&authority_key)?.pem(),
    )?;
    let authority = Issuer::new(authority, authority_key);
    let server_key = KeyPair::generate()?;
    let mut server =
        CertificateParams::new(vec![SERVER.to_string(), "kubernetes.default.svc".into()])?;
    server
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    write(
        "server.crt",
        &server.signed_by(&server_key, &authority)?.pem(),
    )?;
    write("server.key", &server_key.serialize_pem())?;
    let accounts = KeyPair::generate()?;
    write("accounts.key", &accounts.serialize_pem())?;
    write("accounts.pub", &accounts.public_key_pem())?;
    let mut tokens = String::new();
    for role in Role::ALL {
        let (user, group) = role.user();
        let token = format!("token-of-{}", role.name());
        writeln!(tokens, "{token},{user},{user},\"{group}\"")?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{SERVER}:{SERVER_PORT}"),
                "certificate-authority": dir.join("authority.crt"),
            } }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        write(&kubeconfig_name(role), &config.to_string())?;
    }
    write("tokens.csv", &tokens)
}

/// The objects that give the agent its rights, as they are deployed.
pub(super) fn agent_rights() -> Result<Vec<Value>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize/base/rbac.yaml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| {
            serde::Deserialize::deserialize(document)
                .with_context(|| format!("cannot read {}", path.display()))
        })
        .collect()
}
