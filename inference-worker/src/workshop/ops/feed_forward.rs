use super::rows::{read, tensor, values};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

/// `max(gate, 0)² · up`, element by element.
pub struct SquaredGate;

impl CustomOp2 for SquaredGate {
    fn name(&self) -> &'static str {
        "squared-gate"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gl: &Layout, up: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values(gate, gl)?, values(up, ul)?);
        let squared = |g: f32| g.max(0.0) * g.max(0.0);
        let y = gate.iter().zip(up).map(|(&g, &u)| squared(g) * u).collect();
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let n = gate.elem_count();
        let (mut dg, mut du) = (vec![0f32; n], vec![0f32; n]);
        let mut elements = |g: &[f32], u: &[f32], d: &[f32]| {
            for i in 0..n {
                let r = g[i].max(0.0);
                dg[i] = 2.0 * r * u[i] * d[i];
                du[i] = r * r * d[i];
            }
            Ok(())
        };
        read(gate, |g| read(up, |u| read(grad, |d| elements(g, u, d))))?;
        Ok((Some(tensor(dg, gate)?), Some(tensor(du, up)?)))
    }
}
