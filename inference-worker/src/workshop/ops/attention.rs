use super::rows::{dot, read, softmax, tensor, values};
use crate::kernels::product::{Matrix, Target, multiply};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};
use std::sync::Arc;

/// Cosines and sines of all positions: computed once, not per operation.
pub struct RopeTable {
    half: usize,
    angles: Vec<(f32, f32)>,
}

impl RopeTable {
    /// Position p, pair j: angle `p · theta^(-2j / head_dim)`.
    pub fn new(positions: usize, head_dim: usize, theta: f32) -> Self {
        let half = head_dim / 2;
        let angle = |p: usize, j: usize| p as f32 * theta.powf(-(j as f32) / half as f32);
        let angles = (0..positions).flat_map(|p| (0..half).map(move |j| angle(p, j).sin_cos())).map(|(s, c)| (c, s));
        Self { half, angles: angles.collect() }
    }
}

/// Rotary embedding of `[tokens, heads · head_dim]`: element j turns with element j + head_dim / 2. Row i of the input
/// has position `i mod sequence`.
pub struct Rope {
    /// Angles of at least `sequence` positions.
    pub table: Arc<RopeTable>,
    /// Tokens per sequence.
    pub sequence: usize,
    /// Turn back instead: the transpose, which is the backward pass.
    pub inverse: bool,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(x, layout)?;
        let (_, width) = layout.shape().dims2()?;
        let half = self.table.half;
        let mut y = vec![0f32; x.len()];
        for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            let angles = &self.table.angles[row % self.sequence * half..][..half];
            for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
                for (j, &(cos, sin)) in angles.iter().enumerate() {
                    let sin = if self.inverse { -sin } else { sin };
                    y[j] = x[j] * cos - x[j + half] * sin;
                    y[j + half] = x[j + half] * cos + x[j] * sin;
                }
            }
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { table: Arc::clone(&self.table), sequence: self.sequence, inverse: !self.inverse };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

/// Causal attention with shared key and value heads: q `[tokens, heads · head_dim]`, k and v
/// `[tokens, kv_heads · head_dim]`, sequences of equal length one after the other.
pub struct Attention {
    /// Tokens per sequence.
    pub sequence: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl Attention {
    fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn key_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Where each head of each sequence starts: in q (and the output), in k (and v).
    fn starts(&self, queries: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (t, hd, qw, kw) = (self.sequence, self.head_dim, self.query_width(), self.key_width());
        let (heads, group) = (self.heads, self.heads / self.kv_heads);
        (0..queries / (t * qw))
            .flat_map(move |s| (0..heads).map(move |h| (s * t * qw + h * hd, s * t * kw + h / group * hd)))
    }

    fn query<'a>(&self, values: &'a [f32]) -> Matrix<'a> {
        Matrix::new(values, self.sequence, self.head_dim, self.query_width())
    }

    fn key<'a>(&self, values: &'a [f32]) -> Matrix<'a> {
        Matrix::new(values, self.sequence, self.head_dim, self.key_width())
    }

    fn square<'a>(&self, values: &'a [f32]) -> Matrix<'a> {
        Matrix::new(values, self.sequence, self.sequence, self.sequence)
    }

    /// Probabilities of one head, `[sequence, sequence]`, zero above the diagonal.
    fn probabilities(&self, p: &mut [f32], q: &[f32], k: &[f32]) {
        let t = self.sequence;
        multiply(own(p, t), self.query(q), self.key(k).transposed(), self.scale());
        for (i, row) in p.chunks_exact_mut(t).enumerate() {
            let (past, future) = row.split_at_mut(i + 1);
            softmax(past, 1.0);
            future.fill(0.0);
        }
    }

    fn backward(&self, [q, k, v, o, g]: [&[f32]; 5], [dq, dk, dv]: [&mut [f32]; 3]) {
        let (t, hd, qw, kw) = (self.sequence, self.head_dim, self.query_width(), self.key_width());
        let (mut p, mut dp) = (vec![0f32; t * t], vec![0f32; t * t]);
        for (at, key_at) in self.starts(q.len()) {
            self.probabilities(&mut p, &q[at..], &k[key_at..]);
            // Heads that share keys and values add up; queries are each head's own.
            multiply(shared(&mut dv[key_at..], kw), self.square(&p).transposed(), self.query(&g[at..]), 1.0);
            multiply(own(&mut dp, t), self.query(&g[at..]), self.key(&v[key_at..]).transposed(), 1.0);
            for i in 0..t {
                let row = at + i * qw..at + i * qw + hd;
                // Σ p·dp over a row, from the output instead of the two squares.
                let along = dot(&o[row.clone()], &g[row]);
                for (dp, p) in dp[i * t..(i + 1) * t].iter_mut().zip(&p[i * t..(i + 1) * t]) {
                    *dp = p * (*dp - along);
                }
            }
            multiply(own(&mut dq[at..], qw), self.square(&dp), self.key(&k[key_at..]), self.scale());
            multiply(shared(&mut dk[key_at..], kw), self.square(&dp).transposed(), self.query(&q[at..]), self.scale());
        }
    }
}

fn own(values: &mut [f32], stride: usize) -> Target<'_> {
    Target { values, stride, accumulate: false }
}

fn shared(values: &mut [f32], stride: usize) -> Target<'_> {
    Target { values, stride, accumulate: true }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (values(q, ql)?, values(k, kl)?, values(v, vl)?);
        let (mut o, mut p) = (vec![0f32; q.len()], vec![0f32; self.sequence * self.sequence]);
        for (at, key_at) in self.starts(q.len()) {
            self.probabilities(&mut p, &q[at..], &k[key_at..]);
            multiply(own(&mut o[at..], self.query_width()), self.square(&p), self.key(&v[key_at..]), 1.0);
        }
        Ok((CpuStorage::F32(o), ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        o: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let zeros = |like: &Tensor| vec![0f32; like.elem_count()];
        let (mut dq, mut dk, mut dv) = (zeros(q), zeros(k), zeros(v));
        let mut run = |inputs: [&[f32]; 5]| {
            self.backward(inputs, [&mut dq, &mut dk, &mut dv]);
            Ok(())
        };
        read(q, |q| read(k, |k| read(v, |v| read(o, |o| read(grad, |g| run([q, k, v, o, g]))))))?;
        Ok((Some(tensor(dq, q)?), Some(tensor(dk, k)?), Some(tensor(dv, v)?)))
    }
}
