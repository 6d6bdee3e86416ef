//! Vector kernels, chosen at run time; each has a portable twin that it must equal.
//!
//! Integer results (ternary products, quantised activations) are the same on every path, bit for bit. Floating-point
//! products may differ between paths in the last digits, but on one path the result of a row and a token never depends
//! on how many other tokens are in the batch: each pair has one accumulator that runs over the columns in order.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod buffers;
mod portable;
pub mod product;

pub use buffers::{Dense, Elements, Quantized, Rows, Ternary};

/// Instruction set of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    set: Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Portable,
    /// Made by [`Kernels::detect`] only, after the CPU said that it has AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

/// One query against the cached positions of its head.
pub struct Attention<'a> {
    /// The query, `head_dim` long.
    pub query: &'a [f32],
    /// Keys, one row of `head_dim` per position.
    pub keys: &'a [f32],
    /// Values, laid out as the keys.
    pub values: &'a [f32],
    /// Factor on the scores.
    pub scale: f32,
}

impl Kernels {
    /// The fastest kernels that this CPU runs.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return Self { set: Set::Avx2 };
        }
        Self::portable()
    }

    /// The kernels that every CPU runs.
    pub fn portable() -> Self {
        Self { set: Set::Portable }
    }

    /// `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.set {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
        }
    }

    /// `out[token] = weights · x[token]` for all tokens.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn dense(self, weights: &Dense, x: &Rows, out: &mut Rows) {
        assert!(weights.columns() == x.width() && weights.rows() == out.width() && x.count() == out.count());
        match self.set {
            Set::Portable => portable::dense(weights, x, out),
            // SAFETY: `Set::Avx2` exists only where the CPU has the features of that module (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::dense(weights, x, out) },
        }
    }

    /// `out[token × rows + row] = Σ weight · quantised activation`, exact integers.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn ternary(self, weights: &Ternary, x: &Quantized, out: &mut Vec<i32>) {
        assert!(weights.columns() == x.width());
        out.clear();
        out.resize(x.count() * weights.rows(), 0);
        match self.set {
            Set::Portable => portable::ternary(weights, x, out),
            // SAFETY: `Set::Avx2` exists only where the CPU has the features of that module (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::ternary(weights, x, out) },
        }
    }

    /// Quantises each row to int8: `s = 127 / max(|x|max, 1e-5)`, `q = clamp(round half to even(x · s), -128, 127)`.
    ///
    /// A row that holds NaN or an infinity gets the scale NaN, so that every product with it is NaN and is counted.
    pub fn quantise(self, x: &Rows, out: &mut Quantized) {
        out.reset(x.count(), x.width());
        match self.set {
            Set::Portable => portable::quantise(x, out),
            // SAFETY: `Set::Avx2` exists only where the CPU has the features of that module (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::quantise(x, out) },
        }
    }

    /// `out = softmax(query · keysᵀ · scale) · values`; `scores` is scratch.
    ///
    /// # Panics
    /// If the shapes do not fit or there is no position.
    pub fn attend(self, input: &Attention<'_>, scores: &mut Vec<f32>, out: &mut [f32]) {
        let width = input.query.len();
        assert!(width == out.len() && !input.keys.is_empty() && input.keys.len() == input.values.len());
        assert!(input.keys.len().is_multiple_of(width));
        match self.set {
            Set::Portable => portable::attend(input, scores, out),
            // SAFETY: `Set::Avx2` exists only where the CPU has the features of that module (see `Set`).
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::attend(input, scores, out) },
        }
    }
}

#[cfg(test)]
mod tests;
