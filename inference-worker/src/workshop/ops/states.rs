use super::rows::{read, sum, tensor, values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// How far hidden states `[tokens, width]` are from a teacher's: the mean over tokens of `|x - t|² / |t|²`, which is 0 for
/// equal states and 1 for none at all, whatever their size.
pub struct StateLoss(pub Tensor);

/// A teacher's state of less than this square counts as this.
const SMALLEST: f32 = 1e-6;

impl StateLoss {
    /// Calls `f` with each row, the teacher's, and the inverse of the teacher's square.
    fn rows(&self, x: &[f32], width: usize, mut f: impl FnMut(usize, &[f32], &[f32], f32)) -> Result<()> {
        read(&self.0, |teacher| {
            if teacher.len() != x.len() {
                candle_core::bail!("{} states cannot be held against {}", x.len(), teacher.len())
            }
            for (row, (x, t)) in x.chunks_exact(width).zip(teacher.chunks_exact(width)).enumerate() {
                f(row, x, t, 1.0 / sum(t, |v| v * v).max(SMALLEST));
            }
            Ok(())
        })
    }
}

impl CustomOp1 for StateLoss {
    fn name(&self) -> &'static str {
        "state-loss"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let mut total = 0f64;
        self.rows(values(x, layout)?, width, |_, x, t, inverse| {
            let distance: f32 = x.iter().zip(t).map(|(x, t)| (x - t) * (x - t)).sum();
            total += f64::from(distance * inverse);
        })?;
        Ok((CpuStorage::F32(vec![(total / rows as f64) as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let outer = grad.to_scalar::<f32>()?;
        let (rows, width) = x.dims2()?;
        let mut dx = vec![0f32; x.elem_count()];
        read(x, |values| {
            self.rows(values, width, |row, x, t, inverse| {
                let factor = 2.0 * outer * inverse / rows as f32;
                let out = &mut dx[row * width..(row + 1) * width];
                out.iter_mut().zip(x.iter().zip(t)).for_each(|(g, (x, t))| *g = factor * (x - t));
            })
        })?;
        Ok(Some(tensor(dx, x)?))
    }
}
