//! Rotary embeddings that were stretched for contexts longer than those of the first training.

use super::raw::{RawRope, Refusal};
use crate::model::LoadError;
use std::f32::consts::PI;

/// How frequencies are lowered; as `rope_parameters` (or `rope_scaling`) of config.json says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// All of them, by this factor.
    Linear {
        /// Above 0.
        factor: f32,
    },
    /// Llama 3.1 and later: low ones by the factor, high ones not at all, those between partly.
    Llama3 {
        /// Above 0.
        factor: f32,
        /// Wavelengths above the context over this are low frequencies.
        low: f32,
        /// Wavelengths below the context over this are high frequencies; above `low`.
        high: f32,
        /// Positions of the first training.
        context: f32,
    },
}

impl RopeScaling {
    /// A frequency, lowered; in the single precision and the order of the reference implementation.
    pub fn apply(self, frequency: f32) -> f32 {
        match self {
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low, high, context } => {
                let wavelength = 2.0 * PI / frequency;
                if wavelength > context / low {
                    frequency / factor
                } else if wavelength < context / high {
                    frequency
                } else {
                    let smooth = (context / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }

    /// `field` is the object's name; `None` where nothing is stretched.
    pub(super) fn read(rope: &RawRope, field: &str, refuse: &Refusal<'_>) -> Result<Option<Self>, LoadError> {
        let number = |name: &str, value: Option<f32>| {
            let name = format!("{field}.{name}");
            let value = value.ok_or_else(|| refuse.of(&name, "is missing", "restore the original file"))?;
            refuse.positive(&name, value)
        };
        match rope.rope_type.as_deref() {
            None | Some("default") => Ok(None),
            Some("linear") => Ok(Some(Self::Linear { factor: number("factor", rope.factor)? })),
            Some("llama3") => {
                let (low, high) = (
                    number("low_freq_factor", rope.low_freq_factor)?,
                    number("high_freq_factor", rope.high_freq_factor)?,
                );
                if low >= high {
                    return Err(refuse.of(
                        &format!("{field}.high_freq_factor"),
                        format!("must be above low_freq_factor {low} but is {high}"),
                        "restore the original file",
                    ));
                }
                let context = number("original_max_position_embeddings", rope.original_max_position_embeddings)?;
                Ok(Some(Self::Llama3 { factor: number("factor", rope.factor)?, low, high, context }))
            }
            Some(kind) => Err(refuse.of(
                &format!("{field}.rope_type"),
                format!("must be default, linear or llama3 but is {kind}"),
                "serve a checkpoint with one of these",
            )),
        }
    }
}
