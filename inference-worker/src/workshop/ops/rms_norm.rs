use super::rows::{dot, read, sum, tensor, values};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

/// `w · x / sqrt(mean(x²) + eps)` per row of x.
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm {
    fn inverse(&self, x: &[f32]) -> f32 {
        1.0 / (sum(x, |v| v * v) / x.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (values(x, xl)?, values(w, wl)?);
        let mut y = vec![0f32; x.len()];
        for (x, y) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())) {
            let r = self.inverse(x);
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * r * w;
            }
        }
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(&self, xt: &Tensor, wt: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = wt.dims1()?;
        let (mut dx, mut dw) = (vec![0f32; xt.elem_count()], vec![0f32; width]);
        let mut rows = |g: &[f32], x: &[f32], w: &[f32]| {
            let mut gw = vec![0f32; width];
            for ((x, g), dx) in x.chunks_exact(width).zip(g.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
                let r = self.inverse(x);
                for j in 0..width {
                    gw[j] = g[j] * w[j];
                    dw[j] += g[j] * x[j] * r;
                }
                let along = dot(&gw, x) * r * r * r / width as f32;
                for j in 0..width {
                    dx[j] = gw[j] * r - x[j] * along;
                }
            }
            Ok(())
        };
        read(grad, |g| read(xt, |x| read(wt, |w| rows(g, x, w))))?;
        Ok((Some(tensor(dx, xt)?), Some(tensor(dw, wt)?)))
    }
}
