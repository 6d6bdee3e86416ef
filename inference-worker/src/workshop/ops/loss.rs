use super::rows::{dot, read, softmax, tensor, values};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

/// What a row of logits is held against.
pub enum Objective {
    /// Cross entropy with the next token: one id per row.
    NextToken(Vec<u32>),
    /// `T² · KL(teacher ‖ student)` of the distributions at temperature T; the factor keeps gradients of one size over
    /// temperatures (Hinton et al. 2015).
    Teacher {
        /// The teacher's logits, of the student's shape.
        logits: Tensor,
        /// T, above 0.
        temperature: f32,
    },
}

/// Mean of the objective over the rows of `[tokens, vocabulary]`, in nats.
pub struct Loss(pub Objective);

impl Loss {
    fn value(&self, x: &[f32], rows: usize) -> Result<f32> {
        let width = x.len() / rows;
        let mut p = vec![0f32; width];
        let total = match &self.0 {
            Objective::NextToken(targets) => {
                let mut total = 0f64;
                for (x, &target) in x.chunks_exact(width).zip(targets) {
                    p.copy_from_slice(x);
                    total += f64::from(softmax(&mut p, 1.0) - x[target as usize]);
                }
                total
            }
            Objective::Teacher { logits, temperature } => read(logits, |teacher| {
                let (factor, mut q, mut total) = (1.0 / temperature, vec![0f32; width], 0f64);
                for (x, t) in x.chunks_exact(width).zip(teacher.chunks_exact(width)) {
                    q.copy_from_slice(x);
                    p.copy_from_slice(t);
                    let (log_q, log_p) = (softmax(&mut q, factor), softmax(&mut p, factor));
                    total += f64::from(dot(&p, t) * factor - log_p - (dot(&p, x) * factor - log_q));
                }
                Ok(total * f64::from(temperature * temperature))
            })?,
        };
        Ok((total / rows as f64) as f32)
    }

    fn gradient(&self, x: &[f32], rows: usize, out: &mut [f32]) -> Result<()> {
        let width = x.len() / rows;
        match &self.0 {
            Objective::NextToken(targets) => {
                let weight = 1.0 / rows as f32;
                for ((x, out), &target) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(targets) {
                    out.copy_from_slice(x);
                    softmax(out, 1.0);
                    out[target as usize] -= 1.0;
                    for g in out {
                        *g *= weight;
                    }
                }
                Ok(())
            }
            Objective::Teacher { logits, temperature } => read(logits, |teacher| {
                // T² of the loss times 1/T of the inner derivative.
                let (factor, weight, mut p) = (1.0 / temperature, temperature / rows as f32, vec![0f32; width]);
                let rows = x.chunks_exact(width).zip(teacher.chunks_exact(width)).zip(out.chunks_exact_mut(width));
                for ((x, t), out) in rows {
                    out.copy_from_slice(x);
                    p.copy_from_slice(t);
                    softmax(out, factor);
                    softmax(&mut p, factor);
                    for (g, p) in out.iter_mut().zip(&p) {
                        *g = weight * (*g - p);
                    }
                }
                Ok(())
            }),
        }
    }
}

impl CustomOp1 for Loss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, _) = layout.shape().dims2()?;
        Ok((CpuStorage::F32(vec![self.value(values(x, layout)?, rows)?]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let outer = grad.to_scalar::<f32>()?;
        let mut dx = vec![0f32; x.elem_count()];
        let (rows, _) = x.dims2()?;
        read(x, |x| self.gradient(x, rows, &mut dx))?;
        if outer != 1.0 {
            for g in &mut dx {
                *g *= outer;
            }
        }
        Ok(Some(tensor(dx, x)?))
    }
}
