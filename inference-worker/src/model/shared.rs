//! Models of one process hold equal matrices once.

use super::linear::Linear;
use super::{Layer, Model};
use crate::kernels::{Codes, Dense, Floats, Ternary, bytes_of};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Matrices of the models that were loaded with clones of this. A matrix that equals one of another model, byte by byte,
/// is not kept twice; the last model that uses it frees it.
#[derive(Clone, Debug, Default)]
pub struct SharedWeights(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    dense: Vec<Weak<Dense>>,
    ternary: Vec<Weak<Ternary>>,
    codes: Vec<Weak<Codes>>,
}

/// A matrix that can be compared.
trait Content {
    fn bytes(&self) -> usize;

    /// Whether all bytes are equal; ends at the first difference.
    fn same(&self, other: &Self) -> bool;
}

impl Content for Dense {
    fn bytes(&self) -> usize {
        Dense::bytes(self)
    }

    fn same(&self, other: &Self) -> bool {
        let shape = |m: &Self| (m.rows(), m.columns());
        shape(self) == shape(other)
            && match (self.padded().0, other.padded().0) {
                (Floats::F32(a), Floats::F32(b)) => bytes_of(a) == bytes_of(b),
                (Floats::F16(a), Floats::F16(b)) => bytes_of(a) == bytes_of(b),
                (Floats::Bf16(a), Floats::Bf16(b)) => bytes_of(a) == bytes_of(b),
                _ => false,
            }
    }
}

impl Content for Ternary {
    fn bytes(&self) -> usize {
        Ternary::bytes(self)
    }

    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

impl Content for Codes {
    fn bytes(&self) -> usize {
        Codes::bytes(self)
    }

    fn same(&self, other: &Self) -> bool {
        let shape = |m: &Self| (m.width(), m.rows(), m.columns());
        shape(self) == shape(other)
            && bytes_of(self.factors()) == bytes_of(other.factors())
            && self.packed() == other.packed()
    }
}

impl SharedWeights {
    /// Bytes of all matrices that some model uses, each counted once.
    pub fn bytes(&self) -> usize {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        live(&known.dense) + live(&known.ternary) + live(&known.codes)
    }

    /// Makes a model use the matrices that others hold already, and others those of this one.
    pub(super) fn share(&self, model: &mut Model) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        one_of(&mut known.dense, &mut model.embedding);
        if let Some(head) = &mut model.head.own {
            one_of(&mut known.dense, head);
        }
        for linear in model.layers.iter_mut().flat_map(Layer::linears_mut) {
            match linear {
                Linear::Dense(weights) => one_of(&mut known.dense, weights),
                Linear::Ternary { weights, .. } => one_of(&mut known.ternary, weights),
                Linear::Codes(weights) => one_of(&mut known.codes, weights),
            }
        }
    }
}

fn live<T: Content>(known: &[Weak<T>]) -> usize {
    known.iter().filter_map(Weak::upgrade).map(|matrix| matrix.bytes()).sum()
}

fn one_of<T: Content>(known: &mut Vec<Weak<T>>, matrix: &mut Arc<T>) {
    known.retain(|other| other.strong_count() > 0);
    match known.iter().filter_map(Weak::upgrade).find(|other| Arc::ptr_eq(other, matrix) || other.same(matrix)) {
        Some(other) => *matrix = other,
        None => known.push(Arc::downgrade(matrix)),
    }
}

impl Model {
    /// Bytes of all weights of some models in memory: matrices that they share count once.
    pub fn weight_bytes_of(models: &[&Self]) -> usize {
        let mut seen = BTreeSet::new();
        models.iter().map(|model| model.own_bytes(&mut seen)).sum()
    }

    /// Bytes of weights whose matrices are not in `seen`, which are then.
    fn own_bytes(&self, seen: &mut BTreeSet<usize>) -> usize {
        let norms = self.layers.iter().map(Layer::norm_bytes).sum::<usize>() + 4 * self.norm.len();
        let screen = self.head.screen.as_ref().map_or(0, super::head::Screen::held);
        let mut matrices = 0;
        for dense in std::iter::once(&self.embedding).chain(&self.head.own) {
            matrices += if seen.insert(Arc::as_ptr(dense).addr()) { dense.bytes() } else { 0 };
        }
        for linear in self.linears() {
            matrices += if seen.insert(linear.address()) { linear.bytes() } else { 0 };
        }
        norms + screen + matrices
    }
}
