//! From a model to the sections of a file and back, both in the order of one walk.

use super::format::{Kind, Part, Section, Sections, Unusable};
use crate::kernels::{CodeWidth, Codes, Cpu, Dense, FloatStorage, Floats, Ternary, blocks, bytes_of};
use crate::model::head::{Head, Screen};
use crate::model::linear::Linear;
use crate::model::{HeadMode, Layer, LoadOptions, Model, ModelConfig, ScaleRule};
use std::path::PathBuf;
use std::sync::Arc;

/// The sections of a model.
pub(super) fn parts(model: &Model) -> Vec<Part<'_>> {
    let mut parts = vec![dense(&model.embedding)];
    parts.extend(model.head.own.iter().map(|head| dense(head)));
    if let Some(screen) = &model.head.screen {
        parts.extend(codes(&screen.codes));
        parts.extend([vector(&screen.lost), vector(&screen.size)]);
    }
    parts.push(vector(&model.norm));
    for layer in &model.layers {
        let sub_norms = layer.attention_sub_norm.iter().chain(&layer.ffn_sub_norm);
        parts.extend([vector(&layer.input_norm), vector(&layer.post_attention_norm)]);
        parts.extend(sub_norms.map(|norm| vector(norm)));
        for matrix in layer.linears() {
            match matrix {
                Linear::Dense(weights) => parts.push(dense(weights)),
                Linear::Ternary { weights, scale, rule } => parts.push(Part {
                    kind: Kind::Ternary { scale: scale.to_bits(), multiply: *rule == ScaleRule::Multiply },
                    rows: weights.rows(),
                    columns: weights.columns(),
                    bytes: bytes_of(weights.packed().0),
                }),
                Linear::Codes(weights) => parts.extend(codes(weights)),
            }
        }
    }
    parts.extend(model.reference.iter().map(|logits| vector(logits)));
    parts
}

fn vector(numbers: &[f32]) -> Part<'_> {
    Part { kind: Kind::F32, rows: 1, columns: numbers.len(), bytes: bytes_of(numbers) }
}

fn dense(weights: &Dense) -> Part<'_> {
    let (kind, bytes) = match weights.padded().0 {
        Floats::F32(v) => (Kind::F32, bytes_of(v)),
        Floats::F16(v) => (Kind::F16, bytes_of(v)),
        Floats::Bf16(v) => (Kind::Bf16, bytes_of(v)),
    };
    Part { kind, rows: weights.rows(), columns: weights.columns(), bytes }
}

fn codes(weights: &Codes) -> [Part<'_>; 2] {
    let kind = match weights.width() {
        CodeWidth::Binary => Kind::Binary,
        CodeWidth::Int4 => Kind::Int4,
        CodeWidth::Int8 => Kind::Int8,
    };
    let bytes = bytes_of(weights.packed());
    [Part { kind, rows: weights.rows(), columns: weights.columns(), bytes }, vector(weights.factors())]
}

/// The model of a configuration and the sections that were made of it.
pub(super) fn read(
    mut sections: Sections,
    config: ModelConfig,
    cpu: Cpu,
    options: &LoadOptions,
    file: PathBuf,
) -> Result<Model, Unusable> {
    let embedding = Arc::new(sections.dense(config.vocab_size, config.hidden_size)?);
    let own = (!config.tied).then(|| sections.dense(config.vocab_size, config.hidden_size)).transpose()?;
    let screened = options.head != HeadMode::Exact && config.hidden_size <= Codes::MOST_COLUMNS;
    let screen = screened.then(|| sections.screen(&config, options.head)).transpose()?;
    let norm = sections.vector(config.hidden_size)?;
    let layers = (0..config.layers).map(|_| sections.layer(&config)).collect::<Result<_, _>>()?;
    let reference = match sections.next() {
        Ok(section) => Some(sections.numbers(&section, section.columns)?.to_vec()),
        Err(_) => None,
    };
    let head = Head { own: own.map(Arc::new), screen };
    Ok(Model {
        cpu,
        kv_bits: options.kv_bits.min(config.kv_bits),
        embedding,
        layers,
        norm,
        head,
        config,
        reference,
        weights_file: Some(file),
    })
}

impl Sections {
    fn expect(&mut self, rows: usize, columns: usize) -> Result<Section, Unusable> {
        let section = self.next()?;
        if (section.rows, section.columns) == (rows, columns) { Ok(section) } else { Err(Unusable::Sections) }
    }

    fn vector(&mut self, len: usize) -> Result<Vec<f32>, Unusable> {
        let section = self.expect(1, len)?;
        if section.kind != Kind::F32 {
            return Err(Unusable::Sections);
        }
        Ok(self.numbers(&section, len)?.to_vec())
    }

    fn dense(&mut self, rows: usize, columns: usize) -> Result<Dense, Unusable> {
        let section = self.expect(rows, columns)?;
        self.floats(&section)
    }

    fn floats(&self, section: &Section) -> Result<Dense, Unusable> {
        let (rows, columns) = (section.rows, section.columns);
        let count = rows * Dense::stride(columns);
        let elements = match section.kind {
            Kind::F32 => FloatStorage::F32(self.numbers(section, count)?),
            Kind::F16 => FloatStorage::F16(self.numbers(section, count)?),
            Kind::Bf16 => FloatStorage::Bf16(self.numbers(section, count)?),
            _ => return Err(Unusable::Sections),
        };
        Ok(Dense::from_padded(rows, columns, elements))
    }

    fn codes(&mut self, section: &Section, width: CodeWidth) -> Result<Codes, Unusable> {
        let (rows, columns) = (section.rows, section.columns);
        if columns > Codes::MOST_COLUMNS {
            return Err(Unusable::Sections);
        }
        let data = self.numbers(section, Codes::blocks(width, rows, columns))?;
        Ok(Codes::from_blocks(width, rows, columns, data, self.vector(rows)?))
    }

    fn screen(&mut self, config: &ModelConfig, mode: HeadMode) -> Result<Screen, Unusable> {
        let section = self.expect(config.vocab_size, config.hidden_size)?;
        if section.kind != Kind::Int8 {
            return Err(Unusable::Sections);
        }
        let codes = self.codes(&section, CodeWidth::Int8)?;
        let (lost, size) = (self.vector(config.vocab_size)?, self.vector(config.vocab_size)?);
        Ok(Screen { codes, lost, size, rescore: mode == HeadMode::Screened })
    }

    fn linear(&mut self, rows: usize, columns: usize) -> Result<Linear, Unusable> {
        let section = self.expect(rows, columns)?;
        let width = match section.kind {
            Kind::F32 | Kind::F16 | Kind::Bf16 => return Ok(Linear::Dense(Arc::new(self.floats(&section)?))),
            Kind::Ternary { scale, multiply } => {
                let data = self.numbers(&section, blocks(rows, columns))?;
                let rule = if multiply { ScaleRule::Multiply } else { ScaleRule::Divide };
                let weights = Arc::new(Ternary::from_blocks(rows, columns, data));
                return Ok(Linear::Ternary { weights, scale: f32::from_bits(scale), rule });
            }
            Kind::Binary => CodeWidth::Binary,
            Kind::Int4 => CodeWidth::Int4,
            Kind::Int8 => CodeWidth::Int8,
        };
        Ok(Linear::Codes(Arc::new(self.codes(&section, width)?)))
    }

    fn layer(&mut self, config: &ModelConfig) -> Result<Layer, Unusable> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let (input_norm, post_attention_norm) = (self.vector(hidden)?, self.vector(hidden)?);
        let attention_sub_norm = config.sub_norms.then(|| self.vector(wide)).transpose()?;
        let ffn_sub_norm = config.sub_norms.then(|| self.vector(inner)).transpose()?;
        Ok(Layer {
            input_norm,
            post_attention_norm,
            attention_sub_norm,
            ffn_sub_norm,
            query: self.linear(wide, hidden)?,
            key: self.linear(narrow, hidden)?,
            value: self.linear(narrow, hidden)?,
            output: self.linear(hidden, wide)?,
            gate: self.linear(inner, hidden)?,
            up: self.linear(inner, hidden)?,
            down: self.linear(hidden, inner)?,
        })
    }
}
