//! The forward pass, in f32, for a batch of steps of any lengths.

use super::linear::{Input, apply};
use super::{Activation, ForwardError, KvCache, Layer, Model, ModelConfig};
use crate::kernels::{ActivationBits, Append, Cpu, Rows, Sequence};

/// A float that is rotated, or added to another, takes about as long as so many multiply-adds.
const FLOAT_WORK: usize = 16;

/// Tokens to append to one sequence, and what to compute from them.
pub struct Step<'a> {
    /// The sequence; the tokens follow those that are in it.
    pub cache: &'a mut KvCache,
    /// Token ids, below `vocab_size`; several for a prompt, one for decoding, none for nothing.
    pub tokens: &'a [u32],
    /// Positions whose logits are wanted.
    pub want: Want<'a>,
    /// Filled by [`Model::forward`]: wanted positions × `vocab_size`, row by row. May hold NaN if the weights do.
    pub logits: Vec<f32>,
}

/// Which of a step's tokens get logits (of the token after them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want<'a> {
    /// None of them.
    Nothing,
    /// The last one, if there is one.
    Last,
    /// These indices into the step's tokens, in this order.
    Positions(&'a [u32]),
    /// All of them.
    All,
}

impl<'a> Step<'a> {
    /// A step without logits yet.
    pub fn new(cache: &'a mut KvCache, tokens: &'a [u32], want: Want<'a>) -> Self {
        Self { cache, tokens, want, logits: Vec::new() }
    }

    fn wanted(&self) -> Vec<usize> {
        let count = self.tokens.len();
        match self.want {
            Want::Nothing => Vec::new(),
            Want::Last => count.checked_sub(1).into_iter().collect(),
            Want::Positions(list) => list.iter().map(|position| *position as usize).collect(),
            Want::All => (0..count).collect(),
        }
    }

    fn check(&self, step: usize, config: &ModelConfig) -> Result<(), ForwardError> {
        if !self.cache.fits(config) {
            return Err(ForwardError::Cache { step });
        }
        let (len, tokens, capacity) = (self.cache.len(), self.tokens.len(), self.cache.capacity());
        if tokens > capacity - len {
            return Err(ForwardError::Capacity { step, len, tokens, capacity });
        }
        if let Some(token) = self.tokens.iter().find(|token| **token as usize >= config.vocab_size) {
            return Err(ForwardError::Token { step, token: *token, vocab_size: config.vocab_size });
        }
        if let Want::Positions(list) = self.want
            && let Some(position) = list.iter().find(|position| **position as usize >= tokens)
        {
            return Err(ForwardError::Position { step, position: *position, tokens });
        }
        Ok(())
    }
}

/// Intermediate results of all tokens of a batch; row = token.
struct Scratch {
    /// Input of q, k, v and of gate, up.
    normed: Input,
    query: Rows,
    key: Rows,
    value: Rows,
    attended: Input,
    gate: Rows,
    up: Rows,
    gated: Input,
    /// Output of the last projection of each half layer.
    delta: Rows,
    /// Cosine and sine for each token, `head_dim / 2` each.
    angles: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Model {
    /// Runs all steps as one batch, so that weights are read once, on the calling thread and the model's helpers. Each
    /// step appends its tokens to its cache and gets the logits it wants. A step's result does not depend, in any bit, on
    /// the other steps, on how its sequence was cut into steps, or on the number of threads.
    ///
    /// # Errors
    /// [`ForwardError`] names the first bad step; then no cache has changed.
    pub fn forward(&self, steps: &mut [Step<'_>]) -> Result<(), ForwardError> {
        let config = &self.config;
        for (index, step) in steps.iter().enumerate() {
            step.check(index, config)?;
        }
        let count = steps.iter().map(|step| step.tokens.len()).sum();
        let mut hidden = Rows::new(count, config.hidden_size);
        for (row, token) in steps.iter().flat_map(|step| step.tokens).enumerate() {
            self.embedding.read_row(*token as usize, hidden.row_mut(row));
        }
        let mut scratch = Scratch::new(config, count);
        let frequencies = frequencies(config);
        scratch.angles = steps
            .iter()
            .flat_map(|step| (0..step.tokens.len()).map(|i| angles(&frequencies, step.cache.len() + i)))
            .collect();
        for (index, layer) in self.layers.iter().enumerate() {
            self.attention(index, layer, steps, &mut hidden, &mut scratch);
            self.feed_forward(layer, &mut hidden, &mut scratch);
        }
        for step in &mut *steps {
            step.cache.advance(step.tokens.len());
        }
        self.logits(steps, &hidden);
        Ok(())
    }

    fn attention(&self, index: usize, layer: &Layer, steps: &mut [Step<'_>], hidden: &mut Rows, scratch: &mut Scratch) {
        let (config, cpu) = (&self.config, &self.cpu);
        let Scratch { normed, query, key, value, attended, delta, angles, .. } = scratch;
        normed.finish(cpu, &layer.query, &|row, out| {
            normalise(hidden.row(row), &layer.input_norm, config.rms_eps, out);
        });
        apply(cpu, [&layer.query, &layer.key, &layer.value], normed, [query, key, value]);
        for rows in [&mut *query, &mut *key] {
            let work = rows.width() * FLOAT_WORK;
            cpu.each_part(rows, 1, work, &|row, _, cells| rotate(cells, config.head_dim, &angles[row]));
        }
        let mut appended: Vec<Append<'_>> =
            with_rows(steps).map(|(step, rows)| step.cache.layer_mut(index, rows)).collect();
        cpu.append(&mut appended, key, value);
        let sequences: Vec<Sequence<'_>> = with_rows(steps).map(|(step, rows)| step.cache.layer(index, rows)).collect();
        cpu.attend(&sequences, query, (config.head_dim as f32).sqrt().recip(), attended.rows_mut());
        attended.finish(cpu, &layer.output, &|_, row| {
            if let Some(norm) = &layer.attention_sub_norm {
                normalise_in_place(row, norm, config.rms_eps);
            }
        });
        apply(cpu, [&layer.output], attended, [delta]);
        add(cpu, hidden, delta);
    }

    fn feed_forward(&self, layer: &Layer, hidden: &mut Rows, scratch: &mut Scratch) {
        let (config, cpu) = (&self.config, &self.cpu);
        let Scratch { normed, gate, up, gated, delta, .. } = scratch;
        normed.finish(cpu, &layer.gate, &|row, out| {
            normalise(hidden.row(row), &layer.post_attention_norm, config.rms_eps, out);
        });
        apply(cpu, [&layer.gate, &layer.up], normed, [gate, up]);
        gated.finish(cpu, &layer.down, &|row, out| {
            let pairs = out.iter_mut().zip(gate.row(row).iter().zip(up.row(row)));
            match config.activation {
                // A comparison, not `max`, which would turn NaN into 0.
                Activation::Relu2 => {
                    pairs.for_each(|(o, (g, u))| *o = if *g < 0.0 { 0.0 } else { g * g } * u);
                }
                Activation::Silu => pairs.for_each(|(o, (g, u))| *o = g / (1.0 + (-g).exp()) * u),
            }
            if let Some(norm) = &layer.ffn_sub_norm {
                normalise_in_place(out, norm, config.rms_eps);
            }
        });
        apply(cpu, [&layer.down], gated, [delta]);
        add(cpu, hidden, delta);
    }

    fn logits(&self, steps: &mut [Step<'_>], hidden: &Rows) {
        let wanted: Vec<Vec<usize>> = steps.iter().map(Step::wanted).collect();
        let mut normed = Rows::new(wanted.iter().map(Vec::len).sum(), self.config.hidden_size);
        let (mut start, mut to) = (0, 0);
        for (step, wanted) in steps.iter().zip(&wanted) {
            for position in wanted {
                normalise(hidden.row(start + position), &self.norm, self.config.rms_eps, normed.row_mut(to));
                to += 1;
            }
            start += step.tokens.len();
        }
        let logits = self.head.logits(&self.cpu, &self.embedding, &mut normed);
        let mut from = 0;
        for (step, wanted) in steps.iter_mut().zip(&wanted) {
            step.logits.clear();
            step.logits.reserve_exact(wanted.len() * self.config.vocab_size);
            (from..from + wanted.len()).for_each(|row| step.logits.extend_from_slice(logits.row(row)));
            from += wanted.len();
        }
    }
}

impl Scratch {
    fn new(config: &ModelConfig, count: usize) -> Self {
        let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        Self {
            normed: Input::new(count, config.hidden_size, config.input_bits),
            query: Rows::new(count, wide),
            key: Rows::new(count, narrow),
            value: Rows::new(count, narrow),
            attended: Input::new(count, wide, ActivationBits::Eight),
            gate: Rows::new(count, config.intermediate_size),
            up: Rows::new(count, config.intermediate_size),
            gated: Input::new(count, config.intermediate_size, ActivationBits::Eight),
            delta: Rows::new(count, config.hidden_size),
            angles: Vec::new(),
        }
    }
}

/// `theta^(-2i / head_dim)`, lowered where the model says so, in the single precision of the reference implementation.
pub(super) fn frequencies(config: &ModelConfig) -> Vec<f32> {
    let width = config.head_dim as f32;
    let plain = (0..config.head_dim / 2).map(|i| config.rope_theta.powf((2 * i) as f32 / width).recip());
    plain.map(|frequency| config.rope_scaling.map_or(frequency, |scaling| scaling.apply(frequency))).collect()
}

/// Cosine and sine of `position · frequency`.
pub(super) fn angles(frequencies: &[f32], position: usize) -> (Vec<f32>, Vec<f32>) {
    frequencies.iter().map(|frequency| (position as f32 * frequency).sin_cos()).map(|(sin, cos)| (cos, sin)).unzip()
}

/// Rotary embedding of all heads of a row: element `i` turns with element `i + head_dim / 2`.
fn rotate(row: &mut [f32], head_dim: usize, (cos, sin): &(Vec<f32>, Vec<f32>)) {
    for head in row.chunks_exact_mut(head_dim) {
        let (low, high) = head.split_at_mut(head_dim / 2);
        for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
        }
    }
}

fn normalise_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let factor = rms_factor(x, eps);
    x.iter_mut().zip(weight).for_each(|(x, w)| *x = w * (*x * factor));
}

fn normalise(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let factor = rms_factor(x, eps);
    out.iter_mut().zip(x).zip(weight).for_each(|((out, x), w)| *out = w * (x * factor));
}

/// `1 / sqrt(mean(x²) + eps)`.
fn rms_factor(x: &[f32], eps: f32) -> f32 {
    const LANES: usize = 8;
    let (blocks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(sum, x)| *sum += x * x);
    }
    let sum: f32 = lanes.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    (sum / x.len() as f32 + eps).sqrt().recip()
}

fn add(cpu: &Cpu, hidden: &mut Rows, delta: &Rows) {
    let work = hidden.width() * FLOAT_WORK;
    cpu.each_part(hidden, 1, work, &|row, _, hidden| {
        hidden.iter_mut().zip(delta.row(row)).for_each(|(hidden, delta)| *hidden += delta);
    });
}

/// The steps that have tokens, each with its rows in the batch: the first one, and how many.
fn with_rows<'s, 'a>(steps: &'s mut [Step<'a>]) -> impl Iterator<Item = (&'s mut Step<'a>, (usize, usize))> {
    let mut next = 0;
    steps.iter_mut().filter(|step| !step.tokens.is_empty()).map(move |step| {
        let first = next;
        next += step.tokens.len();
        let count = step.tokens.len();
        (step, (first, count))
    })
}
