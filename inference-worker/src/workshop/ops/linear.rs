use super::rows::{read, tensor, values};
use crate::kernels::product::{Matrix, Target, multiply};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

/// `x · wᵀ` for x `[tokens, inputs]` and w `[outputs, inputs]`.
pub struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((tokens, inputs), (outputs, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let x = Matrix::new(values(x, xl)?, tokens, inputs, inputs);
        let w = Matrix::new(values(w, wl)?, outputs, inputs, inputs);
        let mut y = vec![0f32; tokens * outputs];
        multiply(Target { values: &mut y, stride: outputs, accumulate: false }, x, w.transposed(), 1.0);
        Ok((CpuStorage::F32(y), (tokens, outputs).into()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((tokens, inputs), (outputs, _)) = (x.dims2()?, w.dims2()?);
        let (mut dx, mut dw) = (vec![0f32; tokens * inputs], vec![0f32; outputs * inputs]);
        read(grad, |g| {
            let g = Matrix::new(g, tokens, outputs, outputs);
            let target = |values| Target { values, stride: inputs, accumulate: false };
            read(w, |w| {
                multiply(target(&mut dx), g, Matrix::new(w, outputs, inputs, inputs), 1.0);
                Ok(())
            })?;
            read(x, |x| {
                multiply(target(&mut dw), g.transposed(), Matrix::new(x, tokens, inputs, inputs), 1.0);
                Ok(())
            })
        })?;
        Ok((Some(tensor(dx, x)?), Some(tensor(dw, w)?)))
    }
}
