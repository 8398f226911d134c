"""What ./run bench peers measures of keysieve alone: quality, threads, idle processor use, nearness to the peaks."""

import os
import statistics
import subprocess
import time
from pathlib import Path

from peer_programs import Unavailable, generate, keysieve_environment, keysieve_json, say
from peer_report import Bar

REPEATS = 9
QUALITY_PERCENT = 0.1


def quality(setting, text, window, windows):
    """Perplexity of the fast path beside that of the same weights with nothing rounded: [Bar].

    The reference path here is --dequantize: the same kernel family on the f32 values that the weights' codes stand
    for, with f32 keys and values. It rounds nothing, as the scalar reference kernels do not, and is some fifteen
    times as fast as they are; a test holds both to the same recorded outputs.
    """
    shared = ["eval", "ppl", "--model", setting.model, "--threads", setting.threads, "--dense", "--whole", "--text",
              text, "--window", window, "--windows", windows]
    fast = keysieve_json(setting, *shared, "--kv", "f16")
    reference = keysieve_json(setting, *shared, "--kv", "f32", "--dequantize")
    a, b = fast["perplexity_dense"], reference["perplexity_dense"]
    say(f"perplexity over {fast['tokens']} tokens: fast {a:.4f}, reference {b:.4f}, {100 * (a / b - 1):+.4f}%")
    return [Bar(f"quality: perplexity {a:.4f} off the {b:.4f} of no rounding", 100 * abs(a / b - 1),
                QUALITY_PERCENT, upper=True, unit="%")]


def threads(setting):
    """Dense prefill of 512 tokens on one thread and on all: [Bar]."""
    if setting.threads < 2:
        return []
    counts = (1, setting.threads)
    speeds = {count: [] for count in counts}
    for _ in range(REPEATS):
        for count in counts:
            result = generate(setting, 512, "--dense", threads=count)
            speeds[count].append(result["prefill"]["tokens_per_second"])
    one, all_of_them = (statistics.median(speeds[count]) for count in counts)
    return [Bar(f"dense prefill at 512, {setting.threads} threads over 1 ({all_of_them:.0f} and {one:.0f} tok/s)",
                all_of_them / one, 0.9 * setting.threads)]


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime


def idle(setting, seconds=3):
    """Share of a processor that a chat takes while it waits for its user, after an answer: [Bar]."""
    command = [str(setting.program), "chat", "--model", str(setting.model), "--threads", str(setting.threads),
               "--max-tokens", "16", "--ignore-eos", "--stats"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, env=keysieve_environment(setting.isa))
    try:
        process.stdin.write("Hello\n")
        process.stdin.flush()
        while "roofline decode" not in (line := process.stderr.readline()):
            if not line:
                raise Unavailable("the chat ended before its answer")
        time.sleep(0.2)
        before = processor_seconds(process.pid)
        time.sleep(seconds)
        used = processor_seconds(process.pid) - before
        process.stdin.close()
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    return [Bar(f"a waiting chat's use of one processor over {seconds} s", 100 * used / seconds, 1, upper=True, unit="%")]


def peaks(setting):
    """Decode from a short context as a share of what the machine reads: [Bar]. Prefill's share is only told."""
    shares, products = [], []
    for _ in range(REPEATS):
        shares.append(generate(setting, 16, "--dense", "--stats")["roofline"]["decode"]["read_share"])
        products.append(generate(setting, 512, "--dense", "--stats")["roofline"]["prefill"]["multiply_add_share"])
    say(f"dense prefill at 512, all its multiply-adds: {100 * statistics.median(products):.0f}% of the int8 peak")
    return [Bar("decode at 16 tokens, bytes read as a share of the machine's read bandwidth",
                100 * statistics.median(shares), 80, unit="%")]
