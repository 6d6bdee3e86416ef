//! Slices of tensors and vector loops over them. Sixteen partial sums let the compiler use vector registers without
//! reordering anything at run time.

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor};

const LANES: usize = 16;

/// The values of a contiguous f32 operand.
pub(super) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("the operand is not contiguous") };
    match storage {
        CpuStorage::F32(all) => Ok(&all[start..end]),
        other => candle_core::bail!("the operand is {:?}, not f32", candle_core::backend::BackendStorage::dtype(other)),
    }
}

/// Runs `f` on the values of an f32 tensor on the CPU.
pub(in crate::workshop) fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(values(storage, layout)?),
        _ => candle_core::bail!("training runs on the CPU"),
    }
}

/// A tensor of `like`'s shape.
pub(super) fn tensor(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), &Device::Cpu)
}

/// Sum of f over a slice.
#[inline]
pub(super) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(v);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Dot product.
#[inline]
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in xs.zip(ys) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

fn maximum(x: &[f32]) -> f32 {
    let mut lanes = [f32::MIN; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(f32::MIN, |a, &b| a.max(b));
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    lanes.iter().fold(rest, |a, &b| a.max(b))
}

/// e^x to about 2 ulp for -87 ≤ x ≤ 88, clamped outside; a branch-free polynomial that vectorises (libm's does not, and
/// softmax over the vocabulary would be a fifth of training).
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first exact in few bits, so that the reduced argument keeps its digits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let poly =
        1.0 + r * (1.0 + r * (0.5 + r * (0.166_666_67 + r * (0.041_665_795 + r * (0.008_333_452 + r * 0.001_39)))));
    let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    poly * f32::from_bits(((exponent + 127) << 23) as u32)
}

/// Softmax of `x · factor` in place; returns the logarithm of its partition sum.
pub(super) fn softmax(x: &mut [f32], factor: f32) -> f32 {
    let top = maximum(x) * factor;
    for v in x.iter_mut() {
        *v = exp(*v * factor - top);
    }
    let partition = sum(x, |v| v);
    let inverse = 1.0 / partition;
    for v in x.iter_mut() {
        *v *= inverse;
    }
    top + partition.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_range() {
        let mut worst = 0f64;
        for i in -870..=880 {
            let x = i as f32 * 0.1;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / want - 1.0).abs());
        }
        assert!(worst < 4e-7, "{worst}");
        assert_eq!(exp(-1e9), exp(-87.0));
    }

    #[test]
    fn lane_loops_equal_plain_ones() {
        let x: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin()).collect();
        let y: Vec<f32> = (0..37).map(|i| (i as f32 * 0.3).cos()).collect();
        assert!((sum(&x, |v| v * v) - x.iter().map(|v| v * v).sum::<f32>()).abs() < 1e-5);
        assert!((dot(&x, &y) - x.iter().zip(&y).map(|(a, b)| a * b).sum::<f32>()).abs() < 1e-5);
        assert_eq!(maximum(&x), x.iter().copied().fold(f32::MIN, f32::max));
        let mut p = x.clone();
        let log = softmax(&mut p, 0.5);
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((log - x.iter().map(|v| (v * 0.5).exp()).sum::<f32>().ln()).abs() < 1e-5);
    }
}
