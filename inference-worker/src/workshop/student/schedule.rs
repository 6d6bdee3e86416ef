use crate::model::LayerPrecision;
use serde::{Deserialize, Serialize};

/// How the learning rate runs after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LearningRate {
    /// A cosine down to 2 % of the highest.
    Cosine,
    /// A line down to 2 %.
    Linear,
    /// The highest throughout.
    Constant,
}

impl LearningRate {
    /// Share of the highest rate at a step; it rises over the first 5 % of the steps (10 to 100 of them).
    pub fn share(self, step: usize, steps: usize) -> f32 {
        let warm_up = (steps as f32 * 0.05).clamp(10.0, 100.0);
        let done = step as f32 / steps as f32;
        let rest = match self {
            Self::Cosine => 0.02 + 0.98 * 0.5 * (1.0 + (std::f32::consts::PI * done).cos()),
            Self::Linear => 1.0 - 0.98 * done,
            Self::Constant => 1.0,
        };
        ((step + 1) as f32 / warm_up).min(1.0) * rest
    }
}

/// Precision of what becomes quantised, over the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not quantised yet.
    Full,
    /// 255 values.
    Int8,
    /// 15 values.
    Int4,
    /// As it will be served.
    Final,
}

impl Stage {
    /// Name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Final => "final",
        }
    }

    /// Of a layer whose last precision is this.
    pub fn of(self, last: LayerPrecision) -> LayerPrecision {
        match (self, last) {
            (_, LayerPrecision::Full) | (Self::Full, _) => LayerPrecision::Full,
            (Self::Int8, _) | (Self::Int4, LayerPrecision::Int8) => LayerPrecision::Int8,
            (Self::Int4, _) => LayerPrecision::Int4,
            (Self::Final, last) => last,
        }
    }
}

/// Steps at which 8 bits, 4 bits and the last precision begin; `[0, 0, 0]`: the last one from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stages(pub [usize; 3]);

impl Stages {
    /// The stage of a step.
    pub fn at(self, step: usize) -> Stage {
        let Self([int8, int4, last]) = self;
        match step {
            _ if step >= last => Stage::Final,
            _ if step >= int4 => Stage::Int4,
            _ if step >= int8 => Stage::Int8,
            _ => Stage::Full,
        }
    }
}

/// Spread of the noise at a step: the first one falls in a line to nothing at half of the steps.
pub(super) fn noise(first: f32, step: usize, steps: usize) -> f32 {
    first * (1.0 - step as f32 / (steps as f32 * 0.5)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_each_other_and_leave_plain_layers_alone() {
        let stages = Stages([10, 20, 30]);
        let names: Vec<&str> = [0, 9, 10, 19, 20, 29, 30, 99].map(|step| stages.at(step).name()).into();
        assert_eq!(names, ["full", "full", "int8", "int8", "int4", "int4", "final", "final"]);
        assert_eq!(Stages([0; 3]).at(0), Stage::Final);
        assert_eq!(Stage::Int8.of(LayerPrecision::Full), LayerPrecision::Full);
        assert_eq!(Stage::Int8.of(LayerPrecision::Ternary), LayerPrecision::Int8);
        assert_eq!(Stage::Int4.of(LayerPrecision::Int8), LayerPrecision::Int8, "never below the last one");
        assert_eq!(Stage::Final.of(LayerPrecision::Binary), LayerPrecision::Binary);
    }

    #[test]
    fn rates_rise_then_fall_and_noise_ends_at_half_time() {
        for rate in [LearningRate::Cosine, LearningRate::Linear] {
            assert!(rate.share(0, 1000) < 0.03 && rate.share(50, 1000) > 0.94, "{rate:?}");
            assert!((rate.share(999, 1000) - 0.02).abs() < 2e-3, "{rate:?}");
        }
        assert_eq!(LearningRate::Constant.share(999, 1000), 1.0);
        assert_eq!((noise(0.1, 0, 100), noise(0.1, 50, 100), noise(0.1, 99, 100)), (0.1, 0.0, 0.0));
        assert!((noise(0.1, 25, 100) - 0.05).abs() < 1e-6);
    }
}
