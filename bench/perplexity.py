#!/usr/bin/env python3
"""Dense perplexity beside llama.cpp: `./run bench perplexity --text wiki.test.raw [--windows N]`.

The same file, the same windows (llama.cpp's own: 512 tokens one after another, second halves counted), keysieve by
`eval ppl --like llama-perplexity` and llama.cpp through its C API. Both round activations to 8 bits, each in its way;
the bar is 0.5%.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from peer_programs import CACHE, ROOT, Setting, ensure_peer, environment_python, keysieve_json, worker
from peer_report import PLANS, Bar

BAR_PERCENT = 0.5


def main():
    parser = argparse.ArgumentParser(prog="./run bench perplexity", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", type=Path, help="default: WikiText-2's test file as `keysieve pull data wikitext2` brings it")
    add("--models", default=",".join(PLANS), help="short names (%(default)s)")
    add("--window", type=int, default=512)
    add("--windows", type=int, default=0, help="the first so many; 0: all (%(default)s)")
    add("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    python = environment_python("native")
    ensure_peer("llama.cpp", python, "native")
    text = arguments.text
    if text is None:
        pulled = subprocess.run([ROOT / "build" / "keysieve", "pull", "data", "wikitext2", "--json"], check=True,
                                stdout=subprocess.PIPE, text=True).stdout
        text = Path(json.loads(pulled)["files"][0]["path"])
    fine = True
    for name in arguments.models.split(","):
        model = ROOT / "models" / name / PLANS[name].file
        subprocess.run([sys.executable, str(ROOT / "tools" / "fetch_model.py"), name], check=True)
        setting = Setting(model, arguments.threads, "native", 0, ROOT / "build" / "keysieve", [])
        windows = ["--windows", arguments.windows] if arguments.windows else []
        ours = keysieve_json(setting, "eval", "ppl", "--model", model, "--text", text, "--dense", "--like", "llama-perplexity",
                             "--window", arguments.window, "--threads", arguments.threads, *windows)
        theirs = worker(python, "llama.cpp", setting, "--perplexity", text, "--context", arguments.window, "--ubatch", 512,
                        "--windows", arguments.windows)
        difference = 100 * (ours["perplexity_dense"] / theirs["perplexity"] - 1)
        print(f"{model.name}, {text.name}, {ours['windows']} windows of {arguments.window}: keysieve "
              f"{ours['perplexity_dense']:.4f} over {ours['tokens']:,} tokens, {theirs['version']} {theirs['perplexity']:.4f} over "
              f"{theirs['tokens']:,}: {difference:+.3f}%")
        fine &= ours["tokens"] == theirs["tokens"]
        bar = Bar("|perplexity over llama.cpp's - 1|, percent", abs(difference), BAR_PERCENT, upper=True, unit="%")
        print(bar.row())
        fine &= bar.met
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
