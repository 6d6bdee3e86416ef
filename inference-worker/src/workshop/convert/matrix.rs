//! Linear layers as they are read, row by row, out of the mapped input.

use crate::model::{ModelConfig, ScaleRule, StoredTensor};
use crate::workshop::error::WorkshopError;
use crate::workshop::inspect::rows_of;
use crate::workshop::weights::{INT4, INT8, integer_step};
use half::{bf16, f16};
use safetensors::Dtype;

/// A matrix of floats in a mapped file.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl<'a> Matrix<'a> {
    pub(super) fn of(config: &ModelConfig, name: &str, tensor: &StoredTensor<'a>) -> Result<Self, WorkshopError> {
        let (dtype, shape) = tensor.stored();
        match (dtype, shape) {
            (Dtype::F32 | Dtype::F16 | Dtype::BF16, [rows, columns])
                if rows_of(config, name) == Some(*rows) && *columns > 0 =>
            {
                Ok(Self { bytes: tensor.bytes(), dtype, rows: *rows, columns: *columns })
            }
            _ => Err(WorkshopError::Refused(format!(
                "{name} must be a matrix of F32, F16 or BF16 with {} rows but is {dtype:?} {shape:?}: convert a checkpoint whose weights and config.json belong together",
                rows_of(config, name).unwrap_or(0)
            ))),
        }
    }

    /// One row as stored.
    pub(super) fn stored(&self, row: usize) -> &'a [u8] {
        let width = self.columns * self.dtype.bitsize() / 8;
        &self.bytes[row * width..(row + 1) * width]
    }

    /// One row as f32.
    pub(super) fn read(&self, row: usize, out: &mut Vec<f32>) {
        let bytes = self.stored(row);
        out.clear();
        match self.dtype {
            Dtype::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
            Dtype::F16 => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
            _ => out.extend(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        }
    }

    /// Mean of |w|, at least 1e-5, summed in the order of [`crate::workshop::ternary::Ternary::of`].
    pub(super) fn mean(&self, name: &str) -> Result<f32, WorkshopError> {
        let (mut sum, mut row) = (0f64, Vec::with_capacity(self.columns));
        for index in 0..self.rows {
            self.read(index, &mut row);
            sum = row.iter().fold(sum, |sum, w| sum + f64::from(w.abs()));
        }
        if !sum.is_finite() {
            return Err(WorkshopError::Refused(format!(
                "{name} has weights that are no finite numbers: convert a checkpoint that is whole"
            )));
        }
        Ok(((sum / (self.rows * self.columns) as f64) as f32).max(1e-5))
    }
}

/// A matrix of integers with a factor per row.
#[derive(Clone, Copy)]
pub(super) struct Integers<'a> {
    pub(super) matrix: Matrix<'a>,
    pub(super) width: IntegerWidth,
}

/// Bits of a weight of [`Integers`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum IntegerWidth {
    /// From -7 to 7.
    Four,
    /// From -127 to 127.
    Eight,
}

impl IntegerWidth {
    fn most(self) -> f32 {
        match self {
            Self::Four => INT4,
            Self::Eight => INT8,
        }
    }
}

impl<'a> Integers<'a> {
    pub(super) fn of(matrix: Matrix<'a>, width: IntegerWidth, name: &str) -> Result<Self, WorkshopError> {
        matrix.mean(name)?;
        Ok(Self { matrix, width })
    }

    /// What the weights of a row are multiplied with.
    pub(super) fn factor(&self, row: usize, room: &mut Row) -> f32 {
        self.matrix.read(row, &mut room.floats);
        integer_step(&room.floats, self.width.most())
    }

    /// Weights of one row, as in training ([`crate::workshop::weights`]).
    pub(super) fn weights<'r>(&self, row: usize, room: &'r mut Row) -> &'r [i8] {
        let step = self.factor(row, room);
        let Row { floats, integers, .. } = room;
        integers.clear();
        integers.extend(floats.iter().map(|w| (w / step).round_ties_even() as i8));
        integers
    }
}

/// A matrix of ternary or binary codes (weight plus one), and its scale in both directions.
#[derive(Clone, Copy)]
pub(super) struct Coded<'a> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Factor of the codes' weights.
    pub(super) factor: f32,
    /// Its inverse, as stored or computed once.
    pub(super) divisor: f32,
    from: From<'a>,
}

#[derive(Clone, Copy)]
enum From<'a> {
    /// Floats that become -1, 0, 1.
    Ternary(Matrix<'a>),
    /// Floats that become -1, 1.
    Binary(Matrix<'a>),
    /// Ternary codes as a packed checkpoint stores them: four planes of `ceil(rows / 4)` rows, lowest bits first.
    PackedTernary(&'a [u8]),
    /// Binary ones: eight planes of `ceil(rows / 8)` rows, lowest bits first.
    PackedBinary(&'a [u8]),
}

impl<'a> Coded<'a> {
    /// Floats to codes, their mean |w| as the factor.
    pub(super) fn floats(matrix: Matrix<'a>, binary: bool, name: &str) -> Result<Self, WorkshopError> {
        let factor = matrix.mean(name)?;
        let from = if binary { From::Binary(matrix) } else { From::Ternary(matrix) };
        Ok(Self { rows: matrix.rows, columns: matrix.columns, factor, divisor: 1.0 / factor, from })
    }

    /// Codes that are packed already; `scale` is their `weight_scale` under `rule`.
    pub(super) fn packed(
        config: &ModelConfig,
        name: &str,
        tensor: &StoredTensor<'a>,
        binary: bool,
        scale: Option<f32>,
        rule: ScaleRule,
    ) -> Result<Self, WorkshopError> {
        let (dtype, shape) = tensor.stored();
        let rows = rows_of(config, name).unwrap_or(0);
        let (Dtype::U8, [plane, columns]) = (dtype, shape) else {
            return Err(refuse(name, &format!("must be packed codes (U8) but is {dtype:?} {shape:?}")));
        };
        let planes = if binary { 8 } else { 4 };
        if *plane != rows.div_ceil(planes) || *columns == 0 {
            return Err(refuse(name, &format!("must have {} packed rows but has {plane}", rows.div_ceil(planes))));
        }
        let Some(scale) = scale.filter(|scale| scale.is_finite() && *scale > 0.0) else {
            return Err(refuse(name, "has no finite weight_scale above 0"));
        };
        if !binary && tensor.bytes().iter().any(|byte| byte & (byte >> 1) & 0x55 != 0) {
            return Err(refuse(name, "has the code 3, which no weight has"));
        }
        let (factor, divisor) = match rule {
            ScaleRule::Multiply => (scale, 1.0 / scale),
            ScaleRule::Divide => (1.0 / scale, scale),
        };
        let bytes = tensor.bytes();
        let from = if binary { From::PackedBinary(bytes) } else { From::PackedTernary(bytes) };
        Ok(Self { rows, columns: *columns, factor, divisor, from })
    }

    /// Whether weights are -1 and 1 alone by their kind.
    pub(super) fn is_binary(&self) -> bool {
        matches!(self.from, From::Binary(_) | From::PackedBinary(_))
    }

    /// Codes of one row.
    pub(super) fn codes<'r>(&self, row: usize, room: &'r mut Row) -> &'r [u8] {
        let Row { floats, codes, .. } = room;
        codes.clear();
        let line = |bytes: &'a [u8], plane: usize| &bytes[row % plane * self.columns..][..self.columns];
        match self.from {
            // Rounding half to even within -1..=1: exactly one half becomes 0.
            From::Ternary(matrix) => {
                matrix.read(row, floats);
                let inverse = self.divisor;
                codes.extend(floats.iter().map(|w| 1 + u8::from(w * inverse > 0.5) - u8::from(w * inverse < -0.5)));
            }
            From::Binary(matrix) => {
                matrix.read(row, floats);
                codes.extend(floats.iter().map(|w| 2 * u8::from(*w >= 0.0)));
            }
            From::PackedTernary(bytes) => {
                let plane = self.rows.div_ceil(4);
                codes.extend(line(bytes, plane).iter().map(|byte| (byte >> (2 * (row / plane))) & 3));
            }
            From::PackedBinary(bytes) => {
                let plane = self.rows.div_ceil(8);
                codes.extend(line(bytes, plane).iter().map(|byte| 2 * ((byte >> (row / plane)) & 1)));
            }
        }
        codes
    }
}

/// Room for one row, used again for the next.
#[derive(Default)]
pub(super) struct Row {
    floats: Vec<f32>,
    codes: Vec<u8>,
    integers: Vec<i8>,
}

fn refuse(name: &str, problem: &str) -> WorkshopError {
    WorkshopError::Refused(format!("{name} {problem}: convert a checkpoint that is whole"))
}
