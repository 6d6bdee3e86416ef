use crate::model::{Activation, LayerPrecision, LinearKind, ModelConfig, ScaleRule, Shards};
use crate::workshop::WorkshopError;
use crate::workshop::convert::{self, PrecisionRule, convert};
use crate::workshop::distill::{Agreement, graph_agreement};
use crate::workshop::export::{StoredTensor, write_tensors};
use crate::workshop::probing::Loaded;
use crate::workshop::recipe::ModelShape;
use crate::workshop::staging::Staging;
use crate::workshop::weights::{Role, Rounding, Weights, layout};
use half::f16;
use safetensors::Dtype;
use std::path::{Path, PathBuf};

/// Least cosine of a published student's logits, as served, with those of its training graph: their mean and their median.
/// Errors of scale and the like hide from a comparison with the teacher behind norms; they do not hide from this one.
pub const EXPORT: f64 = 0.9999;
/// The least mean where activations have 4 bits and the cache has 3. A number between two codes may fall the other way in
/// serving; among 16 or 8 codes that moves a position as much as some tens of such flips among 256, and the positions
/// behind it, but not the median.
pub const EXPORT_OF_FOUR_BITS: f64 = 0.999;

/// Where a student begins, and what of it becomes quantised.
#[derive(Clone, Debug)]
pub struct Form {
    /// Directory of a plain model of the BitNet class (relu2, tied head).
    pub student: PathBuf,
    /// Which layers become quantised: as in a conversion.
    pub phase: Option<convert::Phase>,
    /// Their precision by pattern.
    pub rules: Vec<PrecisionRule>,
}

impl Form {
    /// The first masters.
    ///
    /// # Errors
    /// [`WorkshopError::Refused`] if the training graph does not compute this class, and names what differs.
    pub fn read(&self) -> Result<Weights, WorkshopError> {
        Self::plain(&self.student, "the student")
    }

    /// Weights of a plain model of the class that the training graph computes; `who` names it in refusals.
    pub(super) fn plain(dir: &Path, who: &str) -> Result<Weights, WorkshopError> {
        let config = ModelConfig::load(dir).map_err(WorkshopError::load(dir))?;
        let wanted = [
            (
                config.sub_norms,
                "have the norms of the BitNet class: `convert --phase 3 --precision layers=full` adds them",
            ),
            (config.activation == Activation::Relu2, "use relu2: other gate functions cannot be trained here"),
            (
                config.rope_scaling.is_none(),
                "have a rotary embedding without scaling: a scaled one cannot be trained here",
            ),
            (config.tied, "have a tied head: one of its own cannot be trained here"),
            (
                !matches!(config.linear, LinearKind::Packed(_)),
                "be plain, not packed: name the checkpoint that it was packed from",
            ),
        ];
        if let Some((_, rule)) = wanted.iter().find(|(met, _)| !met) {
            return Err(WorkshopError::Refused(format!("{who} {} must {rule}", dir.display())));
        }
        let shape = ModelShape {
            vocabulary: config.vocab_size,
            width: config.hidden_size,
            layers: config.layers,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            ffn: config.intermediate_size,
            context: config.context,
        };
        let shards = Shards::open(dir).map_err(WorkshopError::load(dir))?;
        let mut tensors = shards.tensors().map_err(WorkshopError::load(dir))?;
        let mut masters = Vec::new();
        for (name, dims, _) in layout(&shape) {
            let tensor = tensors.take(&name).map_err(WorkshopError::load(dir))?;
            let values = tensor.floats_as_f32(&name, &dims).map_err(WorkshopError::load(dir))?;
            masters.push(values);
        }
        Weights::of(shape, config.rope_theta, config.rms_eps, masters)
            .map_err(WorkshopError::tensor("reading the student"))
    }

    /// Last precision of every linear layer's weight, as [`convert`] would store it.
    ///
    /// # Errors
    /// [`WorkshopError::Refused`] if a rule fits nothing, or layers that share an input are not all quantised or all full.
    pub fn precisions(&self) -> Result<Vec<(String, LayerPrecision)>, WorkshopError> {
        let config = ModelConfig::load(&self.student).map_err(WorkshopError::load(&self.student))?;
        let plan = convert::plan(&self.conversion(&self.student, Path::new("")), &config)?;
        Ok(plan.into_iter().map(|(module, precision)| (format!("{module}.weight"), precision)).collect())
    }

    /// How activations, keys and values are rounded in the end, as [`convert`] would write it.
    ///
    /// # Errors
    /// [`WorkshopError::Load`] if there is no configuration.
    pub fn rounding(&self) -> Result<Rounding, WorkshopError> {
        let config = ModelConfig::load(&self.student).map_err(WorkshopError::load(&self.student))?;
        Ok(convert::rounding(self.phase, &config))
    }

    /// Publishes the masters at `out` and makes sure that what is served is what was trained: the mean cosine of both
    /// models' logits on `texts`, which must reach [`EXPORT`] or [`EXPORT_OF_FOUR_BITS`]. Plain tensors are left rounded to what is stored.
    ///
    /// # Errors
    /// As [`convert`]; `out` must not exist. [`WorkshopError::Missed`] if the export is another model; it is removed.
    pub(in crate::workshop) fn publish<'a>(
        &self,
        weights: &mut Weights,
        work: &Path,
        out: &Path,
        texts: impl Iterator<Item = &'a [u32]>,
    ) -> Result<f64, WorkshopError> {
        self.write(weights, work, out)?;
        weights.round_to_stored().map_err(WorkshopError::tensor("rounding the student"))?;
        let Agreement { mean, median } = graph_agreement(weights, &Loaded::open(out)?, texts)?;
        let least = if weights.rounding == Rounding::default() { EXPORT } else { EXPORT_OF_FOUR_BITS };
        if mean >= least && median >= EXPORT {
            return Ok(mean);
        }
        std::fs::remove_dir_all(out).map_err(WorkshopError::file("remove", out))?;
        Err(WorkshopError::Missed(format!(
            "{} was not published: as served, its logits have a mean cosine of {mean:.6} and a median of {median:.6} with the training graph's, which must be at least {least} and {EXPORT}; the checkpoint in {} is whole",
            out.display(),
            work.display()
        )))
    }

    /// Writes the masters as a plain checkpoint below `work` and converts it to `out`: packed layers keep their masters'
    /// precision until then.
    fn write(&self, weights: &Weights, work: &Path, out: &Path) -> Result<(), WorkshopError> {
        let plain = work.join("plain");
        let staging = Staging::new(&plain)?;
        convert::copy_other_files(&self.student, staging.path())?;
        let from = self.student.join("config.json");
        std::fs::copy(&from, staging.path().join("config.json")).map_err(WorkshopError::file("copy", &from))?;
        let tensors: Vec<StoredTensor> = weights
            .all
            .iter()
            .map(|p| {
                let packed = p.role == Role::Projection && p.precision != LayerPrecision::Full;
                let bytes = if packed {
                    p.master.iter().flat_map(|w| w.to_le_bytes()).collect()
                } else {
                    p.master.iter().flat_map(|w| f16::from_f32(*w).to_le_bytes()).collect()
                };
                let dtype = if packed { Dtype::F32 } else { Dtype::F16 };
                StoredTensor { name: p.name.clone(), dtype, shape: p.dims.clone(), bytes }
            })
            .collect();
        write_tensors(&staging.path().join("model.safetensors"), &tensors)?;
        staging.publish()?;
        convert(&self.conversion(&plain, out))?;
        std::fs::remove_dir_all(&plain).map_err(WorkshopError::file("remove", &plain))
    }

    fn conversion(&self, model: &Path, out: &Path) -> convert::Order {
        convert::Order {
            model: model.to_path_buf(),
            out: out.to_path_buf(),
            phase: self.phase,
            rules: self.rules.clone(),
            storage: convert::Storage::Safetensors { scale: ScaleRule::Multiply, shard: 5_000_000_000 },
        }
    }
}
