//! Backward passes against central differences: along a random direction d, (f(x + h d) - f(x - h d)) / 2h must equal
//! the analytic gradient times d, for every operand of every operation.

use super::*;
use crate::engine::random::Random;
use candle_core::{Device, Result, Tensor, Var};
use std::sync::Arc;

fn noise(random: &mut Random, shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| random.unit() as f32 * 2.0 - 1.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[track_caller]
fn check(shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let mut random = Random::from_seed(11);
    let inputs: Vec<Var> = shapes.iter().map(|s| Var::from_tensor(&noise(&mut random, s)).unwrap()).collect();
    let at: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
    let output = f(&at).unwrap();
    // A random weighting of the outputs makes one number of them that sees each.
    let weights = noise(&mut random, output.dims());
    let scalar = |y: &Tensor| (y * &weights).unwrap().sum_all().unwrap();
    let grads = scalar(&output).backward().unwrap();
    for (i, input) in inputs.iter().enumerate() {
        for _ in 0..4 {
            let direction = noise(&mut random, input.dims());
            let gradient = grads.get(input.as_tensor()).expect("an operand without gradient");
            let analytic = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            let step = 2e-3;
            let moved = |h: f64| {
                let mut at: Vec<Tensor> = at.iter().map(Tensor::detach).collect();
                at[i] = (&at[i] + (&direction * h).unwrap()).unwrap();
                let values = f(&at).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let weights = weights.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                values.iter().zip(&weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            let numeric = (moved(step) - moved(-step)) / (2.0 * step);
            let size = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let error = (numeric - f64::from(analytic)).abs();
            assert!(error < 2e-3 * f64::from(size) + 2e-4, "operand {i}: analytic {analytic}, numeric {numeric}");
            assert!(size > 1e-3, "operand {i} has no gradient to speak of");
        }
    }
}

#[test]
fn linear() {
    check(&[&[5, 7], &[3, 7]], |x| x[0].apply_op2(&x[1], Linear));
}

#[test]
fn rms_norm() {
    check(&[&[4, 19], &[19]], |x| x[0].apply_op2(&x[1], RmsNorm { eps: 1e-5 }));
}

#[test]
fn squared_gate() {
    check(&[&[4, 9], &[4, 9]], |x| x[0].apply_op2(&x[1], SquaredGate));
}

#[test]
fn rope_turns_and_turns_back() {
    let table = Arc::new(RopeTable::new(5, 8, 500_000.0));
    let rope = |inverse| Rope { table: Arc::clone(&table), sequence: 5, inverse };
    check(&[&[10, 16]], |x| x[0].apply_op1(rope(false)));
    let x = noise(&mut Random::from_seed(3), &[10, 16]);
    let back = x.apply_op1(rope(false)).unwrap().apply_op1(rope(true)).unwrap();
    let error = (back - &x).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(error < 1e-6, "{error}");
}

#[test]
fn attention() {
    // Two sequences, four query heads on two key heads.
    let op = || Attention { sequence: 6, heads: 4, kv_heads: 2, head_dim: 4 };
    check(&[&[12, 16], &[12, 8], &[12, 8]], |x| x[0].apply_op3(&x[1], &x[2], op()));
}

#[test]
fn attention_does_not_look_ahead() {
    let op = || Attention { sequence: 6, heads: 2, kv_heads: 1, head_dim: 4 };
    let mut random = Random::from_seed(5);
    let (q, k, v) = (noise(&mut random, &[6, 8]), noise(&mut random, &[6, 4]), noise(&mut random, &[6, 4]));
    let before = q.apply_op3(&k, &v, op()).unwrap().narrow(0, 0, 5).unwrap().to_vec2::<f32>().unwrap();
    let change = |x: &Tensor, random: &mut Random| {
        Tensor::cat(&[&x.narrow(0, 0, 5).unwrap(), &noise(random, &[1, 4])], 0).unwrap()
    };
    let (k, v) = (change(&k, &mut random), change(&v, &mut random));
    let after = q.apply_op3(&k, &v, op()).unwrap().narrow(0, 0, 5).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(before, after);
}

#[test]
fn losses() {
    let targets = || Loss(Objective::NextToken(vec![2, 0, 10]));
    check(&[&[3, 11]], |x| x[0].apply_op1(targets()));
    let logits = (noise(&mut Random::from_seed(8), &[3, 11]) * 3.0).unwrap();
    let teacher = |temperature| Loss(Objective::Teacher { logits: logits.clone(), temperature });
    check(&[&[3, 11]], |x| x[0].apply_op1(teacher(3.0)));
    // Nothing is lost against oneself.
    let own = logits.apply_op1(teacher(2.0)).unwrap().to_scalar::<f32>().unwrap();
    assert!(own.abs() < 1e-5, "{own}");
}

#[test]
fn states() {
    let teacher = (noise(&mut Random::from_seed(9), &[5, 12]) * 2.0).unwrap();
    check(&[&[5, 12]], |x| x[0].apply_op1(StateLoss(teacher.clone())));
    let value = |x: &Tensor| x.apply_op1(StateLoss(teacher.clone())).unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(value(&teacher), 0.0);
    let nothing = value(&teacher.zeros_like().unwrap());
    assert!((nothing - 1.0).abs() < 1e-6, "{nothing}");
}
