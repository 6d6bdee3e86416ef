"""A random model of the 2B-4T shape as llama.cpp reads it, to time it beside `inference-worker bench --shape 2b-4t`.

Layers are TQ2_0, the tied head is f16: 1,194 MB per token, where ours reads 1,178. llama.cpp's architecture `bitnet` has SiLU
instead of the squared ReLU: same shapes, same bytes.

    pip install gguf numpy
    python3 llama_cpp_model.py model.gguf
    llama-bench -m model.gguf -t 1,2 -p 128 -n 32
"""

import sys

import gguf
import numpy as np

LAYERS, WIDTH, INNER, HEADS, KV_HEADS, VOCABULARY = 30, 2560, 6912, 20, 5, 128256
# Weights of a block, and its bytes: 2 bits each, then a scale in half precision.
BLOCK, BLOCK_BYTES = 256, 66

random = np.random.default_rng(1)
model = gguf.GGUFWriter(sys.argv[1], "bitnet")


def ternary(name, rows, columns):
    codes = random.integers(0, 3, size=(rows * columns // BLOCK, BLOCK // 4, 4), dtype=np.uint8)
    blocks = np.empty((len(codes), BLOCK_BYTES), np.uint8)
    blocks[:, :64] = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
    blocks[:, 64:] = np.frombuffer(np.float16(0.02).tobytes(), np.uint8)
    model.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.TQ2_0)


def ones(name, width):
    model.add_tensor(name, np.ones(width, np.float32))


model.add_context_length(4096)
model.add_embedding_length(WIDTH)
model.add_block_count(LAYERS)
model.add_feed_forward_length(INNER)
model.add_head_count(HEADS)
model.add_head_count_kv(KV_HEADS)
model.add_layer_norm_rms_eps(1e-5)
model.add_rope_freq_base(500000.0)
model.add_rope_dimension_count(WIDTH // HEADS)
model.add_vocab_size(VOCABULARY)
model.add_tokenizer_model("gpt2")
model.add_tokenizer_pre("llama-bpe")
model.add_token_list([f"t{i}" for i in range(VOCABULARY)])
model.add_token_types([1] * VOCABULARY)
model.add_token_merges(["t 1"])
model.add_bos_token_id(0)
model.add_eos_token_id(1)

model.add_tensor("token_embd.weight", (random.standard_normal((VOCABULARY, WIDTH), dtype=np.float32) * 0.02).astype(np.float16))
ones("output_norm.weight", WIDTH)
kv_width = WIDTH // HEADS * KV_HEADS
for layer in range(LAYERS):
    at = f"blk.{layer}."
    for norm, width in [("attn_norm", WIDTH), ("ffn_norm", WIDTH), ("attn_sub_norm", WIDTH), ("ffn_sub_norm", INNER)]:
        ones(f"{at}{norm}.weight", width)
    ternary(f"{at}attn_q.weight", WIDTH, WIDTH)
    ternary(f"{at}attn_k.weight", kv_width, WIDTH)
    ternary(f"{at}attn_v.weight", kv_width, WIDTH)
    ternary(f"{at}attn_output.weight", WIDTH, WIDTH)
    ternary(f"{at}ffn_gate.weight", INNER, WIDTH)
    ternary(f"{at}ffn_up.weight", INNER, WIDTH)
    ternary(f"{at}ffn_down.weight", WIDTH, INNER)

model.write_header_to_file()
model.write_kv_data_to_file()
model.write_tensors_to_file()
model.close()
