use super::rows::values;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// Each row to int8 and back: `s = 127 / max(|x|max, 1e-5)`, `clamp(round half to even(x · s), -128, 127) / s`. The
/// gradient passes straight through.
pub struct QuantiseActivations;

impl CustomOp1 for QuantiseActivations {
    fn name(&self) -> &'static str {
        "quantise-activations"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        // Adding 1.5 · 2²³ rounds half to even and vectorises; |x · s| ≤ 127, far inside its range.
        const ROUND: f32 = 12_582_912.0;
        let x = values(x, layout)?;
        let (_, width) = layout.shape().dims2()?;
        let mut y = vec![0f32; x.len()];
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let top = x.iter().fold(1e-5f32, |a, v| a.max(v.abs()));
            let scale = 127.0 / top;
            for (y, x) in y.iter_mut().zip(x) {
                *y = ((x * scale + ROUND) - ROUND).clamp(-128.0, 127.0) / scale;
            }
        }
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

    #[test]
    fn rounds_half_to_even_and_lets_the_gradient_through() {
        // Row maximum 127 makes the scale 1.
        let x = Var::from_vec(vec![127.0f32, 0.5, 1.5, -2.5, 3.49, -127.0], (1, 6), &Device::Cpu).unwrap();
        let y = x.as_tensor().apply_op1(QuantiseActivations).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[127.0, 0.0, 2.0, -2.0, 3.0, -127.0]]);
        let weights = Tensor::new(&[[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
        let grads = (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let grad = grads.get(x.as_tensor()).unwrap();
        assert_eq!(grad.to_vec2::<f32>().unwrap(), weights.to_vec2::<f32>().unwrap());
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let x = Tensor::zeros((2, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let y = x.apply_op1(QuantiseActivations).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), vec![vec![0.0; 4]; 2]);
    }
}
