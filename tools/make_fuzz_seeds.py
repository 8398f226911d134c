#!/usr/bin/env python3
"""Writes small valid files for the fuzzers to start from: FOLDER/NAME/*, one folder per fuzz/NAME_fuzz.cpp."""

import json
import struct
import sys
from pathlib import Path

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def gguf_string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(kind, value):
    if kind == STRING:
        return gguf_string(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(gguf_value(inner, item) for item in items)
    return struct.pack({U32: "<I", F32: "<f", BOOL: "<?", U64: "<Q"}[kind], value)


def gguf(version, metadata, tensors, alignment=32):
    """tensors: (name, dimensions, type number, data)."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)))
    for key, kind, value in metadata:
        out += gguf_string(key) + struct.pack("<I", kind) + gguf_value(kind, value)
    data = bytearray()
    for name, dimensions, number, content in tensors:
        out += gguf_string(name) + struct.pack("<I", len(dimensions))
        out += b"".join(struct.pack("<Q", d) for d in dimensions)
        out += struct.pack("<IQ", number, len(data))
        data += content + bytes(-len(content) % alignment)
    return bytes(out + bytes(-len(out) % alignment) + data)


def gguf_seeds():
    metadata = [
        ("general.architecture", STRING, "llama"),
        ("general.alignment", U32, 32),
        ("llama.block_count", U32, 1),
        ("llama.embedding_length", U32, 32),
        ("llama.attention.head_count", U32, 2),
        ("llama.rope.freq_base", F32, 10000.0),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b", "ab", "\u0120a"])),
        ("tokenizer.ggml.merges", ARRAY, (STRING, ["a b"])),
        ("tokenizer.ggml.token_type", ARRAY, (5, [])),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        ("general.size", U64, 1 << 40),
    ]
    tensors = [
        ("token_embd.weight", (32, 4), 0, bytes(32 * 4 * 4)),
        ("blk.0.attn_q.weight", (32, 4), 3, bytes(20 * 4)),  # Q4_1
        ("blk.0.attn_k.weight", (32, 4), 8, bytes(34 * 4)),  # Q8_0
        ("output_norm.weight", (32,), 1, bytes(64)),  # F16
    ]
    yield "whole.gguf", gguf(3, metadata, tensors)
    yield "version2.gguf", gguf(2, metadata[:3], tensors[:1])
    yield "empty.gguf", gguf(3, [], [])
    # Hostile: a count and a length far past the end.
    yield "counts.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60)
    yield "string.gguf", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, (1 << 64) - 1)


def safetensors(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors_seeds():
    tensors = {
        "__metadata__": {"format": "pt"},
        "model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "model.q.weight": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [16, 32]},
        "model.q.scales": {"dtype": "F16", "shape": [2, 1], "data_offsets": [32, 36]},
        "model.codes": {"dtype": "U32", "shape": [1], "data_offsets": [36, 40]},
    }
    yield "whole.safetensors", safetensors(tensors, bytes(40))
    yield "none.safetensors", safetensors({}, b"")
    yield "overlap.safetensors", safetensors(
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
         "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12))
    yield "overflow.safetensors", safetensors(
        {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}, bytes(4))
    yield "length.safetensors", struct.pack("<Q", 1 << 62) + b"{}"


def jinja_seeds():
    yield "chatml.jinja", (
        b"{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
        b"'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
    yield "macro.jinja", (
        b"{%- macro show(x, y=1) -%}{{ x | trim | upper }}{{ y }}{%- endmacro -%}"
        b"{%- set ns = namespace(found=false) -%}{%- for m in messages[::-1] -%}"
        b"{%- if not ns.found and m.content is string and m.content.startswith('a') -%}"
        b"{%- set ns.found = true -%}{{ show(m.content, y=loop.index0) }}{%- elif loop.last -%}-{%- endif -%}"
        b"{%- else -%}none{%- endfor -%}")
    yield "tools.jinja", (
        b"{%- if tools %}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{% endif -%}"
        b"{{ messages[0]['content'].split('</think>')[-1].lstrip('\\n') if messages else raise_exception('empty') }}"
        b"{# note #}{{ 1 + 2 * 3 // 2 % 5 ~ 'x' }}{{ (a is defined) and b in [1, 'two', {'k': none}] }}")
    yield "markup.jinja", (b"{{ '<'|safe + messages[0].content * 2 }}{{ {1: 'a', true: 'b', 'c': 2} | tojson(true, 2) }}"
                           b"{{ {1: 2}[1] }}{{ none | select | map('e') | list }}")
    yield "deep.jinja", b"{{ " + b"(" * 60 + b"1" + b")" * 60 + b" }}"


def tokenizer_seeds():
    def document(**changes):
        return {
            "version": "1.0",
            "added_tokens": [{"id": 4, "content": "<|end|>", "special": True, "single_word": False, "lstrip": False,
                              "rstrip": False, "normalized": False}],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}|\s+"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]},
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3}, "merges": ["a b"]},
            **changes,
        }

    yield "whole.json", json.dumps(document()).encode()
    yield "pairs.json", json.dumps(document(
        normalizer=None, model={"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]})).encode()
    yield "pattern.json", json.dumps(document(pre_tokenizer={
        "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": True})).encode()
    yield "merge.json", json.dumps(document(
        model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a z", ""]})).encode()
    vocab = {token: id for id, token in enumerate(["<unk>", "\u2581", "a", "\u2581a", "<|end|>", "<0x0A>"])}
    model = {"type": "BPE", "byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>", "vocab": vocab,
             "merges": ["\u2581 a"]}
    decoder = {"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    yield "sentencepiece.json", json.dumps(document(model=model, pre_tokenizer=None, decoder=decoder, normalizer={
        "type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {
            "type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]})).encode()
    yield "metaspace.json", json.dumps(document(model=model, normalizer=None, decoder={"type": "Metaspace"}, pre_tokenizer={
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True})).encode()


def npy_seeds():
    def npy(header, data, major=1):
        text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
        return b"\x93NUMPY" + bytes([major, 0]) + struct.pack("<H" if major == 1 else "<I", len(text)) + text + data

    yield "f32.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", bytes(24))
    yield "i64.npy", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }", bytes(16), 2)
    yield "huge.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }", b"")


def config_seeds():
    yield "llama.json", json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 128,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        "quantization": {"group_size": 64, "bits": 4}, "eos_token_id": [1, 2]}).encode()


def session_seeds():
    yield "header.session", json.dumps({
        "model": "0123456789abcdef", "indexer": "", "cache": "full", "kv_type": "f16", "index_type": "", "layers": 2,
        "kv_heads": 2, "head_dim": 4, "index_heads": 0, "index_dim": 0, "sets": 1, "budgets": [], "positions": 5}).encode()
    # As session_fuzz.cpp reads them: types, tokens, then two layers of rows and index keys.
    layer = bytes(5 * 32) + 2 * (bytes(range(64)) + bytes(5 * 4))
    yield "full.session", b"\0\5" + 2 * layer
    positions = struct.pack("<5i", 0, 3, 1, 2, 4)
    yield "fixed.session", b"\0\5" + 2 * (struct.pack("<Q", 5) + 2 * positions + layer)


SEEDS = {"gguf": gguf_seeds, "safetensors": safetensors_seeds, "jinja": jinja_seeds, "chat_template": jinja_seeds,
         "tokenizer_json": tokenizer_seeds, "tokenizer": tokenizer_seeds, "npy": npy_seeds, "config": config_seeds,
         "session": session_seeds}


def main():
    if len(sys.argv) != 2:
        print("usage: make_fuzz_seeds.py FOLDER", file=sys.stderr)
        return 2
    for name, seeds in SEEDS.items():
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        for filename, content in seeds():
            (folder / filename).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
