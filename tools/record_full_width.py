#!/usr/bin/env python3
"""Records what mlx-lm computes for the two-layer model of Qwen3-8B's full width that bench/full_size_model.cpp writes
(--layers 2 --vocabulary 2048 --no-gguf), into tests/data/full_width.json for tools/check_full_width.py.

Needs mlx-lm, which the tests do not: pip install 'mlx[cpu]==0.32.4' mlx-lm==0.32.2. Every parameter is cast to float32.
"""

import argparse
import json
from pathlib import Path

import mlx.core as mx
import mlx_lm
from mlx_lm.utils import load_model

TOKENS = [1, 5, 77, 200, 1999, 1024, 3, 8, 512, 600, 700, 800, 2047, 0, 900, 31]
EVERY = 32  # columns of the logits that are kept


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    model, _ = load_model(arguments.folder)
    model.set_dtype(mx.float32)
    logits = model(mx.array([TOKENS]))[0]
    kept = [[round(value, 6) for value in row] for row in logits[:, ::EVERY].tolist()]
    document = {"made_with": f"mlx-lm {mlx_lm.__version__}, mlx {mx.__version__}, float32", "tokens": TOKENS, "every": EVERY,
                "largest": logits.argmax(axis=1).tolist(), "deviation": float(logits.std()), "logits": kept}
    arguments.out.write_text(json.dumps(document) + "\n")
    print(f"{logits.shape}, deviation {document['deviation']:.3f}")


if __name__ == "__main__":
    main()
