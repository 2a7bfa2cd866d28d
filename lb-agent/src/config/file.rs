//! The file of `--config`, looked at again while the agent runs: an agent with other settings is one that was started anew
//! (semantics 24.1).

use std::{fs, path::PathBuf};

use super::{flags::RunArgs, source::ObjectSource};
use crate::{error::chain, kube::api::ApiAccess};

/// The file that the configuration in force was read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    text: String,
    /// Why what is there now cannot be used.
    refused: Option<String>,
}

/// What a look finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    /// Nothing that was not known.
    Same,
    /// An agent could start with what is there now.
    Changed(PathBuf),
    /// No agent could, for this reason. It is told once.
    Refused(String),
}

impl ConfigFile {
    pub(super) fn new(path: PathBuf, text: String) -> ConfigFile {
        ConfigFile {
            path,
            text,
            refused: None,
        }
    }

    /// Looks again. A file that was refused is tried again, too: what it names may have come since. Needs a runtime.
    pub(crate) async fn look(&mut self, args: &RunArgs) -> Look {
        let Ok(now) = fs::read_to_string(&self.path) else {
            // Between two versions there may be none.
            return Look::Same;
        };
        if now == self.text {
            self.refused = None;
            return Look::Same;
        }
        let Err(why) = try_out(args).await else {
            return Look::Changed(self.path.clone());
        };
        if self.refused.as_ref() == Some(&why) {
            return Look::Same;
        }
        self.refused = Some(why.clone());
        Look::Refused(why)
    }
}

/// Does what a start does, up to the first question to the API server.
async fn try_out(args: &RunArgs) -> Result<(), String> {
    let config = args.validate().map_err(|error| chain(&error))?;
    match &config.source {
        ObjectSource::Manifests(_) => Ok(()),
        ObjectSource::Api(access) => ApiAccess::check(access)
            .await
            .map_err(|error| chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::temp_dir::TempDir;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    const KUBECONFIG: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://192.0.2.1:6443"}}]}"#;

    // semantics 24.1
    #[test]
    fn a_file_that_no_agent_could_start_with_is_told_once() {
        let dir = TempDir::new();
        let [config, kubeconfig] = ["config", "kubeconfig"].map(|name| dir.path().join(name));
        let write = |more: &str| {
            let head = "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1";
            fs::write(&config, format!("{head}\n{more}\n")).unwrap();
        };
        let named = format!("clientConnection: {{kubeconfig: {}}}", kubeconfig.display());
        fs::write(&kubeconfig, KUBECONFIG).unwrap();
        write(&named);
        let args = Line::parse_from([
            "lb-agent",
            "--hostname-override=n",
            &format!("--config={}", config.display()),
        ])
        .run;
        let mut file = args.validate().unwrap().file.unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut look = || runtime.block_on(file.look(&args));
        let refuses = |look: &mut dyn FnMut() -> Look, part: &str| {
            match look() {
                Look::Refused(why) => assert!(why.contains(part), "{part} in {why}"),
                other => panic!("{part}: {other:?}"),
            }
            assert_eq!(look(), Look::Same, "{part} again");
        };
        let same = format!("{named}\nmode: nftables");
        let missing = named.replace("kubeconfig}", "missing}");
        write(&missing);
        refuses(&mut look, "/missing");
        write("clusterCIDR: 10.0.0.0/33");
        refuses(&mut look, "cluster-cidr");
        fs::write(&kubeconfig, "clusters: [").unwrap();
        write(&same);
        refuses(&mut look, "/kubeconfig");
        write(&named);
        assert_eq!(look(), Look::Same, "what is in force");
        write(&same);
        refuses(&mut look, "/kubeconfig");
        fs::write(&kubeconfig, KUBECONFIG).unwrap();
        assert_eq!(look(), Look::Changed(config.clone()));
        fs::remove_file(&config).unwrap();
        assert_eq!(look(), Look::Same, "between two versions");
    }
}
