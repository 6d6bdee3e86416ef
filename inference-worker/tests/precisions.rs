//! Layers in other forms than packed ternary, four-bit activations, quantised keys and values, and screened heads.
//!
//! The forms are tested against each other: the same integers stored as ternary, 4-bit, 8-bit or binary codes are the
//! same products, so the logits must be equal bit for bit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use inference_worker::kernels::Kernels;
use inference_worker::model::{HeadMode, KvBits, LoadError, LoadOptions, Model, Step, TensorFault, Want};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

const DOWN: &str = "model.layers.0.mlp.down_proj";
const QUERY: &str = "model.layers.1.self_attn.q_proj";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(dir: &Path) -> (Value, Tensors) {
    let config = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |view: &TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    (config, file.tensors().iter().map(|(name, view)| (name.clone(), tensor(view))).collect())
}

fn write(config: &Value, tensors: &Tensors) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let views =
        tensors.iter().map(|(name, (kind, shape, data))| (name, TensorView::new(*kind, shape.clone(), data).unwrap()));
    fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    dir
}

fn options() -> LoadOptions {
    LoadOptions::default()
}

fn logits(model: &Model) -> Vec<f32> {
    let tokens: Vec<u32> = (0..24).map(|i| (i * 29 + 3) % model.config().vocab_size as u32).collect();
    let mut cache = model.new_cache(tokens.len());
    let mut steps = [Step::new(&mut cache, &tokens, Want::All)];
    model.forward(&mut steps).unwrap();
    let [step] = steps;
    step.logits
}

/// `[row][column]` of a packed ternary layer of `rows` rows, and its scale.
fn ternary(tensors: &Tensors, module: &str, rows: usize) -> (Vec<Vec<i8>>, f32) {
    let (_, shape, bytes) = &tensors[&format!("{module}.weight")];
    let (plane, columns) = (shape[0], shape[1]);
    let weight = |row: usize, column: usize| {
        (bytes[row % plane * columns + column] >> (2 * (row / plane)) & 3).cast_signed() - 1
    };
    let (kind, _, scale) = &tensors[&format!("{module}.weight_scale")];
    let scale = match kind {
        Dtype::BF16 => half::bf16::from_le_bytes([scale[0], scale[1]]).to_f32(),
        _ => f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]),
    };
    ((0..rows).map(|row| (0..columns).map(|column| weight(row, column)).collect()).collect(), scale)
}

fn put(tensors: &mut Tensors, module: &str, kind: Dtype, shape: [usize; 2], data: Vec<u8>, scales: &[f32]) {
    tensors.insert(format!("{module}.weight"), (kind, shape.to_vec(), data));
    let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    tensors.insert(format!("{module}.weight_scale"), (Dtype::F32, vec![scales.len()], bytes));
}

/// Planes of rows in the fields of a byte.
fn planes(weights: &[Vec<i8>], bits: usize, code: impl Fn(i8) -> u8) -> ([usize; 2], Vec<u8>) {
    let (plane, columns) = (weights.len().div_ceil(8 / bits), weights[0].len());
    let mut data = vec![0; plane * columns];
    for (row, line) in weights.iter().enumerate() {
        for (column, weight) in line.iter().enumerate() {
            data[row % plane * columns + column] |= code(*weight) << (bits * (row / plane));
        }
    }
    ([plane, columns], data)
}

/// Rows of the two layers that are stored otherwise: both are as wide as the residual stream.
fn rows(config: &Value) -> usize {
    config["hidden_size"].as_u64().unwrap() as usize
}

#[test]
fn the_same_integers_in_other_forms_give_the_same_logits() {
    for name in ["autobitlinear", "bitlinear"] {
        let (config, tensors) = read(&fixture(name));
        let expected = logits(&Model::load(&fixture(name), &options()).unwrap());
        for form in ["int4", "int8"] {
            let (mut config, mut tensors) = (config.clone(), tensors.clone());
            for module in [DOWN, QUERY] {
                let (weights, scale) = ternary(&tensors, module, rows(&config));
                // `bitlinear` divides: a product over the scale, where codes have a factor.
                let factor = if name == "autobitlinear" { scale } else { scale.recip() };
                let factors = vec![factor; weights.len()];
                let (kind, (shape, data)) = if form == "int4" {
                    (Dtype::U8, planes(&weights, 4, |w| (w + 8).cast_unsigned()))
                } else {
                    let data = weights.iter().flatten().map(|w| w.cast_unsigned()).collect();
                    (Dtype::I8, ([weights.len(), weights[0].len()], data))
                };
                put(&mut tensors, module, kind, shape, data, &factors);
            }
            config["quantization_config"]["precisions"] = json!({DOWN: form, QUERY: form});
            let dir = write(&config, &tensors);
            for kernels in Kernels::all() {
                let model = Model::load(dir.path(), &LoadOptions { kernels: Some(kernels), ..options() }).unwrap();
                assert_eq!(model.precision(), "mixed");
                let own = Model::load(&fixture(name), &LoadOptions { kernels: Some(kernels), ..options() }).unwrap();
                let found = logits(&model);
                if name == "autobitlinear" {
                    assert_eq!(found, logits(&own), "{name} {form} {}", kernels.name());
                } else {
                    // A quotient and a product with the reciprocal differ in the last digit, which may turn a rounding.
                    assert!(cosine(&found, &expected) > 0.999, "{name} {form} {}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn binary_layers_are_ternary_ones_without_zeros() {
    let (mut config, mut tensors) = read(&fixture("autobitlinear"));
    let (mut weights, scale) = ternary(&tensors, DOWN, rows(&config));
    weights
        .iter_mut()
        .flatten()
        .enumerate()
        .filter(|(_, w)| **w == 0)
        .for_each(|(i, w)| *w = if i % 3 == 0 { 1 } else { -1 });
    let (shape, data) = planes(&weights, 2, |w| (w + 1).cast_unsigned());
    put(&mut tensors, DOWN, Dtype::U8, shape, data, &[scale]);
    let as_ternary = write(&config, &tensors);
    let (shape, data) = planes(&weights, 1, |w| u8::from(w > 0));
    put(&mut tensors, DOWN, Dtype::U8, shape, data, &[scale]);
    config["quantization_config"]["precisions"] = json!({DOWN: "binary"});
    let as_binary = write(&config, &tensors);
    for kernels in Kernels::all() {
        let load = |dir: &Path| Model::load(dir, &LoadOptions { kernels: Some(kernels), ..options() }).unwrap();
        let (ternary, binary) = (load(as_ternary.path()), load(as_binary.path()));
        assert_eq!(logits(&ternary), logits(&binary), "{}", kernels.name());
        assert!(binary.bytes_per_pass() < ternary.bytes_per_pass());
    }
}

#[test]
fn a_wrong_form_is_refused_by_the_name_of_the_tensor() {
    let (mut config, tensors) = read(&fixture("autobitlinear"));
    for (form, expected) in [("int8", "I8"), ("int4", "shape"), ("binary", "shape")] {
        config["quantization_config"]["precisions"] = json!({DOWN: form});
        let dir = write(&config, &tensors);
        match Model::load(dir.path(), &options()) {
            Err(LoadError::Tensor {
                tensor,
                fault: fault @ (TensorFault::Dtype { .. } | TensorFault::Shape { .. }),
                ..
            }) => {
                assert_eq!(tensor, format!("{DOWN}.weight"));
                assert!(fault.to_string().contains(expected), "{fault}");
            }
            other => panic!("{form}: {other:?}"),
        }
    }
    let mut tensors = tensors;
    let count = rows(&config);
    let columns = config["intermediate_size"].as_u64().unwrap() as usize;
    let mut scales = vec![1.0; count];
    scales[3] = f32::NAN;
    put(&mut tensors, DOWN, Dtype::I8, [count, columns], vec![1; count * columns], &scales);
    config["quantization_config"]["precisions"] = json!({DOWN: "int8"});
    let result = Model::load(write(&config, &tensors).path(), &options());
    assert!(matches!(result, Err(LoadError::Tensor { fault: TensorFault::Scale(_), .. })), "{result:?}");
}

#[test]
fn four_bit_activations_change_the_logits_a_little() {
    let (mut config, tensors) = read(&fixture("autobitlinear"));
    let eight = logits(&Model::load(&fixture("autobitlinear"), &options()).unwrap());
    config["quantization_config"]["activation_bits"] = json!(4);
    let dir = write(&config, &tensors);
    let mut all = Kernels::all()
        .into_iter()
        .map(|kernels| logits(&Model::load(dir.path(), &LoadOptions { kernels: Some(kernels), ..options() }).unwrap()));
    let four = all.next().unwrap();
    let found = cosine(&four, &eight);
    assert!((0.6..0.9999).contains(&found), "{found}");
    for other in all {
        assert!(cosine(&four, &other) > 0.98);
    }
}

#[test]
fn fewer_bits_of_keys_and_values_cost_more_and_little() {
    // A plain model: quantised activations would add steps of their own.
    for name in ["llama-fp16", "bitnet-fp16"] {
        let at = |kv_bits| logits(&Model::load(&fixture(name), &LoadOptions { kv_bits, ..options() }).unwrap());
        let exact = at(KvBits::ThirtyTwo);
        let errors: Vec<f64> = KvBits::SERVED.into_iter().map(|bits| relative(&at(bits), &exact)).collect();
        let shown: Vec<String> = errors.iter().map(|error| format!("{error:.1e}")).collect();
        println!("{name}: relative error of the logits at 16, 8, 4, 3 bits {}", shown.join(", "));
        assert!(errors.is_sorted(), "{errors:?}");
        for (error, most) in errors.iter().zip([1e-3, 1e-2, 0.2, 0.4]) {
            assert!(*error > 0.0 && *error < most, "{errors:?}");
        }
    }
}

#[test]
fn a_screened_head_chooses_as_the_exact_one() {
    for name in ["autobitlinear", "llama-fp16", "llama-tied-bf16"] {
        let at = |head| {
            let model = Model::load(&fixture(name), &LoadOptions { head, ..options() }).unwrap();
            (logits(&model), model.config().vocab_size, model.bytes_per_pass())
        };
        let ((exact, vocabulary, bytes), (screened, ..)) = (at(HeadMode::Exact), at(HeadMode::Screened));
        let (_, _, fewer) = at(HeadMode::Int8);
        assert!(fewer < bytes);
        for (exact, screened) in exact.chunks_exact(vocabulary).zip(screened.chunks_exact(vocabulary)) {
            let largest = |row: &[f32]| {
                let mut order: Vec<usize> = (0..row.len()).collect();
                order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
                order.into_iter().take(HeadMode::EXACT).map(|at| (at, row[at])).collect::<Vec<_>>()
            };
            assert_eq!(largest(exact), largest(screened), "{name}");
        }
    }
}

fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let length = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = length(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / length(&mut expected.iter().map(|x| f64::from(*x)))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}
