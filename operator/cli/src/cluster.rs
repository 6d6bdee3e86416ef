//! Which cluster and namespace, as kubectl finds them.

use anyhow::{Context, Result, bail};
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::path::PathBuf;

/// Where to look; the flags are kubectl's.
#[derive(clap::Args, Debug)]
pub(crate) struct Place {
    /// Namespace; default: that of the context.
    #[arg(short, long, global = true)]
    pub(crate) namespace: Option<String>,
    /// Context of the kubeconfig; default: the current one.
    #[arg(long, global = true)]
    pub(crate) context: Option<String>,
    /// Path of the kubeconfig; default: $KUBECONFIG, then ~/.kube/config.
    #[arg(long, global = true)]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// A client, its default namespace, and who we say we are.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) user: String,
}

impl Place {
    /// The same, with what the words of a command line say (for completion, where they are no arguments of ours).
    pub(crate) fn or_from(&self, words: &[String]) -> Self {
        let value = |long: &str, short: Option<&str>| {
            let flag = format!("--{long}");
            words.iter().enumerate().find_map(|(i, word)| {
                let alone = *word == flag || short == Some(word.as_str());
                let joined = || word.strip_prefix(&flag)?.strip_prefix('=').map(str::to_owned);
                if alone { words.get(i + 1).cloned() } else { joined() }
            })
        };
        Self {
            namespace: self.namespace.clone().or_else(|| value("namespace", Some("-n"))),
            context: self.context.clone().or_else(|| value("context", None)),
            kubeconfig: self.kubeconfig.clone().or_else(|| value("kubeconfig", None).map(PathBuf::from)),
        }
    }

    /// Connects. Nothing is sent yet.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let kubeconfig = match &self.kubeconfig {
            Some(path) => Some(Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?),
            None => Kubeconfig::read().ok(),
        };
        let user = kubeconfig.as_ref().and_then(|k| user_of(k, self.context.as_deref()));
        let mut config = match kubeconfig {
            Some(kubeconfig) => {
                Config::from_custom_kubeconfig(kubeconfig, &options).await.context("reading the kubeconfig")?
            }
            None if self.context.is_some() => bail!("--context needs a kubeconfig: none was found"),
            None => Config::incluster()
                .context("no kubeconfig was found, and this is no pod: set KUBECONFIG or --kubeconfig")?,
        };
        // A verb must reach the cluster now or not at all: a write that is repeated later could undo a newer one.
        config.default_retry = false;
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("building the client")?;
        let user = user.or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| "unknown".into());
        Ok(Connection { client, namespace, user })
    }
}

fn user_of(kubeconfig: &Kubeconfig, context: Option<&str>) -> Option<String> {
    let wanted = context.or(kubeconfig.current_context.as_deref())?;
    let named = kubeconfig.contexts.iter().find(|c| c.name == wanted)?;
    named.context.as_ref()?.user.clone()
}

impl Connection {
    /// Objects of the namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Objects of all namespaces.
    pub(crate) fn everywhere<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }
}
