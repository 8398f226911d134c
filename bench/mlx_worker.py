#!/usr/bin/env python3
"""Runs mlx-lm on the CPU once over a prompt of token ids and prints one JSON object. Started by full_size.py inside
an environment of its own.

Activations are float32: on a CPU of x86-64 its quantised products are 8 times as fast there as in the bfloat16 of
the model's own config, and 35 times as fast as in float16.
"""

import json
import sys
import time
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model


def peak_rss():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def main():
    folder, tokens, decode_tokens = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    mx.set_default_device(mx.cpu)
    start = time.monotonic()
    model, config = load_model(folder)
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    load = time.monotonic() - start
    cache = make_prompt_cache(model)

    def forward(ids):
        """The likeliest next token [1, 1] after ids [1, tokens], and the seconds it took."""
        begin = time.monotonic()
        following = mx.argmax(model(ids, cache=cache)[:, -1:], axis=-1)
        mx.eval(following)
        return following, time.monotonic() - begin

    following, prefill = forward(mx.array([[i * 7919 % config["vocab_size"] for i in range(tokens)]]))
    decode = 0.0
    for _ in range(decode_tokens):
        following, seconds = forward(following)
        decode += seconds
    print(json.dumps({"load_seconds": load, "prefill_tokens_per_second": tokens / prefill,
                      "decode_tokens_per_second": decode_tokens / decode, "peak_rss_bytes": peak_rss()}))


if __name__ == "__main__":
    main()
