//! GGUF files that hold the models of the fixtures: the same logits, and refusals of everything else.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use half::f16;
use inference_worker::engine::random::Random;
use inference_worker::model::{LoadError, LoadOptions, Model, ModelConfig, Step, TensorFault, Text, Want};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const I2_S: u32 = 36;

/// Writes a GGUF file.
#[derive(Clone, Default)]
struct Writer {
    values: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Writer {
    fn number(&mut self, key: &str, n: u32) {
        self.values.push((key.to_owned(), 4, n.to_le_bytes().to_vec()));
    }

    fn float(&mut self, key: &str, x: f32) {
        self.values.push((key.to_owned(), 6, x.to_le_bytes().to_vec()));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.values.push((key.to_owned(), 8, text(value)));
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        let mut bytes = [&8_u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        for value in values {
            bytes.extend(text(value));
        }
        self.values.push((key.to_owned(), 9, bytes));
    }

    fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: Vec<u8>) {
        let dimensions = shape.iter().rev().map(|n| *n as u64).collect();
        self.tensors.push((name.to_owned(), dimensions, kind, bytes));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, kind, bytes) in &self.values {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
        let mut data = Vec::new();
        for (name, dimensions, kind, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((dimensions.len() as u32).to_le_bytes());
            for n in dimensions {
                out.extend(n.to_le_bytes());
            }
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    fn save(&self, dir: &Path) {
        fs::write(dir.join("model.gguf"), self.bytes()).unwrap();
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// All tensors of a fixture: type, shape, bytes.
fn tensors(dir: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut all = BTreeMap::new();
    for path in files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")) {
        let bytes = fs::read(path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            all.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    all
}

/// GGUF's name of a tensor, and whether its rows are those of q or k.
fn renamed(name: &str) -> (String, bool) {
    let known = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.attn_sub_norm", "attn_sub_norm"),
        ("mlp.ffn_sub_norm", "ffn_sub_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let (hf, gguf) = known.iter().find(|(hf, _)| name.contains(hf)).unwrap();
    let renamed = name.replace("model.layers.", "blk.").replace(hf, gguf);
    (renamed, matches!(*gguf, "attn_q" | "attn_k"))
}

/// The same model as a GGUF file; q and k of a Llama in the order of that architecture.
fn convert(dir: &Path, llama: bool) -> Writer {
    let config = ModelConfig::load(dir).unwrap();
    let all = tensors(dir);
    let mut out = Writer::default();
    let architecture = if llama { "llama" } else { "bitnet-b1.58" };
    out.text("general.architecture", architecture);
    let key = |name: &str| format!("{architecture}.{name}");
    out.number(&key("context_length"), config.context as u32);
    out.number(&key("embedding_length"), config.hidden_size as u32);
    out.number(&key("block_count"), config.layers as u32);
    out.number(&key("feed_forward_length"), config.intermediate_size as u32);
    out.number(&key("attention.head_count"), config.heads as u32);
    out.number(&key("attention.head_count_kv"), config.kv_heads as u32);
    out.float(&key("attention.layer_norm_rms_epsilon"), config.rms_eps);
    out.float(&key("rope.freq_base"), config.rope_theta);
    out.number(&key("rope.dimension_count"), config.head_dim as u32);
    for (name, (dtype, shape, bytes)) in &all {
        if name.ends_with("weight_scale") {
            continue;
        }
        let (renamed, turns) = renamed(name);
        let place = |row: usize| {
            let (head, within, half) = (row / config.head_dim, row % config.head_dim, config.head_dim / 2);
            // Row 2 j + t of a head of the file is row t · half + j here.
            if turns && llama { head * config.head_dim + within % 2 * half + within / 2 } else { row }
        };
        if *dtype == Dtype::U8 {
            let scale = &all[&format!("{name}_scale")];
            let scale = match scale.0 {
                Dtype::F32 => f32::from_le_bytes(scale.2[..4].try_into().unwrap()),
                Dtype::BF16 => half::bf16::from_le_bytes(scale.2[..2].try_into().unwrap()).to_f32(),
                _ => f16::from_le_bytes(scale.2[..2].try_into().unwrap()).to_f32(),
            };
            let scale = if llama { 1.0 / scale } else { scale };
            let (plane, columns) = (shape[0], shape[1]);
            let rows = plane * 4;
            let code = |row: usize, column: usize| (bytes[row % plane * columns + column] >> (2 * (row / plane))) & 3;
            let mut packed = vec![0_u8; rows * columns / 4];
            for row in 0..rows {
                for column in 0..columns {
                    let element = row * columns + column;
                    let (block, within) = (element / 128, element % 128);
                    packed[32 * block + within % 32] |= code(place(row), column) << (6 - 2 * (within / 32));
                }
            }
            packed.extend(scale.to_le_bytes());
            packed.resize(packed.len() + 28, 0);
            out.tensor(&renamed, &[rows, columns], I2_S, packed);
            continue;
        }
        let (kind, size) = match dtype {
            Dtype::F32 => (0, 4),
            Dtype::F16 => (1, 2),
            Dtype::BF16 => (30, 2),
            other => panic!("{name} is {other:?}"),
        };
        let width = shape.last().unwrap() * size;
        let rows = bytes.len() / width;
        let ordered = (0..rows).flat_map(|row| bytes[place(row) * width..][..width].to_vec()).collect();
        out.tensor(&renamed, shape, kind, ordered);
    }
    out
}

/// A packed model of random codes whose widths I2_S can hold; `bitnet` multiplies by its scales, `llama` divides.
fn packed(dir: &Path, family: &str) {
    const HIDDEN: usize = 128;
    const INNER: usize = 256;
    const VOCABULARY: usize = 96;
    const LAYERS: usize = 2;
    let mut random = Random::from_seed(6);
    let class = if family == "bitnet" { "autobitlinear" } else { "bitlinear" };
    let config = serde_json::json!({
        "model_type": family, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": INNER,
        "max_position_embeddings": 64, "tie_word_embeddings": true, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "quantization_config": {"quant_method": "bitnet", "linear_class": class, "quantization_mode": "offline"},
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut all: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let floats = |random: &mut Random, count: usize, low: f64| -> Vec<u8> {
        (0..count).flat_map(|_| ((low + random.unit()) as f32).to_le_bytes()).collect()
    };
    let embedding = floats(&mut random, VOCABULARY * HIDDEN, -0.5);
    all.push(("model.embed_tokens.weight".to_owned(), Dtype::F32, vec![VOCABULARY, HIDDEN], embedding));
    all.push(("model.norm.weight".to_owned(), Dtype::F32, vec![HIDDEN], floats(&mut random, HIDDEN, 0.5)));
    for layer in 0..LAYERS {
        let mut norms = vec![("input_layernorm", HIDDEN), ("post_attention_layernorm", HIDDEN)];
        if family == "bitnet" {
            norms.extend([("self_attn.attn_sub_norm", HIDDEN), ("mlp.ffn_sub_norm", INNER)]);
        }
        for (name, width) in norms {
            let name = format!("model.layers.{layer}.{name}.weight");
            all.push((name, Dtype::F32, vec![width], floats(&mut random, width, 0.5)));
        }
        for (name, rows, columns) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", HIDDEN / 2, HIDDEN),
            ("self_attn.v_proj", HIDDEN / 2, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ] {
            let name = format!("model.layers.{layer}.{name}.weight");
            let code = |random: &mut Random| (0..4).fold(0, |byte, _| byte << 2 | random.below(3) as u8);
            let codes = (0..rows * columns / 4).map(|_| code(&mut random)).collect();
            all.push((name.clone(), Dtype::U8, vec![rows / 4, columns], codes));
            let scale = if family == "bitnet" { 0.07_f32 } else { 13.0 };
            all.push((format!("{name}_scale"), Dtype::F32, vec![1], scale.to_le_bytes().to_vec()));
        }
    }
    let views = all.iter().map(|(name, dtype, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A packed model and the same as a GGUF file.
fn pair(family: &str) -> (tempfile::TempDir, Writer) {
    let dir = tempfile::tempdir().unwrap();
    packed(dir.path(), family);
    let writer = convert(dir.path(), family == "llama");
    (dir, writer)
}

fn logits(dir: &Path) -> Vec<f32> {
    let model = Model::load(dir, &LoadOptions::default()).unwrap();
    let tokens: Vec<u32> = (0..24).map(|i| (i * 29 + 3) % model.config().vocab_size as u32).collect();
    let mut cache = model.new_cache(tokens.len());
    let mut steps = [Step::new(&mut cache, &tokens, Want::All)];
    model.forward(&mut steps).unwrap();
    let [step] = steps;
    step.logits
}

#[test]
fn i2_s_files_give_the_logits_of_the_packed_safetensors() {
    let (dir, writer) = pair("bitnet");
    let gguf = tempfile::tempdir().unwrap();
    writer.save(gguf.path());
    assert_eq!(logits(gguf.path()), logits(dir.path()), "bit for bit");
    let (found, expected) = (ModelConfig::load(gguf.path()).unwrap(), ModelConfig::load(dir.path()).unwrap());
    assert_eq!((found.context, found.linear, found.tied), (expected.context, expected.linear, expected.tied));
}

#[test]
fn f16_llama_files_give_the_logits_of_the_shards() {
    for name in ["llama-fp16", "llama-tied-bf16"] {
        let dir = tempfile::tempdir().unwrap();
        convert(&fixture(name), true).save(dir.path());
        assert_eq!(logits(dir.path()), logits(&fixture(name)), "{name}: bit for bit");
    }
}

#[test]
fn i2_s_llama_files_give_nearly_the_logits_of_the_divided_class() {
    let (dir, writer) = pair("llama");
    let gguf = tempfile::tempdir().unwrap();
    writer.save(gguf.path());
    let (found, expected) = (logits(gguf.path()), logits(dir.path()));
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    // The scale's reciprocal is rounded once more, which can turn an activation that lies on a half.
    let cosine = product(&found, &expected) / (product(&found, &found) * product(&expected, &expected)).sqrt();
    assert!(cosine > 0.999, "{cosine}");
}

fn refusal(writer: &Writer) -> String {
    let dir = tempfile::tempdir().unwrap();
    writer.save(dir.path());
    let error = Model::load(dir.path(), &LoadOptions::default()).expect_err("it must be refused");
    error.to_string()
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let (_dir, whole) = pair("bitnet");
    let with = |change: &dyn Fn(&mut Writer)| {
        let mut writer = whole.clone();
        change(&mut writer);
        refusal(&writer)
    };
    let kind = |kind: u32| with(&|w| w.tensors.iter_mut().find(|t| t.0 == "blk.0.attn_q.weight").unwrap().2 = kind);
    assert!(kind(35).contains("TQ2_0"), "{}", kind(35));
    assert!(kind(2).contains("Q4_0") && kind(39).contains("TL2"));
    let architecture = with(&|w| w.values[0].2 = text("gemma3"));
    assert!(architecture.contains("general.architecture") && architecture.contains("gemma3"), "{architecture}");
    let missing = with(&|w| w.tensors.retain(|t| t.0 != "blk.1.ffn_up.weight"));
    assert!(missing.contains("blk.1.ffn_up.weight") && missing.contains("missing"), "{missing}");
    let extra = with(&|w| w.tensor("rope_freqs.weight", &[1, 4], 0, vec![0; 16]));
    assert!(extra.contains("rope_freqs.weight") && extra.contains("not part"), "{extra}");
    let scaled = with(&|w| w.text("bitnet-b1.58.rope.scaling.type", "yarn"));
    assert!(scaled.contains("rope.scaling.type"), "{scaled}");
    let code = with(&|w| w.tensors.iter_mut().find(|t| t.0 == "blk.0.attn_q.weight").unwrap().3[7] = 0xff);
    assert!(code.contains("code 3"), "{code}");
    let scale = with(&|w| {
        let bytes = &mut w.tensors.iter_mut().find(|t| t.0 == "blk.0.attn_q.weight").unwrap().3;
        let at = bytes.len() - 32;
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert!(scale.contains("finite"), "{scale}");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.gguf"), "").unwrap();
    fs::write(dir.path().join("b.gguf"), "").unwrap();
    let several = Model::load(dir.path(), &LoadOptions::default()).unwrap_err();
    assert!(several.to_string().contains("2 GGUF files"), "{several}");
}

#[test]
fn a_cut_file_is_refused_wherever_it_is_cut() {
    let bytes = pair("bitnet").1.bytes();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut random = Random::from_seed(2);
    let cuts = (0..40).map(|n| n * 3 + 1).chain((0..60).map(|_| random.below(bytes.len() - 64)));
    for cut in cuts {
        fs::write(&path, &bytes[..cut]).unwrap();
        assert!(Model::load(dir.path(), &LoadOptions::default()).is_err(), "cut at {cut}");
    }
}

#[test]
fn damaged_headers_end_in_an_error_or_in_another_model_and_never_in_a_panic() {
    let (_model, writer) = pair("bitnet");
    let bytes = writer.bytes();
    let header = bytes.len() - writer.tensors.iter().map(|t| t.3.len().next_multiple_of(32)).sum::<usize>();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut random = Random::from_seed(3);
    let mut refused = 0;
    for _ in 0..400 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(header);
            // Large counts and lengths are what a reader would allocate by.
            match random.below(3) {
                0 => damaged[at] = random.bits() as u8,
                1 => damaged[at..(at + 8).min(header)].fill(0xff),
                _ => damaged[at] ^= 1 << random.below(8),
            }
        }
        fs::write(&path, damaged).unwrap();
        refused += u32::from(Model::load(dir.path(), &LoadOptions::default()).is_err());
    }
    assert!(refused > 200, "{refused} of 400");
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused_before_memory_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let list = |kind: u32| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(text("k"));
        bytes.extend(9_u32.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend((u64::MAX >> 1).to_le_bytes());
        bytes
    };
    let mut tensors = b"GGUF\x03\0\0\0".to_vec();
    tensors.extend(u64::MAX.to_le_bytes());
    tensors.extend(0_u64.to_le_bytes());
    for bytes in [list(8), list(4), list(0), tensors, b"GGUF".to_vec(), b"GGML\x03\0\0\0".to_vec()] {
        fs::write(dir.path().join("model.gguf"), bytes).unwrap();
        let error = Model::load(dir.path(), &LoadOptions::default()).unwrap_err();
        assert!(matches!(error, LoadError::Gguf { .. }), "{error}");
    }
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    // Thousands of layers in one place: a small file that would become a model of any size.
    let (_model, writer) = pair("bitnet");
    let mut bytes = writer.bytes();
    let name = text("blk.1.attn_norm.weight");
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 8 + 4;
    bytes[at..at + 8].fill(0);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.gguf"), bytes).unwrap();
    let error = Model::load(dir.path(), &LoadOptions::default()).unwrap_err();
    let LoadError::Gguf { problem, .. } = &error else { panic!("{error}") };
    assert!(problem.contains("blk.1.attn_norm.weight") && problem.contains("inside"), "{problem}");
}

#[test]
fn a_wrong_shape_is_named() {
    let (_model, mut writer) = pair("bitnet");
    writer.tensors.iter_mut().find(|t| t.0 == "blk.0.attn_norm.weight").unwrap().1 = vec![3];
    let dir = tempfile::tempdir().unwrap();
    writer.save(dir.path());
    let error = Model::load(dir.path(), &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, LoadError::Tensor { fault: TensorFault::Shape { .. }, .. }), "{error}");
}

#[test]
fn the_carried_tokenizer_and_template_are_used_unless_files_lie_beside() {
    let (model, mut writer) = pair("bitnet");
    let vocabulary = ModelConfig::load(model.path()).unwrap().vocab_size;
    let mut tokens: Vec<String> = ["a", "b", "ab", "<eos>", "Ġ", "<s>"].map(str::to_owned).to_vec();
    tokens.extend((tokens.len()..vocabulary).map(|n| format!("unused{n}")));
    let kinds: Vec<u8> =
        (0..vocabulary).flat_map(|id| if id == 3 || id == 5 { 3_i32 } else { 1 }.to_le_bytes()).collect();
    writer.text("tokenizer.ggml.model", "gpt2");
    writer.text("tokenizer.ggml.pre", "llama-bpe");
    writer.texts("tokenizer.ggml.tokens", &tokens);
    writer.texts("tokenizer.ggml.merges", &["a b".to_owned()]);
    let count = (vocabulary as u64).to_le_bytes();
    writer.values.push((
        "tokenizer.ggml.token_type".to_owned(),
        9,
        [&5_u32.to_le_bytes()[..], &count, &kinds].concat(),
    ));
    writer.number("tokenizer.ggml.eos_token_id", 3);
    writer.number("tokenizer.ggml.bos_token_id", 5);
    writer.values.push(("tokenizer.ggml.add_bos_token".to_owned(), 7, vec![1]));
    writer.text("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}");
    let dir = tempfile::tempdir().unwrap();
    writer.save(dir.path());
    let carried = Text::load(dir.path()).unwrap();
    assert_eq!(carried.encode("ab a<eos>").unwrap(), [5, 2, 4, 0, 3]);
    assert_eq!(carried.decode(&[5, 2, 4, 0]).unwrap(), "ab a");
    let message = inference_worker::model::ChatMessage { role: "user".to_owned(), content: "b".to_owned() };
    assert_eq!(carried.chat(&[message], true).unwrap(), "<s>b");
    assert_eq!(ModelConfig::load(dir.path()).unwrap().eos, [3]);
    writer.values.iter_mut().find(|v| v.0 == "tokenizer.ggml.model").unwrap().2 = text("llama");
    writer.save(dir.path());
    let refused = Text::load(dir.path()).err().unwrap().to_string();
    assert!(refused.contains("tokenizer.ggml.model") && refused.contains("tokenizer.json"), "{refused}");
}
