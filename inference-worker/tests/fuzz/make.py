"""Makes the model beside the targets and their seeds: python3 make.py (standard library only)."""

import json
import pathlib
import random
import struct

HERE = pathlib.Path(__file__).parent
random.seed(1)


def f16(count, low=-1.0, high=1.0):
    return b"".join(struct.pack("<e", random.uniform(low, high)) for _ in range(count))


def safetensors(tensors):
    """`(name, dtype, shape, bytes)` as a file."""
    header, data = {}, b""
    for name, dtype, shape, raw in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def layers(hidden, inner, kv):
    yield from [("self_attn.q_proj", hidden, hidden), ("self_attn.k_proj", kv, hidden), ("self_attn.v_proj", kv, hidden)]
    yield from [("self_attn.o_proj", hidden, hidden), ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden)]
    yield ("mlp.down_proj", hidden, inner)


def llama(vocab, hidden, inner, kv):
    yield ("model.embed_tokens.weight", "F16", [vocab, hidden], f16(vocab * hidden))
    yield ("model.norm.weight", "F16", [hidden], f16(hidden, 0.5, 1.5))
    for norm in ["input_layernorm", "post_attention_layernorm"]:
        yield (f"model.layers.0.{norm}.weight", "F16", [hidden], f16(hidden, 0.5, 1.5))
    for name, rows, columns in layers(hidden, inner, kv):
        yield (f"model.layers.0.{name}.weight", "F16", [rows, columns], f16(rows * columns))


def bitnet(vocab, hidden, inner, kv):
    yield from (t for t in llama(vocab, hidden, inner, kv) if "_proj" not in t[0])
    for norm, width in [("self_attn.attn_sub_norm", hidden), ("mlp.ffn_sub_norm", inner)]:
        yield (f"model.layers.0.{norm}.weight", "F16", [width], f16(width, 0.5, 1.5))
    for name, rows, columns in layers(hidden, inner, kv):
        codes = bytes(sum(random.randrange(3) << 2 * i for i in range(4)) for _ in range(rows * columns // 4))
        yield (f"model.layers.0.{name}.weight", "U8", [rows // 4, columns], codes)
        yield (f"model.layers.0.{name}.weight_scale", "F32", [1], struct.pack("<f", 0.5))


def config(family, vocab, hidden, inner, heads, kv_heads):
    made = {
        "model_type": family, "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64, "tie_word_embeddings": True, "eos_token_id": 256 if vocab > 256 else 2,
    }
    if family == "bitnet":
        made["quantization_config"] = {
            "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
        }
    return made


def byte_character(byte):
    """GPT-2's printable stand-in."""
    printable = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return chr(byte) if byte in printable else chr(256 + others.index(byte))


def tokenizer():
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 256, "content": "<eos>", "special": True, "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False}],
        "pre_tokenizer": bytewise, "decoder": bytewise,
        "model": {"type": "BPE", "vocab": {byte_character(b): b for b in range(256)}, "merges": []},
    }


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(architecture, vocab, hidden, inner, heads, kv_heads, kind):
    """Ternary matrices as I2_S (kind 36), or F16 (kind 1)."""
    key = lambda name: f"{architecture}.{name}"
    numbers = {
        "context_length": 64, "embedding_length": hidden, "block_count": 1, "feed_forward_length": inner,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "rope.dimension_count": hidden // heads,
    }
    values = [("general.architecture", 8, text(architecture))]
    values += [(key(name), 4, struct.pack("<I", n)) for name, n in numbers.items()]
    values += [(key("attention.layer_norm_rms_epsilon"), 6, struct.pack("<f", 1e-5))]
    texts = lambda list: struct.pack("<IQ", 8, len(list)) + b"".join(map(text, list))
    tokens = ["a", "b", "ab", "<eos>"] + [f"t{n}" for n in range(4, vocab)]
    kinds = struct.pack("<IQ", 5, vocab) + b"".join(struct.pack("<i", 3 if n == 3 else 1) for n in range(vocab))
    values += [
        ("tokenizer.ggml.model", 8, text("gpt2")), ("tokenizer.ggml.pre", 8, text("llama-bpe")),
        ("tokenizer.ggml.tokens", 9, texts(tokens)), ("tokenizer.ggml.merges", 9, texts(["a b"])),
        ("tokenizer.ggml.token_type", 9, kinds), ("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 3)),
        ("tokenizer.chat_template", 8, text("{{ messages[0].content }}")),
    ]
    kv = hidden // heads * kv_heads
    tensors = [("token_embd.weight", [hidden, vocab], 1, f16(vocab * hidden)),
               ("output_norm.weight", [hidden], 0, struct.pack(f"<{hidden}f", *[1.0] * hidden))]
    norms = [("attn_norm", hidden), ("ffn_norm", hidden)]
    norms += [("attn_sub_norm", hidden), ("ffn_sub_norm", inner)] if architecture != "llama" else []
    tensors += [(f"blk.0.{n}.weight", [w], 0, struct.pack(f"<{w}f", *[1.0] * w)) for n, w in norms]
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    for name, (_, rows, columns) in zip(names, layers(hidden, inner, kv)):
        count = rows * columns
        packed = bytes(sum(random.randrange(3) << 2 * i for i in range(4)) for _ in range(count // 4))
        raw = packed + struct.pack("<f", 0.5) + bytes(28) if kind == 36 else f16(count)
        tensors.append((f"blk.0.{name}.weight", [columns, rows], kind, raw))
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    out += b"".join(text(name) + struct.pack("<I", kind) + raw for name, kind, raw in values)
    data = b""
    for name, shape, kind, raw in tensors:
        out += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
        out += struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    return out + bytes(-len(out) % 32) + data


def write(path, content):
    path = HERE / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


compact = lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False)
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
weights = safetensors(llama(257, 8, 8, 4))
write("model/config.json", compact(config("llama", 257, 8, 8, 2, 1)))
write("model/tokenizer.json", compact(tokenizer()))
write("model/model.safetensors", weights)
write("model/chat_template.jinja", TEMPLATE)
write("corpus/safetensors/llama", weights)
write("corpus/safetensors/tiny", safetensors([("a", "F32", [1], bytes(4))]))
write("corpus/safetensors/bitnet", safetensors(bitnet(8, 8, 8, 4)))
write("corpus/config/llama", compact(config("llama", 257, 8, 8, 2, 1)))
write("corpus/config/bitnet", compact(config("bitnet", 8, 8, 8, 2, 1)))
write("corpus/tokenizer/bytes", compact(tokenizer()))
write("corpus/template/plain", TEMPLATE)
write("corpus/template/loops", "{% for i in range(9) %}{{ i * 2 }}{% endfor %}{{ raise_exception('no') if messages | length > 3 }}")
write("corpus/gguf/llama", gguf("llama", 8, 8, 8, 2, 1, 1))
write("corpus/gguf/bitnet", gguf("bitnet-b1.58", 8, 128, 128, 4, 2, 36))
chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi é"}]}], "max_tokens": 3}
for name, which, body in [
    ("completion", 0, {"prompt": "a b", "max_tokens": 4, "temperature": 0, "logprobs": 2, "n": 2, "seed": 7}),
    ("tokens", 0, {"prompt": [1, 2, 3], "max_tokens": 2, "stop": ["x", "y"], "stop_token_ids": [5], "ignore_eos": True}),
    ("stream", 0, {"prompt": ["one"], "stream": True, "stream_options": {"include_usage": True}, "top_p": 0.5}),
    ("chat", 1, chat), ("chat-logprobs", 1, {**chat, "logprobs": True, "top_logprobs": 3, "top_k": 4, "min_p": 0.1}),
    ("tokenize", 2, {"prompt": "a<eos>b", "add_special_tokens": False}), ("tokenize-chat", 2, chat),
    ("detokenize", 3, {"tokens": [104, 195, 169]}), ("feedback", 4, {"id": "cmpl-x", "value": 0.5}),
]:
    write(f"corpus/http/{name}", bytes([which]) + compact(body).encode())
compare = {"key": "chat-1-2", "uid": "u", "attempt": 1, "tick": 2, "baseline": "chat-aaaaaaaaaa",
           "stable": "chat-bbbbbbbbbb", "probes": 2, "maxTokens": 4, "positions": 2, "pairs": 1, "pairTokens": 2}
shadow = {"uid": "u", "attempt": 1, "baseline": "chat-aaaaaaaaaa", "percent": 5, "maxTokens": 4, "positions": 2,
          "tailMin": 0.9, "seconds": 30}
for name, which, body in [
    ("compare", 0, compare), ("score", 1, {"tokens": [1, 2, 3], "positions": [0, 2]}),
    ("generate", 2, {"prompt": [1, 2], "tokens": 3, "forced": True, "cached": True}), ("shadow", 3, shadow),
    ("background", 1, {"tokens": [7], "positions": [0], "background": True}),
]:
    write(f"corpus/frames/{name}", bytes([which]) + compact(body).encode())
write("corpus/frames/logits", bytes([4]) + f16(16) + b"\xff\x7f\x00\x7c")

# What broke a worker once: each must be refused, or answered.
with_tokenizer = lambda **parts: compact({**tokenizer(), **parts})
replace = lambda pattern, content: {"type": "Replace", "pattern": pattern, "content": content}
steps = lambda step, times: {"type": "Sequence", "normalizers": [step] * times}
special = lambda name, ids: {
    "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [], "special_tokens": {name: {"id": name, "ids": ids, "tokens": ["x"] * len(ids)}} if ids else {}}
for name, parts in [
    ("unknown-special", {"post_processor": special("B", [])}), ("id-outside", {"post_processor": special("A", [999999])}),
    ("replace-empty", {"normalizer": replace({"String": ""}, "aa")}), ("fixed-length-0", {"pre_tokenizer": {"type": "FixedLength", "length": 0}}),
    ("doubled", {"normalizer": steps(replace({"String": "a"}, "aa"), 40)}),
    ("thousandfold", {"normalizer": steps(replace({"String": "a"}, "a" * 1000), 4)}),
    ("grown", {"normalizer": replace({"Regex": "[a-z]"}, "abc")}),
]:
    write(f"corpus/tokenizer/{name}", with_tokenizer(**parts))
nested = "{% set ns=namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x=[ns.x] %}{% endfor %}"
for name, source in [
    ("undefined", "{{ messages[0].nope.x }}"), ("nots", "{{ " + "not " * 900 + "1 }}"), ("signs", "{{ " + "-" * 4000 + "1 }}"),
    ("nested", nested + "{{ ns.x|tojson }}"), ("nested-drop", "{% for j in range(6) %}" + nested + "{% endfor %}ok"),
    ("joined", "{% set ns=namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}"),
    ("shared", "{% set ns=namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x=[ns.x,ns.x] %}{% endfor %}{{ ns.x }}"),
]:
    write(f"corpus/template/{name}", source)
schema = lambda schema: {"prompt": "a", "max_tokens": 2, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
for name, body in [
    ("schema", schema({"type": "object", "properties": {"a": {"enum": ["x", 1]}}})),
    ("schema-range", schema({"type": "integer", "minimum": -1e300, "maximum": 1e300})),
    ("schema-enum", schema({"enum": [f"v{n}" for n in range(500)]})), ("spaces", {"prompt": " " * 30000 + "x", "max_tokens": 1}),
]:
    write(f"corpus/http/{name}", bytes([0]) + compact(body).encode())
answer = {"tokens": [1, 2], "ttft": 0.01, "tpot": 0.001, "alone": True, "busySeconds": 1.5, "process": "p", "nonFinite": 0}
write("corpus/peer/continuation", compact(answer))
write("corpus/peer/times", compact({**answer, "ttft": -5}).replace("0.001", "1e999"))
index = {"metadata": {}, "weight_map": {name: "model.safetensors" for name, *_ in llama(257, 8, 8, 4)}}
for name, which, value in [
    ("index", 0, index), ("index-outside", 0, {"weight_map": {"a": "../model.safetensors"}}),
    ("generation", 1, {"eos_token_id": [256, 3], "temperature": 0.6}),
    ("tokenizer", 2, {"bos_token": "<s>", "eos_token": {"content": "<eos>"}, "chat_template": TEMPLATE}),
    ("templates", 2, {"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": TEMPLATE}]}),
]:
    write(f"corpus/beside/{name}", bytes([which]) + compact(value).encode())
write("corpus/confidence/calibration", compact({"bins": [{"upTo": 0.5, "agreement": 0.25, "positions": 10}, {"upTo": 1, "agreement": 0.9, "positions": 10}]}))
write("corpus/probes/lines", compact({"id": 1, "prompt": "a é"}) + "\n\n" + compact({"messages": [{"role": "user", "content": "b"}]}) + "\n")
