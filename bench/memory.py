"""What the caches hold: `./run bench memory [--part long|prompt]`.

long    a fixed cache while SmolLM2-135M writes 20,000 tokens: resident memory and speed at ten points of the way
prompt  the peak of a 30,000-token prompt of Qwen2.5-Coder-0.5B beyond its weights: dense, fixed and tiered caches

Prints Markdown tables; progress goes to standard error.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "build" / "keysieve"
BIBLE = ["bible", "-f", "Gen1:1-Rev22:21"]  # Debian's bible-kjv: a public-domain text that any machine can have


def long_prompt(folder, characters):
    text = subprocess.run(BIBLE, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
    path = folder / "prompt.txt"
    path.write_text(text[:characters])
    return path


def resident_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def write_long(tokens, budget, points):
    """Samples (share of the text, seconds, resident bytes) while the program writes."""
    command = [PROGRAM, "generate", "--model", "smollm2-135m", "--raw", "--prompt", "Once upon a time",
               "--cache", "fixed", "--budget", str(budget), "--context", str(tokens + 1000), "--max-tokens",
               str(tokens), "--ignore-eos", "--temperature", "0.8", "--seed", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    written, samples = [0], []

    def read():
        while block := process.stdout.read1(65536):
            written[0] += len(block)

    reader = threading.Thread(target=read)
    reader.start()
    start = time.monotonic()
    while reader.is_alive():
        reader.join(0.5)
        try:
            samples.append((written[0], time.monotonic() - start, resident_bytes(process.pid)))
        except FileNotFoundError:
            break
    if process.wait() != 0:
        sys.exit("the program failed")
    samples = [sample for sample in samples if sample[2] > 0]
    total = written[0]
    print("| text written | resident MB | characters a second since the row before |\n|---|---|---|")
    before = (0, 0.0)
    for point in range(1, points + 1):
        wanted = total * point / points
        bytes_done, seconds, resident = next((s for s in samples if s[0] >= wanted), samples[-1])
        speed = (bytes_done - before[0]) / max(seconds - before[1], 1e-9)
        print(f"| {100 * point // points}% | {resident / 1e6:.1f} | {speed:,.0f} |")
        before = (bytes_done, seconds)


def prompt_peaks(folder, characters, budget):
    prompt = long_prompt(folder, characters)
    caches = [("dense", ["--dense"]), ("fixed, cut by chunks", ["--cache", "fixed", "--prune", "chunk"]),
              ("tiered, file", ["--cache", "tiered", "--cold-store", str(folder)])]
    print("| cache | tokens | peak beyond the weights, MB | dense / this | hot KV MB | index MB |")
    print("|---|---|---|---|---|---|")
    dense = None
    for name, options in caches:
        print(f"{name} ...", file=sys.stderr)
        if name != "dense":
            options = options + ["--budget", str(budget)]
        command = [PROGRAM, "generate", "--model", "qwen2.5-coder-0.5b", "--raw", "--prompt-file", prompt,
                   "--max-tokens", "8", "--ignore-eos", "--json", *options]
        result = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        memory = result["memory"]
        beyond = memory["peak_rss_bytes"] - memory["weights_bytes"]
        dense = dense or beyond
        print(f"| {name} | {result['prompt_tokens']:,} | {beyond / 1e6:.1f} | {dense / beyond:.1f} | "
              f"{memory['kv_hot_bytes'] / 1e6:.1f} | {memory['index_bytes'] / 1e6:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(prog="./run bench memory", description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["long", "prompt"], help="one of the two; both without it")
    parser.add_argument("--tokens", type=int, default=20000, help="long: tokens to write")
    parser.add_argument("--characters", type=int, default=118000, help="prompt: its length")
    options = parser.parse_args()
    folder = ROOT / ".cache" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    if options.part != "prompt":
        write_long(options.tokens, 512, 10)
    if options.part != "long":
        prompt_peaks(folder, options.characters, 2048)


if __name__ == "__main__":
    main()
