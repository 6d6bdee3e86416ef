//! Before a model is served: do the kernels in use and the portable ones give the same logits of it?

use super::{Model, Step, Want};
use crate::kernels::{Cpu, KernelFault, Kernels};

/// Tokens of the check: enough for a batch and for attention over several positions.
const TOKENS: usize = 3;
/// Least cosine of the logits. Kernels differ in last digits, which now and then turn a rounding of an activation; a
/// wrong kernel gives unrelated logits.
const LEAST_COSINE: f64 = 0.99;

/// Why a model is not served.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SelfTestError {
    /// A kernel computes something else.
    #[error(transparent)]
    Kernel(#[from] KernelFault),
    /// The logits differ although the kernels agree on random data.
    #[error(
        "the logits of the {kernels} kernels have a cosine of {cosine:.4} with those of the portable ones; serve on another machine, and report its CPU"
    )]
    Logits {
        /// Name of the kernels.
        kernels: &'static str,
        /// Least of all checked positions.
        cosine: f64,
    },
}

impl Model {
    /// Checks the kernels in use against the portable ones, first on random data, then on the logits of this model. A
    /// model whose logits are not finite on either path passes: that is the model's fault, and is counted when it serves.
    ///
    /// # Errors
    /// [`SelfTestError`]; the model must not be served.
    pub fn self_test(&mut self) -> Result<(), SelfTestError> {
        self.cpu.self_test()?;
        if self.cpu.kernels() == Kernels::portable() {
            return Ok(());
        }
        let found = self.check_logits();
        // Those that a file of repacked weights came with, first; if they do not fit, the file is not believed.
        let known = self.reference.take();
        if known.is_some() && self.agree(found.as_ref(), known.as_ref()).is_ok() {
            return Ok(());
        }
        let expected = self.portable_logits();
        self.agree(found.as_ref(), expected.as_ref())
    }

    /// The logits of the check with the portable kernels, where they are finite.
    pub(super) fn portable_logits(&mut self) -> Option<Vec<f32>> {
        // A pool of one thread starts none, so it cannot fail to.
        let plain = Cpu::new(Kernels::portable(), 1).ok()?;
        let cpu = std::mem::replace(&mut self.cpu, plain);
        let logits = self.check_logits();
        self.cpu = cpu;
        logits
    }

    fn agree(&self, found: Option<&Vec<f32>>, expected: Option<&Vec<f32>>) -> Result<(), SelfTestError> {
        let (Some(found), Some(expected)) = (found, expected) else { return Ok(()) };
        let width = self.config.vocab_size;
        let cosines = found.chunks_exact(width).zip(expected.chunks_exact(width)).map(|(a, b)| cosine(a, b));
        let cosine = if found.len() == expected.len() { cosines.fold(1.0, f64::min) } else { 0.0 };
        if cosine < LEAST_COSINE {
            return Err(SelfTestError::Logits { kernels: self.cpu.kernels().name(), cosine });
        }
        Ok(())
    }

    /// Finite logits of fixed tokens.
    fn check_logits(&self) -> Option<Vec<f32>> {
        let count = TOKENS.min(self.config.context);
        let tokens: Vec<u32> = (0..count).map(|i| ((i * 7919 + 17) % self.config.vocab_size) as u32).collect();
        let mut cache = self.new_cache(count);
        let mut steps = [Step::new(&mut cache, &tokens, Want::All)];
        self.forward(&mut steps).ok()?;
        let [step] = steps;
        step.logits.iter().all(|x| x.is_finite()).then_some(step.logits)
    }
}

/// Cosine of two rows of finite numbers.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let size = (product(a, a) * product(b, b)).sqrt();
    // Nothing resembles zeros but zeros.
    if size > 0.0 { product(a, b) / size } else { f64::from(u8::from(a == b)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoadOptions, Precision, Shape};

    #[test]
    fn models_of_every_precision_pass_on_every_path_and_keep_their_kernels() {
        let shape = Shape::find("demo").unwrap();
        for precision in Precision::ALL {
            for kernels in Kernels::all() {
                let options = LoadOptions { kernels: Some(kernels), threads: Some(2), ..LoadOptions::default() };
                let mut model = Model::random(shape, precision, 1, &options).unwrap();
                assert_eq!(model.self_test(), Ok(()));
                assert_eq!((model.kernel(), model.cpu().pool().threads()), (kernels.name(), 2));
            }
        }
    }

    #[test]
    fn a_wrong_kernel_and_other_logits_are_found() {
        let load = || {
            let options = LoadOptions { threads: Some(1), ..LoadOptions::default() };
            Model::random(Shape::find("demo").unwrap(), Precision::Ternary, 1, &options).unwrap()
        };
        let mut model = load();
        model.cpu.spoiled = Some("attention");
        assert!(matches!(model.self_test(), Err(SelfTestError::Kernel(KernelFault { what: "attention", .. }))));

        let model = load();
        let (found, none) = (model.check_logits().unwrap(), None);
        let mut turned = found.clone();
        turned.rotate_right(1);
        for expected in [&turned, &vec![0.0; found.len()], &found[1..].to_vec()] {
            assert!(matches!(model.agree(Some(&found), Some(expected)), Err(SelfTestError::Logits { .. })));
        }
        // Not finite on either path: counted where it serves.
        assert_eq!(model.agree(Some(&found), none), Ok(()));
    }

    #[test]
    fn other_logits_have_another_cosine() {
        assert!(cosine(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.000_1]) > LEAST_COSINE);
        assert!(cosine(&[1.0, 2.0, 3.0], &[3.0, -1.0, 2.0]) < LEAST_COSINE);
        assert_eq!(cosine(&[0.0], &[0.0]), 1.0);
    }
}
