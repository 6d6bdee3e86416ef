//! What goes over the wire. JSON, but for masters, which are safetensors of f32.

use crate::model::{LayerPrecision, Text, hex};
use crate::workshop::WorkshopError;
use crate::workshop::recipe::ModelShape;
use crate::workshop::student::LearningRate;
use crate::workshop::weights::{Rounding, Weights};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// `POST`, [`Join`] → [`Plan`].
pub(super) const JOIN: &str = "/v1/join";
/// `GET …/{client}` → [`Now`].
pub(super) const NOW: &str = "/v1/now";
/// `GET …/{round}` → masters.
pub(super) const MODEL: &str = "/v1/model";
/// `POST …/{round}/{client}`, masters → nothing.
pub(super) const UPDATE: &str = "/v1/update";

/// Most bytes of a JSON body: the plan of a thousand layers has 100 KB.
pub(super) const MOST_JSON: usize = 1 << 20;

/// A client presents itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Join {
    /// Its name: a DNS label, the same after a restart.
    pub(super) client: String,
    /// Tokens that it trains on per epoch: its weight in the average.
    pub(super) samples: u64,
    /// The model that it has.
    pub(super) architecture: Architecture,
}

/// What must be equal for masters to be averaged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Architecture {
    /// Shape of the model.
    pub shape: ModelShape,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// Added to the mean square in every norm.
    pub rms_eps: f32,
    /// SHA-256 of tokenizer.json.
    pub tokenizer: String,
    /// Digest of the plain model, which is also the teacher.
    pub model: String,
}

impl Architecture {
    /// Of a model directory and the weights read from it.
    pub(super) fn of(dir: &Path, weights: &Weights) -> Result<Self, WorkshopError> {
        // Loaded, not only hashed: a tokenizer that cannot be used is to be said here.
        Text::load(dir).map_err(WorkshopError::load(dir))?;
        let path = dir.join("tokenizer.json");
        let tokenizer = std::fs::read(&path).map_err(WorkshopError::file("read", &path))?;
        Ok(Self {
            shape: weights.shape,
            rope_theta: weights.rope_theta,
            rms_eps: weights.rms_eps,
            tokenizer: hex(&Sha256::digest(tokenizer)),
            model: crate::model::digest(dir).map_err(WorkshopError::load(dir))?,
        })
    }

    /// The first field that differs, with both values: the coordinator's, the client's.
    pub(super) fn difference(&self, client: &Self) -> Option<(&'static str, String, String)> {
        let (a, b) = (&self.shape, &client.shape);
        let fields = [
            ("vocabulary", a.vocabulary.to_string(), b.vocabulary.to_string()),
            ("width", a.width.to_string(), b.width.to_string()),
            ("layers", a.layers.to_string(), b.layers.to_string()),
            ("heads", a.heads.to_string(), b.heads.to_string()),
            ("key and value heads", a.kv_heads.to_string(), b.kv_heads.to_string()),
            ("head width", a.head_dim.to_string(), b.head_dim.to_string()),
            ("feed-forward width", a.ffn.to_string(), b.ffn.to_string()),
            ("context", a.context.to_string(), b.context.to_string()),
            ("rope base", self.rope_theta.to_string(), client.rope_theta.to_string()),
            ("norm epsilon", self.rms_eps.to_string(), client.rms_eps.to_string()),
            ("tokenizer", self.tokenizer.clone(), client.tokenizer.clone()),
            ("model digest", self.model.clone(), client.model.clone()),
        ];
        fields.into_iter().find(|(_, ours, theirs)| ours != theirs)
    }
}

/// How every client trains: the coordinator's to say, so that averages mean something.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Rounds in all.
    pub rounds: usize,
    /// Passes over a client's text per round.
    pub epochs: usize,
    /// Sequences per optimiser step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Highest learning rate.
    pub learning_rate: f32,
    /// How it runs over all rounds.
    pub schedule: LearningRate,
    /// Norm to which gradients are clipped.
    pub clip: f32,
    /// Temperature of the distillation loss.
    pub temperature: f32,
    /// Weight of T² · KL.
    pub kl: f32,
    /// Weight of the next token's cross entropy.
    pub cross_entropy: f32,
    /// Seed of the order of sequences.
    pub seed: u64,
    /// Precision of the live weights, by full name; what is not named stays full.
    pub precisions: BTreeMap<String, LayerPrecision>,
    /// How activations, keys and values are rounded in training, as they will be served.
    pub rounding: Rounding,
}

impl Plan {
    /// The rule that a field breaks, if one does.
    pub(super) fn fault(&self, context: usize) -> Option<String> {
        let counts = [self.rounds, self.epochs, self.batch];
        let above = [self.learning_rate, self.clip, self.temperature];
        let weights = [self.kl, self.cross_entropy];
        if counts.contains(&0) {
            Some("--rounds, --epochs and --batch must be at least 1".to_owned())
        } else if self.sequence == 0 || self.sequence > context {
            Some(format!("--sequence must be from 1 to the context of {context} but is {}", self.sequence))
        } else if !above.iter().all(|n| n.is_finite() && *n > 0.0) {
            Some("--learning-rate, --clip and --temperature must be finite numbers above 0".to_owned())
        } else if !weights.iter().all(|w| w.is_finite() && *w >= 0.0) || weights.iter().sum::<f32>() == 0.0 {
            Some("--kl and --cross-entropy must be at least 0, and one of them above".to_owned())
        } else {
            None
        }
    }

    /// Sets the precisions of weights of this architecture.
    pub(super) fn quantise(&self, weights: &mut Weights) -> candle_core::Result<()> {
        weights.rounding = self.rounding;
        weights.quantise(|name| self.precisions.get(name).copied().unwrap_or(LayerPrecision::Full))
    }
}

/// What a client is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub(super) enum Now {
    /// Ask again: the round has what it needs of this client, or has not begun.
    Wait,
    /// Train the masters of this round, from 0, and deliver.
    Train {
        /// The round.
        round: usize,
    },
    /// All rounds are done.
    Done,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fault {
    /// Field, rule, remedy.
    pub(super) error: String,
}

/// A client's name becomes a file's name.
pub(super) fn is_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}
