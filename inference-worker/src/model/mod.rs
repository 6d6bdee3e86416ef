//! Model formats, the loader, and the one forward pass that serving and training tools share.
//!
//! A model is a directory as on the Hugging Face hub: config.json, one or several safetensors files, and for serving
//! tokenizer.json; or one GGUF file without a config.json. [`Model::load`] reads it, [`Model::forward`] runs batches of [`Step`]s, each with its own
//! [`KvCache`]; [`Text`] turns text into token ids and back. A forward pass runs on the calling thread and, where
//! [`LoadOptions::threads`] asks for them, on helpers of the model.
//!
//! What is not here: sampling, scheduling.

mod cache;
mod config;
mod digest;
mod error;
pub(crate) mod files;
mod forward;
mod gguf;
mod head;
mod linear;
mod load;
#[cfg(feature = "cuda")]
mod parts;
mod random;
mod repacked;
mod self_test;
mod shared;
mod text;
mod weights;

pub use cache::KvCache;
pub(crate) use config::SHARED_INPUTS;
pub use config::{Activation, LayerPrecision, LinearKind, ModelConfig, RopeScaling, ScaleRule};
pub use digest::digest;
pub(crate) use digest::hex;
pub use error::{ForwardError, LoadError, TensorFault, TextError};
pub use forward::{Step, Want};
pub(crate) use gguf::{Held, each_tensor};
pub use head::HeadMode;
#[cfg(feature = "cuda")]
pub(crate) use parts::{LayerParts, Matrix};
pub use random::{Precision, Shape};
pub use repacked::WeightsCache;
pub use self_test::SelfTestError;
#[cfg(feature = "cuda")]
pub(crate) use self_test::cosine;
pub use shared::SharedWeights;
pub use text::{ChatMessage, Text, TextStream};
pub(crate) use weights::{Shards, Tensor as StoredTensor};

pub use crate::kernels::{ActivationBits, KvBits};
use crate::kernels::{Cpu, Dense, Kernels};
use head::Head;
use linear::Linear;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to load a model.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Most positions of one sequence, if fewer than the model was made for; from 1 to `max_position_embeddings`.
    pub context: Option<usize>,
    /// Kernels to use instead of the fastest that the CPU runs.
    pub kernels: Option<Kernels>,
    /// Threads of a forward pass, the calling one included [default: 1].
    pub threads: Option<usize>,
    /// Precision of cached keys and values, at most the model's own [default: as computed].
    pub kv_bits: KvBits,
    /// How logits are computed.
    pub head: HeadMode,
    /// Where repacked weights are kept between starts; without it, nowhere.
    pub weights_cache: Option<WeightsCache>,
    /// Models that are loaded with clones of the same value share equal matrices.
    pub shared: SharedWeights,
}

impl LoadOptions {
    fn cpu(&self) -> Result<Cpu, LoadError> {
        let kernels = self.kernels.unwrap_or_else(Kernels::detect);
        Cpu::new(kernels, self.threads.unwrap_or(1)).map_err(LoadError::Threads)
    }
}

/// A loaded model. Immutable: threads may share it.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    cpu: Cpu,
    kv_bits: KvBits,
    embedding: Arc<Dense>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Head,
    /// Logits of the portable kernels for the self-test, where they are known.
    reference: Option<Vec<f32>>,
    /// The file that the weights are mapped from; none: they are in memory of this process.
    weights_file: Option<PathBuf>,
}

/// Weights of one decoder layer.
#[derive(Debug)]
struct Layer {
    input_norm: Vec<f32>,
    query: Linear,
    key: Linear,
    value: Linear,
    /// Before the output projection; the BitNet class has it.
    attention_sub_norm: Option<Vec<f32>>,
    output: Linear,
    post_attention_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    /// Before the down projection; the BitNet class has it.
    ffn_sub_norm: Option<Vec<f32>>,
    down: Linear,
}

impl Layer {
    fn linears(&self) -> [&Linear; 7] {
        [&self.query, &self.key, &self.value, &self.output, &self.gate, &self.up, &self.down]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let Self { query, key, value, output, gate, up, down, .. } = self;
        [query, key, value, output, gate, up, down]
    }

    fn norm_bytes(&self) -> usize {
        let sub_norms = self.attention_sub_norm.iter().chain(&self.ffn_sub_norm);
        4 * (self.input_norm.len() + self.post_attention_norm.len() + sub_norms.map(Vec::len).sum::<usize>())
    }
}

impl Model {
    /// Shape and arithmetic; `context` is the one in force.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Precision of the decoder's linear layers: `binary`, `ternary`, `int4`, `int8`, `fp16`, `bf16`, `fp32`, or `mixed`
    /// where they differ.
    pub fn precision(&self) -> &'static str {
        let mut all = self.linears().map(Linear::precision);
        let first = all.next().unwrap_or("fp32");
        if all.all(|other| other == first) { first } else { "mixed" }
    }

    /// Name of the kernels in use, as [`Kernels::name`].
    pub fn kernel(&self) -> &'static str {
        self.cpu.kernels().name()
    }

    /// Precision of cached keys and values.
    pub fn kv_bits(&self) -> KvBits {
        self.kv_bits
    }

    /// Changes the precision of the keys and values of caches that are made from now on.
    pub fn set_kv_bits(&mut self, bits: KvBits) {
        self.kv_bits = bits;
    }

    /// Kernels and threads in use.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Changes the number of threads of a forward pass.
    ///
    /// # Errors
    /// [`LoadError::Threads`]; then nothing has changed.
    pub fn set_threads(&mut self, threads: usize) -> Result<(), LoadError> {
        self.cpu = Cpu::new(self.cpu.kernels(), threads).map_err(LoadError::Threads)?;
        Ok(())
    }

    /// Bytes of weights that a pass reads, with logits for at least one token.
    pub fn bytes_per_pass(&self) -> usize {
        self.linears().map(Linear::bytes).sum::<usize>() + self.head.bytes(&self.embedding)
    }

    /// Bytes of all weights in memory.
    pub fn weight_bytes(&self) -> usize {
        Self::weight_bytes_of(&[self])
    }

    /// The file that the weights are mapped from, if they are: then processes of a node share them.
    pub fn weights_file(&self) -> Option<&Path> {
        self.weights_file.as_deref()
    }

    /// Multiply-adds of the decoder's linear layers per token, and of the head per row of logits.
    pub fn products_per_token(&self) -> (usize, usize) {
        let head = self.embedding.rows() * self.embedding.columns();
        (self.linears().map(Linear::products).sum(), head)
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(Layer::linears)
    }

    /// An empty cache for one sequence of at most `capacity` tokens; the model's context bounds it.
    pub fn new_cache(&self, capacity: usize) -> KvCache {
        KvCache::new(&self.config, self.kv_bits, capacity)
    }
}
