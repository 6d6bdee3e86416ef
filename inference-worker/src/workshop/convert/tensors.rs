//! What a converted checkpoint holds, and its safetensors form.

use super::WeightPrecision;
use super::matrix::{Coded, Matrix, Row};
use crate::model::{ModelConfig, ScaleRule};
use crate::workshop::shards::{Planned, WriteElements};
use half::{bf16, f16};
use safetensors::Dtype;
use std::io::{self, Write};

/// A tensor of the output, made while it is written.
pub(super) enum Content<'a> {
    /// As in the input.
    Stored {
        /// Element type.
        dtype: Dtype,
        /// Shape.
        shape: Vec<usize>,
        /// Elements.
        bytes: &'a [u8],
    },
    /// A matrix on a grid per row, in the input's type.
    Rounded(Matrix<'a>, WeightPrecision),
    /// A matrix of 2-bit codes and its scale.
    Coded(Coded<'a>),
    /// A norm of weight 1 and this width.
    Ones(usize),
}

impl<'a> Content<'a> {
    /// Bytes as a packed or plain safetensors file stores them, scales included.
    pub(super) fn planned(self, name: &str, rule: ScaleRule) -> Vec<Planned<'a>> {
        let one = |dtype, shape: Vec<usize>, bytes: usize, write: WriteElements<'a>| {
            vec![Planned { name: name.to_owned(), dtype, shape, bytes: bytes as u64, write }]
        };
        match self {
            Self::Stored { dtype, shape, bytes } => {
                one(dtype, shape, bytes.len(), Box::new(move |out| out.write_all(bytes)))
            }
            Self::Rounded(matrix, precision) => {
                let write = move |out: &mut dyn Write| -> io::Result<()> {
                    let mut room = Room::default();
                    (0..matrix.rows).try_for_each(|row| out.write_all(rounded(&matrix, row, precision, &mut room)))
                };
                one(matrix.dtype, vec![matrix.rows, matrix.columns], matrix.bytes.len(), Box::new(write))
            }
            Self::Coded(matrix) => packed(name, matrix, rule).into(),
            Self::Ones(width) => {
                one(Dtype::F32, vec![width], 4 * width, Box::new(move |out| out.write_all(&ones(width))))
            }
        }
    }
}

/// Weights of a new norm.
pub(super) fn ones(width: usize) -> Vec<u8> {
    1f32.to_le_bytes().repeat(width)
}

/// Room for one row, used again for the next.
#[derive(Default)]
pub(super) struct Room {
    row: Vec<f32>,
    bytes: Vec<u8>,
}

/// One row on a symmetric grid of 255 or 15 values, in the input's type.
pub(super) fn rounded<'r>(matrix: &Matrix<'_>, row: usize, precision: WeightPrecision, room: &'r mut Room) -> &'r [u8] {
    let Room { row: values, bytes } = room;
    let most = if precision == WeightPrecision::Int8 { 127.0f32 } else { 7.0 };
    matrix.read(row, values);
    let step = values.iter().fold(0f32, |top, w| top.max(w.abs())).max(1e-12) / most;
    bytes.clear();
    for weight in values {
        let value = (*weight / step).round_ties_even() * step;
        match matrix.dtype {
            Dtype::F32 => bytes.extend(value.to_le_bytes()),
            Dtype::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
            _ => bytes.extend(bf16::from_f32(value).to_le_bytes()),
        }
    }
    bytes
}

/// Codes and scale of one matrix.
fn packed<'a>(name: &str, matrix: Coded<'a>, rule: ScaleRule) -> [Planned<'a>; 2] {
    let plane = matrix.rows.div_ceil(4);
    let write = move |out: &mut dyn Write| -> io::Result<()> {
        let mut row = Row::default();
        let mut bytes = vec![0u8; matrix.columns];
        for index in 0..plane {
            bytes.fill(0);
            for field in 0..4 {
                if index + field * plane >= matrix.rows {
                    // A row that does not exist has weight 0.
                    for byte in &mut bytes {
                        *byte |= 1 << (2 * field);
                    }
                    continue;
                }
                let codes = matrix.codes(index + field * plane, &mut row);
                bytes.iter_mut().zip(codes).for_each(|(byte, code)| *byte |= code << (2 * field));
            }
            out.write_all(&bytes)?;
        }
        Ok(())
    };
    let stored = match rule {
        ScaleRule::Multiply => matrix.factor,
        ScaleRule::Divide => matrix.divisor,
    };
    let module = name.strip_suffix(".weight").unwrap_or(name);
    [
        Planned {
            name: name.to_owned(),
            dtype: Dtype::U8,
            shape: vec![plane, matrix.columns],
            bytes: (plane * matrix.columns) as u64,
            write: Box::new(write),
        },
        Planned {
            name: format!("{module}.weight_scale"),
            dtype: Dtype::F32,
            shape: vec![1],
            bytes: 4,
            write: Box::new(move |out| out.write_all(&stored.to_le_bytes())),
        },
    ]
}

/// Names and widths of the norms that the BitNet class has and a Llama has not.
pub(super) fn sub_norms(config: &ModelConfig) -> Vec<(String, usize)> {
    let both = |layer: usize| {
        [
            (format!("model.layers.{layer}.self_attn.attn_sub_norm.weight"), config.heads * config.head_dim),
            (format!("model.layers.{layer}.mlp.ffn_sub_norm.weight"), config.intermediate_size),
        ]
    };
    (0..config.layers).flat_map(both).collect()
}
