#!/usr/bin/env python3
"""Regenerates docs/results/: one evaluation a part, baselines first, parts that are done left alone.

`--tables` writes the tables of docs/results.md from these files.
A part is one command of build/keysieve and one JSON file that holds the command, the machine, the date and what the
command printed. A part that was stopped goes on where it was (--resume). `keysieve report docs/results/*.json` makes
the page of them.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import result_tables

ROOT = Path(__file__).resolve().parent.parent
SMALL, LARGE = "smollm2-135m", "qwen2.5-coder-0.5b"
BUDGETS = "128,256,512,1024,2048"
BASELINES = "oracle,recent,random,quest,snap-kv,h2o,streaming"
NEEDLE_MODES = "dense,sparse,oracle,recent,random"


@dataclass(frozen=True)
class Part:
    name: str
    arguments: tuple
    resumes: bool = True
    uses_indexer: bool = True


def ppl_part(model, window, windows, budgets, suffix, *what):
    return Part(f"ppl-{model}-{window}{suffix}",
                ("ppl", "--model", model, "--text", "{books}", "--window", str(window), "--windows", str(windows), "--budgets", budgets,
                 *what), uses_indexer="auto" in what)


def ppl(model, window, windows, budgets, baselines="oracle,recent,random"):
    """The indexer, and its baselines apart, so that a new indexer does not ask for them again."""
    yield ppl_part(model, window, windows, budgets, "", "--indexer", "auto")
    yield ppl_part(model, window, windows, budgets, "-baselines", "--indexer", "none", "--baselines", baselines)


def needle(model, context, trials, budgets, modes=NEEDLE_MODES, more="", suffix=""):
    name = "-".join(["needle", model, str(context), *more.replace("--", "").split(), *suffix.split()])
    return Part(name, ("needle", "--model", model, "--haystack", "{books}", "--contexts", str(context), "--trials", str(trials),
                       "--budgets", budgets, "--indexer", "auto", "--modes", modes, *more.split()))


def gsm8k(model, limit, *mode):
    name = "-".join(word.strip("-") for word in mode)
    return Part(f"gsm8k-{name}-{model}",
                ("gsm8k", "--model", model, "--data", "{gsm8k}", "--shots-data", "{shots}", "--limit", str(limit), *mode),
                uses_indexer="--dense" not in mode)


def memory(model, budget, *more):
    return Part(f"memory-{model}", ("memory", "--model", model, "--budget", str(budget), *more), resumes=False)


def latency(model, contexts, budget):
    return Part(f"latency-{model}", ("latency", "--model", model, "--text", "{books}", "--contexts", contexts,
                                     "--budget", str(budget), "--indexer", "auto"))


def parts():
    """By what they tell for their time: the quick and the most asked for first."""
    for mode in (["--dense"], ["--budget", "512"], ["--budget", "256"]):
        yield gsm8k(LARGE, 100, *mode)
    yield memory(SMALL, 512)
    yield memory(LARGE, 512, "--contexts", "4k,8k,16k,32k")
    for model in (SMALL, LARGE):
        yield from ppl(model, 4096, 8, BUDGETS)
    yield needle(SMALL, 4096, 40, "128,256")
    yield needle(LARGE, 4096, 40, "128,256", "sparse")
    yield needle(LARGE, 4096, 40, "128,256", "dense,oracle,recent,random", suffix="baselines")
    yield needle(LARGE, 30000, 6, "256,512", "sparse")
    yield needle(LARGE, 30000, 6, "256", "dense", suffix="baselines")  # reads everything, whatever the budget
    yield needle(LARGE, 30000, 6, "256,512", "sparse", "--seed 2")  # six are few: other places, other codes
    yield needle(LARGE, 30000, 4, "2048", "dense,sparse", "--protocol after --cache tiered")
    yield needle(SMALL, 4096, 10, "512", "dense,sparse", "--protocol after --cache tiered")
    yield needle(LARGE, 8192, 4, "1024", "sparse", "--protocol after --cache fixed")
    yield needle(LARGE, 8192, 4, "1024", "dense,snap-kv,h2o,streaming", "--protocol after --cache fixed", suffix="baselines")
    yield from ppl(SMALL, 8192, 4, "512,1024,2048")
    for form in ("words", "pairs", "two"):
        yield needle(SMALL, 4096, 10, "256", "dense,sparse,oracle,recent", f"--form {form}")
        yield needle(LARGE, 4096, 10, "256", "sparse", f"--form {form}")
        yield needle(LARGE, 4096, 10, "256", "dense,oracle,recent", f"--form {form}", suffix="baselines")
    yield Part(f"needle-card-{LARGE}", ("needle", "--model", LARGE, "--haystack", "{books}", "--contexts", "2k,4k,8k,16k,30k",
                                        "--trials", "3", "--budget", "512", "--indexer", "auto", "--modes", "sparse"))
    yield needle(LARGE, 16384, 5, "512", "sparse")
    yield needle(LARGE, 16384, 5, "512", "dense,recent", suffix="baselines")
    yield needle(SMALL, 8192, 8, "256,1024")
    yield from ppl(LARGE, 8192, 2, "512,1024,2048")
    yield from ppl(LARGE, 30000, 1, "1024,2048", "recent,random")
    yield ppl_part(LARGE, 30000, 1, "1024,2048", "-oracle", "--indexer", "none", "--baselines", "oracle")  # as long as all others
    for window, windows, budgets in ((8192, 2, "256,512,1024"), (30000, 1, "512,1024")):
        yield ppl_part(LARGE, window, windows, budgets, "-refine-prompt", "--indexer", "auto", "--refine-prompt", "2048")
    yield latency(SMALL, "512,2048,4096,8000", 512)
    yield latency(LARGE, "512,4096,16000", 1024)
    # The large model finds all of them at 128 and 256 positions, so more tell nothing of it.
    yield needle(SMALL, 4096, 10, "512,1024,2048", NEEDLE_MODES, "--seed 2")
    for model in (SMALL, LARGE):
        yield Part(f"ppl-rules-{model}-4096",
                   ("ppl", "--model", model, "--text", "{books}", "--window", "4096", "--windows", "4", "--budgets", "256,512",
                    "--indexer", "none", "--baselines", BASELINES), uses_indexer=False)


def machine():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores, {line.split(':', 1)[1].strip()}"
    return f"{os.cpu_count()} cores"


def expand(arguments, books, gsm8k_folder):
    """The command with its files, and the same as it is written down: names without folders."""
    real, shown = [], []
    for argument in arguments:
        if argument == "{books}":
            files = sorted(books.glob("*.txt"))
            if not files:
                sys.exit(f"results: no *.txt in {books}; name a folder of texts with --books")
            real += map(str, files)
            shown += [file.name for file in files]
        elif argument in ("{gsm8k}", "{shots}"):
            file = gsm8k_folder / ("test.jsonl" if argument == "{gsm8k}" else "train.jsonl")
            real.append(str(file))
            shown.append(f"gsm8k/{file.name}")
        else:
            real.append(argument)
            shown.append(argument)
    return real, shown


def run(part, options):
    target = options.out / f"{part.name}.json"
    if target.exists():
        return "is there"
    real, shown = expand(part.arguments, options.books, options.gsm8k)
    command = [str(options.program), "eval", *real, "--json"]
    partial = options.partial / f"{part.name}.json"
    if part.resumes:
        command += ["--resume", str(partial)]
    started = datetime.datetime.now(datetime.timezone.utc)
    outcome = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    if outcome.returncode != 0:
        return f"failed with status {outcome.returncode}"
    document = {
        "command": "keysieve eval " + " ".join(shown),
        "machine": machine(),
        "date": started.strftime("%Y-%m-%d"),
        "seconds": round((datetime.datetime.now(datetime.timezone.utc) - started).total_seconds(), 1),
        "result": json.loads(outcome.stdout),
    }
    temporary = target.with_suffix(".part")
    temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(target)
    partial.unlink(missing_ok=True)
    return f"done in {document['seconds']:.0f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "keysieve")
    parser.add_argument("--books", type=Path, help="a folder of plain texts, *.txt")
    parser.add_argument("--gsm8k", type=Path, default=Path("gsm8k"), help="a folder with train.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--partial", type=Path, default=ROOT / ".cache" / "results")
    parser.add_argument("--only", default="", help="parts whose name contains this")
    parser.add_argument("--no-indexer", action="store_true", help="leave out what needs an indexer")
    parser.add_argument("--tables", action="store_true", help="write the tables of docs/results.md and do nothing else")
    parser.add_argument("--list", action="store_true", help="name the parts and whether they are done")
    options = parser.parse_args()
    if options.tables:
        return result_tables.write(ROOT / "docs" / "results.md", options.out)
    if options.books is None and not options.list:
        parser.error("name a folder of texts with --books")
    options.out.mkdir(parents=True, exist_ok=True)
    options.partial.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in parts()
              if options.only in part.name and not (options.no_indexer and part.uses_indexer)]
    failed = 0
    for number, part in enumerate(chosen, start=1):
        if options.list:
            print(f"{part.name}: {'is there' if (options.out / (part.name + '.json')).exists() else 'to do'}")
            continue
        outcome = run(part, options)
        failed += outcome.startswith("failed")
        print(f"{number} of {len(chosen)}  {part.name}: {outcome}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
