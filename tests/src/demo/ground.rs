use crate::{
    cluster::{Cluster, publish_model, publish_program},
    stage::{Binaries, Images, Install, Models},
    world::gateways,
};
use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::{
    net::{SocketAddr, ToSocketAddrs},
    process::Command,
    time::{Duration, Instant},
};

/// A cluster of the user's own, as the flags name it.
#[derive(Clone, Debug, clap::Args)]
pub struct Own {
    /// Use the cluster of this context of your kubeconfig instead of the box. Needs helm on PATH and a registry that
    /// the cluster can pull from.
    #[arg(long, value_name = "NAME", requires = "registry")]
    pub context: Option<String>,
    /// With --context: where to push the six images (operator, inference-worker and four models), by `skopeo`.
    #[arg(long, value_name = "PREFIX", requires = "context")]
    pub registry: Option<String>,
    /// With --context: the images are in the registry already, push nothing.
    #[arg(long, requires = "context")]
    pub pushed: bool,
    /// With --context: the GatewayClass to use.
    #[arg(long, value_name = "NAME", default_value = "eg")]
    pub gateway_class: String,
    /// With --context: where the gateway answers, if not at the address in its status.
    #[arg(long, value_name = "HOST:PORT", requires = "context")]
    pub address: Option<String>,
}

/// Where the demo plays: the box, or a cluster of the user's own.
pub enum Ground {
    /// The box.
    Box(Cluster),
    /// The cluster of a context.
    Own(Own),
}

impl Ground {
    /// A client with the administrator's rights.
    pub async fn client(&self) -> Result<Client> {
        match self {
            Self::Box(cluster) => cluster.client().await,
            Self::Own(own) => {
                let kubeconfig = Kubeconfig::read().context("no kubeconfig was found: set KUBECONFIG")?;
                let options = KubeConfigOptions { context: own.context.clone(), ..KubeConfigOptions::default() };
                let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
                let client = Client::try_from(config)?;
                let version: Info = client.apiserver_version().await.context("asking the cluster for its version")?;
                let minor: u32 = version.minor.trim_end_matches('+').parse().unwrap_or(0);
                ensure!(minor >= 35, "the cluster is Kubernetes 1.{minor}: models are image volumes, which need 1.35");
                Ok(client)
            }
        }
    }

    /// Images where the cluster finds them.
    pub fn images(&self, binaries: &Binaries, models: &Models) -> Result<Images> {
        match self {
            Self::Box(cluster) => Images::load(cluster, binaries, models),
            Self::Own(own) => {
                let registry = own.registry.as_deref().context("--context needs --registry")?;
                let push = !own.pushed;
                Images::with(
                    |name, binary| publish_program(registry, name, binary, push),
                    |name, folder| publish_model(registry, name, folder, push),
                    binaries,
                    models,
                )
            }
        }
    }

    /// Installs or upgrades the charts.
    pub fn install(&self, images: &Images) -> Result<()> {
        match self {
            Self::Box(cluster) => Install::on_box(cluster, images),
            Self::Own(own) => {
                let context = own.context.as_deref().unwrap_or_default();
                Install::with(images, "IfNotPresent", |args| {
                    let output = Command::new("helm")
                        .args(["--kube-context", context])
                        .args(args)
                        .output()
                        .context("could not start `helm`: install Helm 4")?;
                    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                    ensure!(output.status.success(), "helm {}: {said}", args.join(" "));
                    Ok(())
                })
            }
        }
    }

    /// The GatewayClass of the demo's Gateway.
    pub fn gateway_class(&self) -> &str {
        match self {
            Self::Box(_) => "eg",
            Self::Own(own) => &own.gateway_class,
        }
    }

    /// Where the Gateway `gw` of `namespace` answers, once it is programmed.
    pub async fn address(&self, client: &Client, namespace: &str) -> Result<SocketAddr> {
        let own = match self {
            Self::Box(cluster) => return cluster.gateway_address(namespace, "gw"),
            Self::Own(own) => own,
        };
        if let Some(address) = &own.address {
            return address.to_socket_addrs()?.next().with_context(|| format!("{address} has no address"));
        }
        let api = gateways(client.clone(), namespace);
        let begin = Instant::now();
        loop {
            let gateway = api.get("gw").await?;
            if let Some(address) = gateway.data["status"]["addresses"][0]["value"].as_str() {
                return format!("{address}:80")
                    .to_socket_addrs()?
                    .next()
                    .context("the gateway's address is no address");
            }
            if begin.elapsed() > Duration::from_secs(180) {
                bail!("Gateway {namespace}/gw has no address after 3 minutes: name it with --address HOST:PORT");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
