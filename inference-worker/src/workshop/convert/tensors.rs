//! What a converted checkpoint holds, and its safetensors form.

use super::matrix::{Coded, IntegerWidth, Integers, Matrix, Row};
use crate::model::{ModelConfig, ScaleRule};
use crate::workshop::shards::{Planned, WriteElements};
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
    /// A matrix of integers and its rows' factors.
    Integers(Integers<'a>),
    /// A matrix of ternary or binary codes and its scale.
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
            Self::Integers(matrix) => integers(name, matrix).into(),
            Self::Coded(matrix) => coded(name, matrix, rule).into(),
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

/// Writes codes of `bits` bits, rows in planes: with `plane = ceil(rows · bits / 8)`, byte `[r, c]` holds the codes of the
/// rows `r`, `r + plane` and so on, lowest bits first. Rows that do not exist have the code `absent`.
fn write_planes(
    out: &mut dyn Write,
    bits: usize,
    (rows, columns): (usize, usize),
    absent: u8,
    mut codes: impl FnMut(usize, &mut [u8]),
) -> io::Result<()> {
    let (fields, plane) = (8 / bits, rows.div_ceil(8 / bits));
    let (mut bytes, mut line) = (vec![0u8; columns], vec![0u8; columns]);
    for index in 0..plane {
        bytes.fill(0);
        for field in 0..fields {
            match index + field * plane {
                row if row < rows => codes(row, &mut line),
                _ => line.fill(absent),
            }
            bytes.iter_mut().zip(&line).for_each(|(byte, code)| *byte |= code << (bits * field));
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// A matrix and its scale or factors, as [`crate::model`] reads them.
fn pair<'a>(
    name: &str,
    (dtype, shape): (Dtype, [usize; 2]),
    write: WriteElements<'a>,
    scales: usize,
    write_scales: WriteElements<'a>,
) -> [Planned<'a>; 2] {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    [
        Planned { name: name.to_owned(), dtype, bytes: (shape[0] * shape[1]) as u64, shape: shape.into(), write },
        Planned {
            name: format!("{module}.weight_scale"),
            dtype: Dtype::F32,
            shape: vec![scales],
            bytes: 4 * scales as u64,
            write: write_scales,
        },
    ]
}

/// Codes and scale of one ternary or binary matrix.
fn coded<'a>(name: &str, matrix: Coded<'a>, rule: ScaleRule) -> [Planned<'a>; 2] {
    let shape = (matrix.rows, matrix.columns);
    let bits = if matrix.is_binary() { 1 } else { 2 };
    let write = move |out: &mut dyn Write| {
        let mut room = Row::default();
        write_planes(out, bits, shape, u8::from(bits == 2), |row, line| {
            let codes = matrix.codes(row, &mut room);
            // One bit: of the codes 0 and 2 the upper.
            line.iter_mut().zip(codes).for_each(|(to, code)| *to = code >> (2 - bits));
        })
    };
    let stored = match rule {
        ScaleRule::Multiply => matrix.factor,
        ScaleRule::Divide => matrix.divisor,
    };
    let scale = move |out: &mut dyn Write| out.write_all(&stored.to_le_bytes());
    let form = (Dtype::U8, [matrix.rows.div_ceil(8 / bits), matrix.columns]);
    pair(name, form, Box::new(write), 1, Box::new(scale))
}

/// Codes and factors of one matrix of integers; what its scales do is not the class's to say.
fn integers<'a>(name: &str, integers: Integers<'a>) -> [Planned<'a>; 2] {
    let Matrix { rows, columns, .. } = integers.matrix;
    let factors = move |out: &mut dyn Write| {
        let mut room = Row::default();
        (0..rows).try_for_each(|row| out.write_all(&integers.factor(row, &mut room).to_le_bytes()))
    };
    let (form, write): (_, WriteElements<'a>) = match integers.width {
        IntegerWidth::Eight => {
            let write = move |out: &mut dyn Write| {
                let (mut room, mut bytes) = (Row::default(), Vec::with_capacity(columns));
                (0..rows).try_for_each(|row| {
                    bytes.clear();
                    bytes.extend(integers.weights(row, &mut room).iter().map(|w| w.cast_unsigned()));
                    out.write_all(&bytes)
                })
            };
            ((Dtype::I8, [rows, columns]), Box::new(write))
        }
        IntegerWidth::Four => {
            let write = move |out: &mut dyn Write| {
                let mut room = Row::default();
                write_planes(out, 4, (rows, columns), 8, |row, line| {
                    let weights = integers.weights(row, &mut room);
                    line.iter_mut().zip(weights).for_each(|(to, weight)| *to = (weight + 8).cast_unsigned());
                })
            };
            ((Dtype::U8, [rows.div_ceil(2), columns]), Box::new(write))
        }
    };
    pair(name, form, write, rows, Box::new(factors))
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
