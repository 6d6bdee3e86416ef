use super::{Binaries, Models, checkout};
use crate::cluster::{Cluster, ImageRef};
use anyhow::{Context, Result};
use std::path::Path;

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
        Self::with(
            |name, binary| cluster.load_image(name, binary, &[]),
            |name, folder| cluster.load_model(name, folder),
            binaries,
            models,
        )
    }

    /// Makes the images by the given functions, of name and program and of name and model folder.
    pub fn with(
        program: impl Fn(&str, &Path) -> Result<ImageRef>,
        model: impl Fn(&str, &Path) -> Result<ImageRef>,
        binaries: &Binaries,
        models: &Models,
    ) -> Result<Self> {
        Ok(Self {
            operator: program("operator", &binaries.operator)?,
            worker: program("inference-worker", &binaries.worker)?,
            fp16: model("chat-fp16", &models.fp16)?,
            bitnet: model("chat-bitnet", &models.bitnet)?,
            order: model("chat-bitnet-order", &models.order)?,
            rope: model("chat-bitnet-rope", &models.rope)?,
        })
    }
}

/// The operator, installed by its charts.
pub struct Install;

/// Namespace of the operator in the box.
pub const OPERATOR_NAMESPACE: &str = "bitnet-system";

impl Install {
    /// Installs or upgrades both charts in the box and waits until the operator is ready.
    pub fn on_box(cluster: &Cluster, images: &Images) -> Result<()> {
        // Pods of the pool `gpu` want what the node has only where a test gives it (`Cluster::set_gpus`).
        let pool = ["--set-string", r"pools.gpu.resources.limits.nvidia\.com/gpu=1"];
        let with_pool = |args: &[&str]| {
            let main = args.contains(&"bitnet-rollouts");
            cluster.helm(&[args, if main { &pool } else { &[] }].concat()).map(drop)
        };
        Self::with(images, "Never", with_pool)
    }

    /// The same with any `helm`, given its arguments.
    pub fn with(images: &Images, pull: &str, helm: impl Fn(&[&str]) -> Result<()>) -> Result<()> {
        let chart = |name: &str| checkout().join("charts").join(name).display().to_string();
        let crds = chart("bitnet-rollouts-crds");
        helm(&["upgrade", "--install", "bitnet-rollouts-crds", &crds, "-n", OPERATOR_NAMESPACE, "--create-namespace"])
            .context("installing the CRDs")?;
        let values = [("image", &images.operator), ("workerImage", &images.worker)]
            .into_iter()
            .flat_map(|(key, image)| {
                let pinned = image.pinned();
                let (repository, digest) = pinned.split_once('@').unwrap_or((&pinned, ""));
                [format!("{key}.repository={repository}"), format!("{key}.digest={digest}")]
            })
            .chain([format!("imagePullPolicy={pull}")])
            .collect::<Vec<_>>()
            .join(",");
        let main = chart("bitnet-rollouts");
        let args = ["upgrade", "--install", "bitnet-rollouts", &main, "-n", OPERATOR_NAMESPACE, "--set", &values];
        helm(&[&args[..], &["--wait", "--timeout", "120s"]].concat()).context("installing the operator")
    }
}
