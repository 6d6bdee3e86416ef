use super::{Binaries, Models, checkout};
use crate::cluster::{Cluster, ImageRef};
use anyhow::{Context, Result};

/// The images of a box: programs and models.
#[derive(Clone, Debug)]
pub struct Images {
    /// The operator.
    pub operator: ImageRef,
    /// The inference worker.
    pub worker: ImageRef,
    /// Models, as in [`Models`].
    pub fp16: ImageRef,
    /// The healthy student.
    pub bitnet: ImageRef,
    /// Gross fault.
    pub order: ImageRef,
    /// Hidden fault.
    pub rope: ImageRef,
}

impl Images {
    /// Makes the images and loads them into the box; equal content is loaded once.
    pub fn load(cluster: &Cluster, binaries: &Binaries, models: &Models) -> Result<Self> {
        Ok(Self {
            operator: cluster.load_image("operator", &binaries.operator, &[])?,
            worker: cluster.load_image("inference-worker", &binaries.worker, &[])?,
            fp16: cluster.load_model("chat-fp16", &models.fp16)?,
            bitnet: cluster.load_model("chat-bitnet", &models.bitnet)?,
            order: cluster.load_model("chat-bitnet-order", &models.order)?,
            rope: cluster.load_model("chat-bitnet-rope", &models.rope)?,
        })
    }
}

/// The operator, installed by its charts.
pub struct Install;

/// Namespace of the operator in the box.
pub const OPERATOR_NAMESPACE: &str = "bitnet-system";

impl Install {
    /// Installs or upgrades both charts and waits until the operator is ready.
    pub fn on_box(cluster: &Cluster, images: &Images) -> Result<()> {
        let chart = |name: &str| checkout().join("charts").join(name).display().to_string();
        let crds = chart("bitnet-rollouts-crds");
        cluster
            .helm(&[
                "upgrade",
                "--install",
                "bitnet-rollouts-crds",
                &crds,
                "-n",
                OPERATOR_NAMESPACE,
                "--create-namespace",
            ])
            .context("installing the CRDs")?;
        let values = [("image", &images.operator), ("workerImage", &images.worker)]
            .into_iter()
            .flat_map(|(key, image)| {
                let pinned = image.pinned();
                let (repository, digest) = pinned.split_once('@').unwrap_or((&pinned, ""));
                [format!("{key}.repository={repository}"), format!("{key}.digest={digest}")]
            })
            .chain(["imagePullPolicy=Never".to_owned()])
            .collect::<Vec<_>>()
            .join(",");
        let main = chart("bitnet-rollouts");
        let args = ["upgrade", "--install", "bitnet-rollouts", &main, "-n", OPERATOR_NAMESPACE, "--set", &values];
        cluster.helm(&[&args[..], &["--wait", "--timeout", "120s"]].concat()).context("installing the operator")?;
        Ok(())
    }
}
