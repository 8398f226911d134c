#!/usr/bin/env python3
"""The model card's own size: `./run bench full-size [--parts load,memory,speed,decode,long,mlx]`.

Writes a model of Qwen3-8B's shape with random weights (bench/full_size_model.cpp: 36 layers as two MLX shards, an
indexer of 72 million parameters, and a GGUF with the same weights; 10 GB) and measures, on two formats of one model:

load    seconds until the model is ready, and the peak of memory against the files' size
memory  bytes of the KV cache at 4K to 32K, asked of the allocator
speed   prefill and decode beside llama.cpp and ik_llama.cpp (bench/peers.py with --full-size)
decode  after 512, 8,192 and 32,768 tokens in turns, in sessions made longer by repetition (bench/repeat_session.cpp)
long    a 32,000-token prompt through a fixed cache that cuts after each chunk: resident memory on the way
mlx     mlx-lm's CPU build on the same folder and a prompt of 32 tokens, keysieve beside it

What such a model says is noise; the work is that of the real one.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from memory import long_prompt, resident_bytes

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "keysieve"
PARTS = ("load", "memory", "speed", "decode", "long", "mlx")
BUDGET = 2048
DECODE_CONTEXTS = (512, 8192, 32768)
NEEDED_BYTES = 10_200_000_000


def say(text):
    print(f"full-size: {text}", file=sys.stderr, flush=True)


def make_model(folder, tokenizer):
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        sys.exit(f"full-size: {folder} has {free / 1e9:.1f} GB free, {NEEDED_BYTES / 1e9:.1f} are needed; name another with --folder")
    say(f"writing the model to {folder}")
    subprocess.run([ROOT / "build" / "full_size_model", folder, "--tokenizer", tokenizer], check=True)
    (folder / "complete").touch()


def generate(folder, *options):
    command = [PROGRAM, "generate", "--model", folder / "mlx", "--raw", "--ignore-eos", "--json", *options]
    return json.loads(subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout)


def file_bytes(folder):
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def part_load(folder, _):
    files = file_bytes(folder / "mlx") + file_bytes(folder / "indexer")
    for path in (folder / "mlx").glob("*.safetensors"):
        with open(path, "rb") as file:  # into the page cache
            while file.read(1 << 24):
                pass
    runs = [generate(folder, "--indexer", folder / "indexer", "--prompt", "Hello", "--max-tokens", "1") for _ in range(3)]
    seconds = sorted(run["load_seconds"] for run in runs)[1]
    peak = max(run["memory"]["peak_rss_bytes"] for run in runs)
    print(f"load from the page cache: {seconds:.1f} s (median of 3; bar 20)")
    print(f"peak resident memory: {peak / 1e9:.3f} GB, files {files / 1e9:.3f} GB: {100 * peak / files - 100:+.1f}% (bar +10)")


def part_memory(folder, _):
    command = [PROGRAM, "eval", "memory", "--model", folder / "mlx", "--indexer", folder / "indexer", "--budget", str(BUDGET)]
    subprocess.run(list(map(str, command)), check=True)


def part_speed(folder, arguments):
    command = [sys.executable, ROOT / "bench" / "peers.py", "--full-size", "--models", folder / "model-Q4_1.gguf", "--own-model",
               folder / "mlx", "--indexer", folder / "indexer", "--budget", str(BUDGET), "--parts", "table", "--repeats",
               arguments.repeats, "--decode-tokens", "32", "--tune-context", "512", "--output",
               ROOT / "build" / "bench-full-size.json"]
    if arguments.resume:
        command += ["--resume"]
    if arguments.contexts:
        command += ["--contexts", arguments.contexts]
    if arguments.peers:
        command += ["--peers", arguments.peers]
    if arguments.query_block:
        command += ["--query-block", str(arguments.query_block)]
    subprocess.run(list(map(str, command)), check=True)


def part_decode(folder, arguments):
    """What is read is short, since the work of decoding does not depend on what the cache holds."""
    options = ["--indexer", folder / "indexer", "--budget", BUDGET]
    read = folder / "read.session"
    if not read.exists():
        say("reading some 2,200 tokens")
        generate(folder, *options, "--prompt-file", long_prompt(folder, 8_600), "--max-tokens", 1, "--save-session", read)
    vocabulary = json.loads((folder / "mlx" / "config.json").read_text())["vocab_size"]
    sessions = {tokens: folder / f"{tokens}.session" for tokens in DECODE_CONTEXTS}
    speeds = {tokens: [] for tokens in sessions}
    peaks = {}
    try:
        for tokens, session in sessions.items():
            command = [ROOT / "build" / "repeat_session", read, session, tokens, vocabulary]
            subprocess.run(list(map(str, command)), check=True)
        for turn in range(arguments.decode_turns):
            for tokens, session in sessions.items():
                say(f"turn {turn + 1}: {tokens:,} tokens")
                result = generate(folder, *options, "--load-session", session, "--prompt", " and", "--max-tokens", 25)
                speeds[tokens].append(result["decode"]["tokens_per_second"])
                peaks[tokens] = result["memory"]["peak_rss_bytes"]
    finally:  # 6.6 GB
        for session in sessions.values():
            session.unlink(missing_ok=True)
    print(f"decode, K = {BUDGET:,}, medians of {arguments.decode_turns} in turns, 24 tokens each")
    print("| tokens before | tok/s | smallest to largest | share of the first | peak RSS MB |")
    print("|---|---|---|---|---|")
    first = statistics.median(speeds[DECODE_CONTEXTS[0]])
    for tokens, all_of_it in speeds.items():
        middle = statistics.median(all_of_it)
        print(f"| {tokens:,} | {middle:.2f} | {min(all_of_it):.2f} to {max(all_of_it):.2f} | {100 * middle / first:.0f}% | "
              f"{peaks[tokens] / 1e6:,.0f} |")


def part_long(folder, arguments):
    prompt = long_prompt(folder, arguments.long_characters)
    command = [PROGRAM, "generate", "--model", folder / "mlx", "--indexer", folder / "indexer", "--budget", BUDGET, "--cache", "fixed",
               "--prune", "chunk", "--raw", "--prompt-file", prompt, "--ignore-eos", "--max-tokens", "33", "--json"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    output = []
    reader = threading.Thread(target=lambda: output.append(process.stdout.read()))
    reader.start()
    start, samples = time.monotonic(), []
    while reader.is_alive():
        reader.join(5)
        if process.poll() is None:
            samples.append((time.monotonic() - start, resident_bytes(process.pid)))
    if process.wait() != 0:
        sys.exit("full-size: the program failed")
    result = json.loads(output[0])
    print(f"prompt of {result['prefill']['tokens']:,} tokens: {result['prefill']['tokens_per_second']:.1f} tok/s, then "
          f"{result['decode']['tokens_per_second']:.1f} tok/s; KV {result['memory']['kv_hot_bytes'] / 1e6:.0f} MB, "
          f"peak {result['memory']['peak_rss_bytes'] / 1e9:.3f} GB")
    print("seconds  resident GB")
    for seconds, resident in samples[::max(1, len(samples) // 12)]:
        print(f"{seconds:7.0f}  {resident / 1e9:.3f}")


def mlx_python():
    """The interpreter of an environment with mlx-lm, made once: every file that comes is pinned by hash."""
    environment = ROOT / ".cache" / "mlx-venv"
    python, done = environment / "bin" / "python", environment / "installed"
    if not done.exists():
        say("installing mlx-lm (350 MB, once)")
        subprocess.run(["/usr/bin/python3", "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                        "--require-hashes", "-r", ROOT / "bench" / "mlx_lm.txt"], check=True)
        done.touch()
    return python


def part_mlx(folder, _):
    tokens, decode_tokens = 32, 2
    worker = [mlx_python(), ROOT / "bench" / "mlx_worker.py", folder / "mlx", str(tokens), str(decode_tokens)]
    peer = json.loads(subprocess.run(list(map(str, worker)), check=True, capture_output=True, text=True).stdout)
    # A word a token, or nearly: what the prompt says is noise to this model.
    own = generate(folder, "--prompt", " and" * tokens, "--max-tokens", 33)
    print(f"{own['prefill']['tokens']} and {tokens} tokens of prefill, then decode; tokens a second")
    print("| program | prefill | decode | peak RSS MB | load s |")
    print("|---|---|---|---|---|")
    print(f"| keysieve dense | {own['prefill']['tokens_per_second']:.1f} | {own['decode']['tokens_per_second']:.1f} | "
          f"{own['memory']['peak_rss_bytes'] / 1e6:,.0f} | {own['load_seconds']:.1f} |")
    print(f"| mlx-lm, CPU, float32 activations | {peer['prefill_tokens_per_second']:.3f} | "
          f"{peer['decode_tokens_per_second']:.3f} | {peer['peak_rss_bytes'] / 1e6:,.0f} | {peer['load_seconds']:.1f} |")


def main():
    parser = argparse.ArgumentParser(prog="./run bench full-size", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--parts", default=",".join(PARTS), help="what to do (%(default)s)")
    add("--folder", type=Path, default=ROOT / ".cache" / "full-size", help="where the model lies or is written (%(default)s)")
    add("--contexts", help="of the part speed, instead of 512,2048,4096,8192")
    add("--repeats", default="1", help="of the part speed: N,CONTEXT:N,... (%(default)s)")
    add("--peers", help="of the part speed: some of llama.cpp,ik_llama.cpp")
    add("--query-block", type=int, default=0, help="of the part speed: neighbouring queries that choose together (1, the published rule)")
    add("--resume", action="store_true", help="of the part speed: keep the samples of an earlier run, of this program only")
    add("--decode-turns", type=int, default=3, help="of the part decode: samples of each length (%(default)s)")
    add("--long-characters", type=int, default=128_000, help="of text in the part long (%(default)s: about 32,000 tokens)")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    for wrong in set(parts) - set(PARTS):
        parser.error(f"no part '{wrong}'; there are {', '.join(PARTS)}")
    tokenizer, = (ROOT / "models" / "qwen2.5-coder-0.5b").glob("*.gguf")
    make_model(arguments.folder, tokenizer)
    print(f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
    for part in parts:
        say(part)
        {"load": part_load, "memory": part_memory, "speed": part_speed, "decode": part_decode,
         "long": part_long, "mlx": part_mlx}[part](arguments.folder, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
