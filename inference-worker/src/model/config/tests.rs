use super::*;
use serde_json::{Value, json};
use std::fs;

fn base(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
        "max_position_embeddings": 128, "eos_token_id": 3, "bos_token_id": 1
    })
}

fn load(value: &Value) -> Result<ModelConfig, LoadError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), value.to_string()).unwrap();
    ModelConfig::load(dir.path())
}

fn with(model_type: &str, changes: &Value) -> Value {
    let mut value = base(model_type);
    for (key, change) in changes.as_object().unwrap() {
        value[key] = change.clone();
    }
    value
}

#[test]
fn every_generation_of_quantisation_config_is_read_as_the_table_says() {
    use LinearKind::{Dense, Online, Packed};
    use ScaleRule::{Divide, Multiply};
    let cases = [
        ("bitnet", json!(null), Dense),
        ("bitnet", json!({"quant_method": "none"}), Dense),
        ("bitnet", json!({"quant_method": "bitnet", "offline_quantization": true}), Packed(Multiply)),
        ("llama", json!({"quant_method": "bitnet", "offline_quantization": true}), Packed(Divide)),
        (
            "bitnet",
            json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}),
            Packed(Multiply),
        ),
        (
            "bitnet",
            json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}),
            Online,
        ),
        ("llama", json!({"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}), Packed(Divide)),
        ("llama", json!({"quant_method": "bitnet", "linear_class": "bitlinear"}), Packed(Divide)),
        ("llama", json!(null), Dense),
    ];
    for (model_type, quantization, expected) in cases {
        let config = load(&with(model_type, &json!({"quantization_config": quantization}))).unwrap();
        assert_eq!(config.linear, expected, "{model_type} {quantization}");
    }
}

#[test]
fn defaults_differ_by_family() {
    let bitnet = load(&base("bitnet")).unwrap();
    assert_eq!((bitnet.rope_theta, bitnet.rms_eps, bitnet.activation), (500_000.0, 1e-5, Activation::Relu2));
    assert!(bitnet.sub_norms && !bitnet.tied);
    let llama = load(&base("llama")).unwrap();
    assert_eq!((llama.rope_theta, llama.rms_eps, llama.activation), (10_000.0, 1e-6, Activation::Silu));
    assert!(!llama.sub_norms);
    assert_eq!((llama.head_dim, llama.eos, llama.bos), (8, vec![3], Some(1)));
}

#[test]
fn both_spellings_of_the_rope_base_are_read() {
    assert_eq!(load(&with("llama", &json!({"rope_theta": 5e5}))).unwrap().rope_theta, 5e5);
    let new = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}});
    assert_eq!(load(&with("llama", &new)).unwrap().rope_theta, 7e5);
}

#[test]
fn a_refusal_names_the_field() {
    let cases = [
        (json!({"model_type": "gpt2"}), "model_type"),
        (json!({"model_type": null}), "model_type"),
        (json!({"hidden_size": 0}), "hidden_size"),
        (json!({"hidden_size": 1_u64 << 60}), "hidden_size"),
        (json!({"hidden_size": 33}), "hidden_size"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"num_key_value_heads": null, "model_type": "bitnet"}), "num_key_value_heads"),
        (json!({"head_dim": 7}), "head_dim"),
        (json!({"hidden_act": "gelu"}), "hidden_act"),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps"),
        (json!({"rope_theta": -1.0}), "rope_theta"),
        (json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}), "rope_scaling.rope_type"),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor"),
        (json!({"rope_parameters": {"rope_type": "linear", "factor": 0.0}}), "rope_parameters.factor"),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}}),
            "rope_scaling.high_freq_factor",
        ),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"eos_token_id": [1, 64]}), "eos_token_id"),
        (json!({"max_position_embeddings": null}), "max_position_embeddings"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "quantization_config.quant_method"),
        (json!({"quantization_config": {}}), "quantization_config.quant_method"),
        (
            json!({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": true}}),
            "quantization_config.use_rms_norm",
        ),
        (
            json!({"quantization_config": {"quant_method": "bitnet", "linear_class": "x"}}),
            "quantization_config.linear_class",
        ),
        (
            json!({"quantization_config": {"quant_method": "bitnet", "quantization_mode": "online"}}),
            "quantization_config.quantization_mode",
        ),
        (
            json!({"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["model.layers.0"]}}),
            "quantization_config.modules_to_not_convert",
        ),
        (
            json!({"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["model.layers.2.mlp.down_proj"]}}),
            "quantization_config.modules_to_not_convert",
        ),
        (
            json!({"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["model.layers.0.mlp.up_proj"]}}),
            "quantization_config.modules_to_not_convert",
        ),
    ];
    for (changes, expected) in cases {
        match load(&with("llama", &changes)) {
            Err(LoadError::Config { field, .. }) => assert_eq!(field, expected, "{changes}"),
            other => panic!("{changes}: {other:?}"),
        }
    }
    assert!(matches!(load(&with("llama", &json!({"hidden_size": "wide"}))), Err(LoadError::Json { .. })));
}

#[test]
fn layers_that_stay_plain_are_listed_in_full() {
    let plain = ["lm_head", "model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj.weight"];
    let quantization = json!({"quant_method": "bitnet", "modules_to_not_convert": plain});
    let config = load(&with("llama", &json!({"quantization_config": quantization}))).unwrap();
    assert!(config.precisions.values().all(|precision| *precision == LayerPrecision::Full));
    let names: Vec<&str> = config.precisions.keys().map(String::as_str).collect();
    assert_eq!(names, ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"]);
}

#[test]
fn layers_have_precisions_of_their_own_and_activations_bits() {
    let quantization = json!({
        "quant_method": "bitnet", "activation_bits": 4, "kv_bits": 3,
        "precisions": {"model.layers.0.mlp.up_proj": "binary", "model.layers.1.self_attn.o_proj": "int8"}
    });
    let config = load(&with("bitnet", &json!({"quantization_config": quantization}))).unwrap();
    assert_eq!((config.input_bits, config.kv_bits), (ActivationBits::Four, KvBits::Three));
    assert_eq!(config.precisions["model.layers.0.mlp.up_proj"], LayerPrecision::Binary);
    assert_eq!(config.precisions["model.layers.1.self_attn.o_proj"], LayerPrecision::Int8);
    let plain = load(&base("bitnet")).unwrap();
    assert_eq!((plain.input_bits, plain.kv_bits), (ActivationBits::Eight, KvBits::ThirtyTwo));
    let refused = [
        json!({"quant_method": "bitnet", "activation_bits": 5}),
        json!({"quant_method": "bitnet", "kv_bits": 2}),
        json!({"quant_method": "none", "kv_bits": 32}),
        json!({"quant_method": "bitnet", "precisions": {"model.layers.2.mlp.up_proj": "int4"}}),
        json!({"quant_method": "bitnet", "precisions": {"model.layers.0.mlp.up_proj": "full"}}),
        json!({"quant_method": "none", "precisions": {"model.layers.0.mlp.up_proj": "int4"}}),
        json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online",
               "precisions": {"model.layers.0.mlp.up_proj": "binary"}}),
    ];
    for quantization in refused {
        let result = load(&with("bitnet", &json!({"quantization_config": quantization})));
        assert!(matches!(result, Err(LoadError::Config { .. })), "{quantization}");
    }
    let unknown = json!({"quant_method": "bitnet", "precisions": {"model.layers.0.mlp.up_proj": "int2"}});
    let result = load(&with("bitnet", &json!({"quantization_config": unknown})));
    assert!(matches!(result, Err(LoadError::Json { .. })), "{result:?}");
}

#[test]
fn generation_config_wins_for_eos() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), base("bitnet").to_string()).unwrap();
    fs::write(dir.path().join("generation_config.json"), json!({"eos_token_id": [9, 5]}).to_string()).unwrap();
    assert_eq!(ModelConfig::load(dir.path()).unwrap().eos, [5, 9]);
}
