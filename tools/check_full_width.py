#!/usr/bin/env python3
"""A two-layer model of Qwen3-8B's full width (4096 wide, 32 heads on 8 KV heads of 128, 12288 in the MLP, 4-bit groups of
64 in two MLX shards, random weights) against what mlx-lm computes for it (tests/data/full_width.json)."""

import argparse
import array
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests" / "data" / "full_width.json"
TOKENIZER = ROOT / "models" / "qwen2.5-coder-0.5b"


def rows_of(path):
    """The float32 rows of a .npy file of two dimensions."""
    data = path.read_bytes()
    length = int.from_bytes(data[8:10], "little")
    header = data[10:10 + length].decode()
    columns = int(header.split("(")[1].split(")")[0].split(",")[1])
    values = array.array("f", data[10 + length:])
    return [values[i:i + columns] for i in range(0, len(values), columns)]


def logits(keysieve, model, tokens, folder, *options):
    ids = folder / "ids.json"
    ids.write_text(json.dumps(tokens))
    out = folder / "logits.npy"
    subprocess.run([keysieve, "logits", "--model", model, "--tokens", ids, "--out", out, *options], check=True,
                   stdout=subprocess.DEVNULL)
    return rows_of(out)


def compare(rows, recorded):
    """(largest difference at the recorded columns, share of tokens with the same likeliest next one)"""
    every = recorded["every"]
    difference = max(abs(a - b) for row, expected in zip(rows, recorded["logits"]) for a, b in zip(row[::every], expected))
    same = sum(max(range(len(row)), key=row.__getitem__) == largest for row, largest in zip(rows, recorded["largest"]))
    return difference, same / len(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keysieve", type=Path, default=ROOT / "build" / "keysieve")
    parser.add_argument("--maker", type=Path, default=ROOT / "build" / "full_size_model")
    arguments = parser.parse_args()
    tokenizers = list(TOKENIZER.glob("*.gguf"))
    if not tokenizers:
        print("full width: skipped, ./run fetch qwen2.5-coder-0.5b has not brought a tokenizer")
        return 77
    recorded = json.loads(RECORDED.read_text())
    with tempfile.TemporaryDirectory(prefix="keysieve-full-width-") as temporary:
        folder = Path(temporary)
        subprocess.run([arguments.maker, folder, "--tokenizer", tokenizers[0], "--layers", "2", "--vocabulary", "2048",
                        "--no-gguf"], check=True)
        exact = compare(logits(arguments.keysieve, folder / "mlx", recorded["tokens"], folder, "--dequantize", "--kv", "f32"),
                        recorded)
        fast = compare(logits(arguments.keysieve, folder / "mlx", recorded["tokens"], folder), recorded)
    print(f"full width: largest difference in f32 {exact[0]:.2e}, with rounded activations {fast[0]:.2e} "
          f"(deviation of the logits {recorded['deviation']:.2f}); same likeliest token {exact[1]:.0%} and {fast[1]:.0%}")
    # Two float32 programs differ by 1e-5 of the deviation for small models; sums here are 100 times as long.
    fine = exact[0] < 1e-3 * recorded["deviation"] and exact[1] == 1
    # Activations in 8 bits.
    fine &= fast[0] < 0.25 * recorded["deviation"] and fast[1] >= 0.85 and not math.isnan(fast[0])
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
