use super::rows::values;
use crate::kernels::{ActivationBits, KvBits, seen_in_four};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// Each row as products see it. With 8 bits: `s = 127 / max(|x|max, 1e-5)`, `clamp(round half to even(x · s), -128, 127)
/// / s`; with 4: `s = √7 / (mean |x| + 1e-5)`, from -8 to 7. The gradient passes straight through.
pub struct QuantiseActivations(pub ActivationBits);

impl CustomOp1 for QuantiseActivations {
    fn name(&self) -> &'static str {
        "quantise-activations"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let (_, width) = layout.shape().dims2()?;
        let mut y = vec![0f32; x.len()];
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            match self.0 {
                ActivationBits::Eight => seen_in_eight(x, y),
                ActivationBits::Four => seen_in_four(x, y),
            }
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.clone()))
    }
}

fn seen_in_eight(x: &[f32], y: &mut [f32]) {
    // Adding 1.5 · 2²³ rounds half to even and vectorises; |x · s| ≤ 127, far inside its range.
    const ROUND: f32 = 12_582_912.0;
    let top = x.iter().fold(1e-5f32, |a, v| a.max(v.abs()));
    let scale = 127.0 / top;
    for (y, x) in y.iter_mut().zip(x) {
        *y = ((x * scale + ROUND) - ROUND).clamp(-128.0, 127.0) / scale;
    }
}

/// Keys or values `[tokens, heads · head_dim]` as attention reads them from a cache of so many bits. The gradient passes
/// straight through.
pub struct QuantiseCache {
    /// Bits of a number.
    pub bits: KvBits,
    /// Numbers of a head.
    pub head_dim: usize,
}

impl CustomOp1 for QuantiseCache {
    fn name(&self) -> &'static str {
        "quantise-cache"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = values(x, layout)?.to_vec();
        y.chunks_exact_mut(self.head_dim).for_each(|head| self.bits.seen(head));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    const EIGHT: QuantiseActivations = QuantiseActivations(ActivationBits::Eight);

    /// The gradient of `Σ weights · op(x)` must be the weights.
    fn passes_straight(x: &Var, y: &Tensor) {
        let weights = Tensor::arange(1f32, 1.0 + y.elem_count() as f32, &Device::Cpu).unwrap();
        let weights = weights.reshape(y.shape()).unwrap();
        let grads = (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let grad = grads.get(x.as_tensor()).unwrap();
        assert_eq!(grad.to_vec2::<f32>().unwrap(), weights.to_vec2::<f32>().unwrap());
    }

    #[test]
    fn rounds_half_to_even_and_lets_the_gradient_through() {
        // Row maximum 127 makes the scale 1.
        let x = Var::from_vec(vec![127.0f32, 0.5, 1.5, -2.5, 3.49, -127.0], (1, 6), &Device::Cpu).unwrap();
        let y = x.as_tensor().apply_op1(EIGHT).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[127.0, 0.0, 2.0, -2.0, 3.0, -127.0]]);
        passes_straight(&x, &y);
    }

    #[test]
    fn four_bits_have_sixteen_values_on_the_scale_of_the_mean() {
        // A mean |x| of √7 makes the scale 1 but for the 1e-5 in it.
        let mean = 7f32.sqrt();
        let numbers = vec![0.6, -0.6, 2.4, 9.0, -8.0, 8.0 * mean - 28.6 + 8.0, 0.0, 0.0];
        assert!((numbers.iter().map(|x: &f32| x.abs()).sum::<f32>() / 8.0 - mean).abs() < 1e-5, "{numbers:?}");
        let x = Var::from_vec(numbers, (1, 8), &Device::Cpu).unwrap();
        let y = x.as_tensor().apply_op1(QuantiseActivations(ActivationBits::Four)).unwrap();
        let found = &y.to_vec2::<f32>().unwrap()[0];
        for (found, want) in found.iter().zip([1.0, -1.0, 2.0, 7.0, -8.0, 1.0, 0.0, 0.0]) {
            assert!((found - want).abs() < 1e-4, "{found} {want}");
        }
        passes_straight(&x, &y);
    }

    #[test]
    fn a_cache_of_three_bits_has_eight_values_per_head() {
        let numbers: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin() * if i < 32 { 1.0 } else { 100.0 }).collect();
        let x = Var::from_vec(numbers.clone(), (1, 64), &Device::Cpu).unwrap();
        let y = x.as_tensor().apply_op1(QuantiseCache { bits: KvBits::Three, head_dim: 32 }).unwrap();
        let found = y.to_vec2::<f32>().unwrap();
        for (found, numbers) in found[0].chunks(32).zip(numbers.chunks(32)) {
            let mut distinct = found.to_vec();
            distinct.sort_by(f32::total_cmp);
            distinct.dedup();
            assert_eq!(distinct.len(), 8);
            let step = distinct[1] - distinct[0];
            assert!(found.iter().zip(numbers).all(|(a, b)| (a - b).abs() < 0.51 * step));
        }
        passes_straight(&x, &y);
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let x = Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        for bits in [ActivationBits::Eight, ActivationBits::Four] {
            let y = x.apply_op1(QuantiseActivations(bits)).unwrap();
            assert_eq!(y.to_vec2::<f32>().unwrap(), vec![vec![0.0; 4]; 2]);
        }
    }
}
