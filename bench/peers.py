#!/usr/bin/env python3
"""Whole models beside llama.cpp and ik_llama.cpp: same file, same text, same threads, one run.

Each measurement is a process of its own that prefills CONTEXT tokens of a real text and decodes some more at that
depth. The programs take turns (interleaved repeats), so that a noisy machine is noisy for all; medians are compared.
Peers are built from source for this CPU and tuned first: flash attention on, f16 KV, the best of several micro-batch
sizes and of weight repacking (remembered: --tune-again). A peer that cannot be installed or run is reported as such,
with the reason. keysieve alone is then checked for quality, threads, idle processor use and nearness to the peaks.

Every sample is written to --output as soon as it is there, and --resume goes on from such a file: peers need minutes
for one sample at 30,000 tokens. Exit status: 1 where something could not be measured or quality was missed; a missed
bar on speed is printed and no failure, since machines differ.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import peer_checks
from peer_programs import (BUILD_ARGUMENTS, CACHE, ROOT, VERSIONS, Setting, Unavailable, ensure_peer,
                           environment_python, keysieve_engine, peer_engine, say, worker)
from peer_report import FULL_SIZE, PLANS, Plan, print_bars, print_programs, print_table, table_bars

PARTS = ("table", "quality", "threads", "idle", "peaks")


# ---- the text --------------------------------------------------------------------------------------------------

def whole_text(arguments, folder):
    if arguments.text:
        return Path(arguments.text)
    program = shutil.which("bible")
    if not program:
        raise SystemExit("peers: no text: install bible-kjv or give --text FILE")
    path = folder / "text.txt"
    with open(path, "w") as output:
        subprocess.run([program, "-f", "Gen1:1-Rev22:21"], stdin=subprocess.DEVNULL, stdout=output, check=True)
    return path


def prepare_text(arguments, setting, contexts, folder):
    """Gives the setting the ids file for the peers and a text file a context for keysieve: the same tokens."""
    source = whole_text(arguments, folder)
    longest = max(contexts) + arguments.decode_tokens
    python = environment_python(arguments.isa)
    ensure_peer("llama.cpp", python, arguments.isa)
    result = worker(python, "llama.cpp", setting, "--tokenize", source, "--longest", longest)
    if len(result["ids"]) < longest:
        raise SystemExit(f"peers: {source} has {len(result['ids'])} tokens, {longest} are needed")
    setting.ids = folder / "ids.json"
    setting.ids.write_text(json.dumps({"ids": result["ids"]}))
    data = result["bytes"].encode("latin-1")
    for context in contexts:
        setting.texts[context] = folder / f"text-{context}.txt"
        setting.texts[context].write_bytes(data[:result["ends"][context - 1]])
    return source


# ---- measuring -------------------------------------------------------------------------------------------------

def measure_all(engines, contexts, repeats, save):
    for repeat in range(max(repeats(c) for c in contexts)):
        for context in contexts:
            for engine in engines[repeat % len(engines):] + engines[:repeat % len(engines)]:
                if engine.problem or context in engine.problems or repeat >= repeats(context):
                    continue
                samples = engine.samples.setdefault(context, [])
                if len(samples) > repeat:
                    continue  # an earlier run's
                try:
                    sample = engine.run(context)
                except (Unavailable, KeyError, json.JSONDecodeError) as error:
                    engine.problems[context] = str(error)
                    say(f"{engine.name} at {context}: {error}")
                    continue
                samples.append(sample)
                save()
                say(f"{repeat + 1}/{repeats(context)} at {context}: {engine.name}: prefill {sample.prefill:.0f}, "
                    f"decode {sample.decode:.1f} tok/s, {sample.peak_rss / 1e6:.0f} MB")


def make_engines(plan, setting, arguments):
    extra = arguments.keysieve_options.split()
    budget = arguments.budget or plan.budget
    engines = []
    if "dense" in arguments.ours:
        engines.append(keysieve_engine("keysieve dense", setting, ["--dense", *extra]))
    if "sparse" in arguments.ours and arguments.indexer != "none":
        block = arguments.query_block
        together = ["--query-block", str(block)] if block else []
        engines.append(keysieve_engine(f"keysieve sparse {budget}" + (f", {block} together" if block else ""), setting,
                                       ["--indexer", arguments.indexer, "--budget", str(budget), *together, *extra]))
    return engines + [peer_engine(peer, setting, arguments.tune_context, arguments.tune_again)
                      for peer in arguments.peers]


def run_checks(setting, source, arguments):
    """(bars, problems) of keysieve alone."""
    checks = {"quality": lambda: peer_checks.quality(setting, source, arguments.quality_window,
                                                     arguments.quality_windows),
              "threads": lambda: peer_checks.threads(setting), "idle": lambda: peer_checks.idle(setting),
              "peaks": lambda: peer_checks.peaks(setting)}
    bars, problems = {}, {}
    for name, check in checks.items():
        if name not in arguments.parts:
            continue
        say(f"checking {name}")
        try:
            bars[name] = check()
        except (Unavailable, KeyError, json.JSONDecodeError, OSError) as error:
            problems[name] = str(error)
            say(f"{name}: {error}")
    return bars, problems


def measure_model(name, arguments, document):
    """One model's table and checks, printed and put into `document`; True: nothing failed."""
    plan, path = resolve(name, arguments)
    contexts = arguments.contexts or plan.contexts
    setting = Setting(path, arguments.threads, arguments.isa, arguments.decode_tokens, arguments.program,
                      shlex.split(arguments.under), arguments.own_model or path)
    with tempfile.TemporaryDirectory(prefix="peers-", dir=CACHE) as temporary:
        try:
            # 16 and 512 tokens serve the checks as well.
            source = prepare_text(arguments, setting, sorted({16, 512, *contexts}), Path(temporary))
        except Unavailable as error:
            raise SystemExit(f"peers: the text cannot be tokenized: {error}") from error
        engines = make_engines(plan, setting, arguments) if "table" in arguments.parts else []
        before = document["models"].get(path.name, {}).get("programs", {})
        entry = document["models"][path.name] = {"budget": arguments.budget or plan.budget}

        def save():
            entry["programs"] = {e.name: e.document() for e in engines}
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(document, indent=2) + "\n")

        for engine in engines:
            if arguments.resume and engine.name in before:
                engine.restore(before[engine.name])
        if engines:
            measure_all(engines, contexts, arguments.repeats, save)
        checks, problems = run_checks(setting, source, arguments)

    bars = [*(table_bars(plan, engines, arguments.isa) if engines else []), *(b for c in checks.values() for b in c)]
    entry["bars"] = [bar.document() for bar in bars]
    entry["problems"] = problems
    save()
    print(f"\n{path.name}, {arguments.threads} threads, {arguments.isa}, {document['cpu']}, {document['date']}")
    if engines:
        print("medians of n interleaved samples; ratio: against the better peer\n")
        print_table(engines, contexts)
        print_programs(engines)
        print()
    print_bars(bars)
    for check, problem in problems.items():
        print(f"{check}: not measured: {problem}")
    quality_met = all(bar.met for bar in checks.get("quality", []))
    return quality_met and not problems and not any(e.problem or e.problems for e in engines)


# ---- the command line ------------------------------------------------------------------------------------------

def resolve(name, arguments):
    """(plan, file) of a short name, or of a GGUF file, which is measured as SmolLM2 is."""
    plan = PLANS.get(name)
    if plan:
        subprocess.run([sys.executable, str(ROOT / "tools" / "fetch_model.py"), name], check=True)
        return plan, ROOT / "models" / name / plan.file
    if arguments.full_size:
        return FULL_SIZE, Path(name)
    if not Path(name).is_file():
        raise SystemExit(f"peers: {name}: no such file; short names: {', '.join(PLANS)}")
    first = PLANS["smollm2-135m"]
    return Plan(name, first.budget, first.contexts, first.empty_decode, first.sparse_prefill, first.deep_decode), Path(name)


def parse_repeats(text):
    """"3,16000:2" as a function of the context: 3, and 2 from 16,000 tokens on."""
    steps = sorted((int(at or 0), int(count)) for at, _, count in
                   (part.partition(":") if ":" in part else ("0", ":", part) for part in text.split(",")))
    if not steps or steps[0][0] != 0 or any(count < 1 for _, count in steps):
        raise argparse.ArgumentTypeError(f"'{text}', expected for example 3,16000:2,30000:1")
    return lambda context: [count for at, count in steps if at <= context][-1]


def names_of(choices):
    def parse(text):
        names = [name for name in text.split(",") if name]
        wrong = [name for name in names if name not in choices]
        if wrong:
            raise argparse.ArgumentTypeError(f"'{wrong[0]}', expected some of {','.join(choices)}")
        return names
    return parse


def parse_arguments():
    parser = argparse.ArgumentParser(prog="./run bench peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", "--model", default=",".join(PLANS), help="short names or GGUF files, comma-separated (all)")
    add("--contexts", type=lambda text: sorted({int(c) for c in text.split(",")}),
        help="tokens to prefill instead of each model's own list, comma-separated")
    add("--repeats", type=parse_repeats, default="3,16000:2,30000:1",
        help="N,CONTEXT:N,...: samples a context, and from a context on (%(default)s)")
    add("--parts", type=names_of(PARTS), default=",".join(PARTS), help="what to do (%(default)s)")
    add("--peers", type=names_of(VERSIONS), default=",".join(VERSIONS))
    add("--ours", type=names_of(("dense", "sparse")), default="dense,sparse", help="keysieve's rows (%(default)s)")
    add("--isa", choices=BUILD_ARGUMENTS, default="native",
        help="avx2: peers built for AVX2 in an environment of their own, and keysieve's avx2 kernels")
    add("--text", help="a UTF-8 text; default: the text that Debian's bible-kjv installs")
    add("--decode-tokens", type=int, default=64)
    add("--budget", type=int, default=0, help="keysieve's sparse rows: positions a query (each model's own)")
    add("--indexer", default="auto", help="keysieve's sparse rows; `none` leaves them out")
    add("--query-block", type=int, default=0,
        help="keysieve's sparse rows: neighbouring queries that choose together (the indexer's own)")
    add("--threads", type=int, default=os.cpu_count())
    add("--tune-context", type=int, default=1024)
    add("--tune-again", action="store_true", help="forget the peers' remembered best settings")
    add("--quality-window", type=int, default=1024, help="tokens a window of the perplexity check (%(default)s)")
    add("--quality-windows", type=int, default=48)
    add("--keysieve-options", default="", help="more options for keysieve's rows, space-separated")
    add("--program", type=Path, default=ROOT / "build" / "keysieve", help="keysieve itself")
    add("--own-model", type=Path, help="the same model in another format, for keysieve's rows")
    add("--full-size", action="store_true", help="the plan and the bars of the full-size model (./run bench full-size)")
    add("--under", default="", help="a command that each measurement runs under, such as 'nice -n -20'")
    add("--output", type=Path, help="where samples and bars go (build/bench-peers-ISA.json)")
    add("--resume", action="store_true", help="keep the samples that --output already holds")
    arguments = parser.parse_args()
    arguments.output = arguments.output or ROOT / "build" / f"bench-peers-{arguments.isa}.json"
    return arguments


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main():
    arguments = parse_arguments()
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is busy (load {load:.1f}): ratios will be wrong, and wrong in keysieve's favour, since the "
            "peers' threads spin while they wait for one another")
    CACHE.mkdir(exist_ok=True)
    document = {"cpu": cpu_name(), "cores": os.cpu_count(), "date": str(datetime.date.today()), "isa": arguments.isa,
                "threads": arguments.threads, "decode_tokens": arguments.decode_tokens, "load_at_start": load,
                "models": {}}
    if arguments.resume and arguments.output.exists():
        document["models"] = json.loads(arguments.output.read_text())["models"]
    fine = [measure_model(name, arguments, document) for name in arguments.models.split(",")]
    print(f"\nwritten to {arguments.output}")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
