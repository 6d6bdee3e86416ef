//! Agreement with transformers on tiny models of every supported kind (`tests/fixtures`, made by `make.py`), and
//! agreement of the forward pass with itself.
//!
//! A quantised activation that sits on a rounding boundary may fall to either side in two correct implementations, and
//! one such step moves the logits of its token by some percent. Hence the criterion: the median token agrees to 1e-6,
//! 85 % of tokens to 1e-5, and the greedy text is the same. The negative controls show that it still catches a wrong
//! scale rule and a wrong packing order.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use inference_worker::kernels::Kernels;
use inference_worker::model::{KvCache, LoadOptions, Model, Step, Want};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ALL: [&str; 8] = [
    "bitlinear",
    "autobitlinear",
    "online-bf16",
    "bitnet-fp16",
    "llama-fp16",
    "llama-tied-bf16",
    "llama3-fp16",
    "llama-linear-fp16",
];
const PACKED: [&str; 2] = ["bitlinear", "autobitlinear"];

#[derive(Deserialize)]
struct Cases {
    prompts: Vec<Vec<u32>>,
    greedy: Greedy,
}

#[derive(Deserialize)]
struct Greedy {
    prompt: Vec<u32>,
    continuation: Vec<u32>,
}

struct Agreement {
    median: f64,
    /// Share of tokens below 1e-5.
    close: f64,
    worst: f64,
    greedy: bool,
}

impl Agreement {
    fn holds(&self) -> bool {
        self.median < 1e-6 && self.close >= 0.85 && self.greedy
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn cases(name: &str) -> Cases {
    serde_json::from_slice(&fs::read(fixture(name).join("cases.json")).unwrap()).unwrap()
}

fn load(dir: &Path, kernels: Option<Kernels>) -> Model {
    Model::load(dir, &LoadOptions { kernels, ..LoadOptions::default() }).unwrap()
}

/// Shape and data of an f32 array in NumPy format 1.0.
fn read_npy(path: &Path) -> (String, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8(bytes[10..start].to_vec()).unwrap();
    assert!(header.contains("'descr': '<f4'") && header.contains("'fortran_order': False"), "{header}");
    let shape = header.split("'shape': ").nth(1).unwrap().split(')').next().unwrap().to_owned() + ")";
    (shape, bytes[start..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn logits(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut cache = model.new_cache(tokens.len());
    let mut steps = [Step::new(&mut cache, tokens, Want::All)];
    model.forward(&mut steps).unwrap();
    let [step] = steps;
    step.logits
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32
}

fn greedy(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut cache = model.new_cache(prompt.len() + count);
    let mut input = prompt.to_vec();
    let mut text = Vec::new();
    while text.len() < count {
        let mut steps = [Step::new(&mut cache, &input, Want::Last)];
        model.forward(&mut steps).unwrap();
        let next = argmax(&steps[0].logits);
        text.push(next);
        input = vec![next];
    }
    text
}

fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let square = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = square(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / square(&mut expected.iter().map(|b| f64::from(*b)))
}

fn agreement(model: &Model, name: &str) -> Agreement {
    let cases = cases(name);
    let (shape, expected) = read_npy(&fixture(name).join("logits.npy"));
    let vocab = model.config().vocab_size;
    let found: Vec<f32> = cases.prompts.iter().flat_map(|prompt| logits(model, prompt)).collect();
    assert_eq!(shape, format!("({}, {vocab})", found.len() / vocab));
    let rows = found.chunks_exact(vocab).zip(expected.chunks_exact(vocab));
    let mut errors: Vec<f64> = rows.map(|(a, b)| relative(a, b)).collect();
    errors.sort_by(f64::total_cmp);
    Agreement {
        median: errors[errors.len() / 2],
        close: errors.iter().filter(|error| **error < 1e-5).count() as f64 / errors.len() as f64,
        worst: errors[errors.len() - 1],
        greedy: greedy(model, &cases.greedy.prompt, cases.greedy.continuation.len()) == cases.greedy.continuation,
    }
}

/// A copy of a fixture that a control may spoil.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn every_kind_agrees_with_transformers_on_every_kernel() {
    for name in ALL {
        for kernels in [Kernels::detect(), Kernels::portable()] {
            let found = agreement(&load(&fixture(name), Some(kernels)), name);
            println!(
                "{name:16} {:8}  median {:.1e}  below 1e-5: {:.0} %  worst {:.1e}  greedy {}",
                kernels.name(),
                found.median,
                found.close * 100.0,
                found.worst,
                found.greedy
            );
            assert!(found.holds(), "{name} {}", kernels.name());
        }
    }
}

#[test]
fn precision_is_what_the_linear_layers_are() {
    let expected = ["ternary", "ternary", "ternary", "fp16", "fp16", "bf16"];
    for (name, expected) in ALL.into_iter().zip(expected) {
        assert_eq!(load(&fixture(name), None).precision(), expected, "{name}");
    }
}

#[test]
fn control_the_other_scale_rule_is_caught() {
    for (name, other) in PACKED.into_iter().zip(["autobitlinear", "bitlinear"]) {
        let dir = copy(name);
        let path = dir.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["quantization_config"]["linear_class"] = other.into();
        fs::write(&path, config.to_string()).unwrap();
        let found = agreement(&load(dir.path(), None), name);
        println!("{name} read as {other}: median {:.2}", found.median);
        assert!(!found.holds() && found.median > 0.1, "{name}: {:e}", found.median);
    }
}

#[test]
fn control_neighbour_row_packing_is_caught() {
    for name in PACKED {
        let dir = copy(name);
        let path = dir.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let spoilt: Vec<(String, TensorView<'_>, Option<Vec<u8>>)> = file
            .tensors()
            .into_iter()
            .map(|(tensor, view)| {
                let repacked = (view.dtype() == Dtype::U8).then(|| neighbours(view.data(), view.shape()));
                (tensor, view, repacked)
            })
            .collect();
        let views = spoilt.iter().map(|(tensor, view, repacked)| {
            let data = repacked.as_deref().unwrap_or(view.data());
            (tensor, TensorView::new(view.dtype(), view.shape().to_vec(), data).unwrap())
        });
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let found = agreement(&load(dir.path(), None), name);
        println!("{name} with neighbouring rows in a byte: median {:.2}", found.median);
        assert!(!found.holds() && found.median > 0.1, "{name}: {:e}", found.median);
    }
}

/// The same weights with rows 4r to 4r + 3, instead of r, r + R, r + 2R, r + 3R, in byte row r.
fn neighbours(packed: &[u8], shape: &[usize]) -> Vec<u8> {
    let (plane, columns) = (shape[0], shape[1]);
    let code = |row: usize, column: usize| (packed[row % plane * columns + column] >> (2 * (row / plane))) & 3;
    (0..plane * columns)
        .map(|at| {
            let (row, column) = (at / columns, at % columns);
            (0..4).map(|i| code(4 * row + i, column) << (2 * i)).fold(0, |byte, part| byte | part)
        })
        .collect()
}

#[test]
fn decoding_from_the_cache_equals_the_full_pass_bit_for_bit() {
    for name in ALL {
        for kernels in [Kernels::detect(), Kernels::portable()] {
            let model = load(&fixture(name), Some(kernels));
            let tokens = &cases(name).prompts[0];
            let vocab = model.config().vocab_size;
            let whole = logits(&model, tokens);
            // One by one, in uneven pieces, and after a truncation.
            for pieces in [vec![1; tokens.len()], vec![5, 1, 13, 2, 3, 8]] {
                let mut cache = model.new_cache(tokens.len());
                let junk = [7, 7, 7];
                model.forward(&mut [Step::new(&mut cache, &junk, Want::Nothing)]).unwrap();
                cache.truncate(0);
                let mut found = Vec::new();
                for piece in pieces {
                    let start = cache.len();
                    let mut steps = [Step::new(&mut cache, &tokens[start..start + piece], Want::All)];
                    model.forward(&mut steps).unwrap();
                    found.extend_from_slice(&steps[0].logits);
                }
                assert!(found.len() == tokens.len() * vocab && found == whole, "{name} {}", kernels.name());
            }
        }
    }
}

#[test]
fn a_batch_equals_single_steps_bit_for_bit() {
    for name in ALL {
        for kernels in [Kernels::detect(), Kernels::portable()] {
            let model = load(&fixture(name), Some(kernels));
            let vocab = model.config().vocab_size;
            let prompts = cases(name).prompts;
            let prefill: Vec<u32> = prompts[0][..9].to_vec();
            let before: Vec<u32> = prompts[1][..6].to_vec();
            let (decode, chunk, positions) = ([prompts[1][6]], prompts[1].clone(), [3, 0, 31]);

            let mut caches: Vec<_> = (0..4).map(|_| model.new_cache(40)).collect();
            let [one, two, three, four] = &mut caches[..] else { unreachable!() };
            model.forward(&mut [Step::new(two, &before, Want::Nothing)]).unwrap();
            let mut steps = [
                Step::new(one, &prefill, Want::Last),
                Step::new(two, &decode, Want::All),
                Step::new(three, &chunk, Want::Positions(&positions)),
                Step::new(four, &prefill, Want::Nothing),
            ];
            model.forward(&mut steps).unwrap();
            let found: Vec<Vec<f32>> = steps.into_iter().map(|step| step.logits).collect();

            let all = logits(&model, &prompts[1]);
            let row = |index: usize| &all[index * vocab..(index + 1) * vocab];
            assert_eq!(found[0], logits(&model, &prefill)[8 * vocab..], "{name}: prefill");
            assert_eq!(found[1], row(6), "{name}: decode");
            assert_eq!(found[2], [row(3), row(0), row(31)].concat(), "{name}: drawn positions");
            assert!(found[3].is_empty());
            assert_eq!(caches.iter().map(KvCache::len).collect::<Vec<_>>(), [9, 7, 32, 9]);
        }
    }
}

#[test]
fn a_copied_beginning_goes_on_bit_for_bit() {
    for name in ALL {
        let model = load(&fixture(name), None);
        let prompt = &cases(name).prompts[1];
        let mut first = model.new_cache(prompt.len());
        model.forward(&mut [Step::new(&mut first, prompt, Want::Nothing)]).unwrap();
        let mut second = model.new_cache(prompt.len() + 9);
        second.copy_from(&first, 7);
        let mut steps = [Step::new(&mut second, &prompt[7..], Want::All)];
        model.forward(&mut steps).unwrap();
        assert_eq!(steps[0].logits, logits(&model, prompt)[7 * model.config().vocab_size..], "{name}");
    }
}

#[test]
fn the_verb_logits_writes_what_numpy_reads() {
    let name = "autobitlinear";
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("logits.npy");
    let prompt = &cases(name).prompts[0];
    let ids: Vec<String> = prompt.iter().map(u32::to_string).collect();
    let run = |tokens: &str| {
        Command::new(env!("CARGO_BIN_EXE_inference-worker"))
            .args(["logits", "--model"])
            .arg(fixture(name))
            .args(["--tokens", tokens, "--out"])
            .arg(&out)
            .output()
            .unwrap()
    };
    let done = run(&ids.join(","));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let (shape, found) = read_npy(&out);
    assert_eq!(shape, "(32, 128)");
    assert_eq!(found, logits(&load(&fixture(name), None), prompt));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");

    let refused = run("1,128");
    assert!(!refused.status.success());
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("token 128 is outside the vocabulary of 128 ids"), "{text}");
}
