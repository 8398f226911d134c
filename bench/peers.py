#!/usr/bin/env python3
"""Whole models beside llama.cpp and ik_llama.cpp: same file, same text, same threads, one run.

Each measurement is a process of its own that prefills CONTEXT tokens of a real text and decodes some more at that
depth. The programs take turns (interleaved repeats), so that a noisy machine is noisy for all; medians are compared.
Peers are built from source for this CPU and tuned first: flash attention on, f16 KV, the best of several micro-batch
sizes and of weight repacking. A peer that cannot be installed or run is reported as such, with the reason.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
WORKER = ROOT / "bench" / "peer_worker.py"
PROGRAM = ROOT / "build" / "keysieve"

VERSIONS = {"llama.cpp": ("llama-cpp-python", "0.3.36"), "ik_llama.cpp": ("ik-llama-cpp-python", "0.1.5")}
AVX2_ONLY = ("-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX_VNNI=OFF "
             "-DGGML_AVX512=OFF -DGGML_AVX512_VBMI=OFF -DGGML_AVX512_VNNI=OFF -DGGML_AVX512_BF16=OFF")
BUILD_ARGUMENTS = {"native": "-DGGML_NATIVE=ON", "avx2": AVX2_ONLY}
COMPILERS = {"CC": "clang-19", "CXX": "clang++-19", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
UBATCHES = (128, 256, 512, 1024, 2048)
MODELS = {"smollm2-135m": "SmolLM2-135M-Instruct.Q4_1.gguf",
          "qwen2.5-coder-0.5b": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"}


class Unavailable(Exception):
    """A program that cannot be measured here; the message says why."""


@dataclass
class Sample:
    prefill: float  # tokens per second
    decode: float
    peak_rss: int


@dataclass
class Engine:
    """One row of the table: a name and how to measure it once."""

    name: str
    run: object  # (context) -> Sample
    peer: bool
    settings: str = ""
    problem: str = ""
    samples: dict = field(default_factory=dict)  # context -> [Sample]


def say(text):
    print(f"peers: {text}", file=sys.stderr, flush=True)


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


# ---- the peers -------------------------------------------------------------------------------------------------

def environment_python(isa):
    folder = CACHE / ("peers-venv" if isa == "native" else f"peers-venv-{isa}")
    if not (folder / "bin" / "python").exists():
        subprocess.run(["/usr/bin/python3", "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"


def ensure_peer(peer, python, isa):
    """Builds the peer from source into its environment, once."""
    package, version = VERSIONS[peer]
    environment = python.parent.parent
    stamp = environment / f"{package}-{version}.built"
    if stamp.exists():
        return
    log = CACHE / f"{package}-{isa}.log"
    say(f"building {package} {version} for {isa} (several minutes, once; {log})")
    with open(log, "w") as output:
        try:
            if peer == "llama.cpp":
                build_llama_cpp(python, f"{package}=={version}", isa, output)
            else:
                build_ik_llama_cpp(python, f"{package}=={version}", isa, environment / "ik", output)
        except (subprocess.CalledProcessError, OSError) as error:
            output.flush()
            raise Unavailable(f"{package} {version} does not build here: {last_line(log.read_text())} ({log})") from error
    stamp.write_text(BUILD_ARGUMENTS[isa] + "\n")


def command_into(output, *command, **variables):
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, **COMPILERS, **variables},
                   stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def build_llama_cpp(python, requirement, isa, output):
    command_into(output, python, "-m", "pip", "install", "-v", "--force-reinstall", "--no-cache-dir",
                 "--no-binary", requirement.split("==")[0], requirement,
                 CMAKE_ARGS=f"{BUILD_ARGUMENTS[isa]} -DCMAKE_BUILD_TYPE=Release")


def build_ik_llama_cpp(python, requirement, isa, folder, output):
    """The wheel's Python files with libraries built here: the source package lacks a file that its own full build
    needs, and the wheel's libraries are for AVX2 only (which is what --isa avx2 wants)."""
    command_into(output, python, "-m", "pip", "install", "--only-binary", ":all:", requirement)
    if isa == "avx2":
        return
    shutil.rmtree(folder, ignore_errors=True)
    command_into(output, python, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", folder,
                 requirement)
    archive, = folder.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    source, = folder.glob("ik_llama_cpp_python-*/vendor/ik_llama.cpp")
    # f16, the KV type measured here, is among the flash-attention kernels that stay.
    command_into(output, "cmake", "-S", source, "-B", folder / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                 "-DBUILD_SHARED_LIBS=ON", "-DGGML_IQK_FA_ALL_QUANTS=OFF", "-DLLAMA_BUILD_TESTS=OFF",
                 "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF", *BUILD_ARGUMENTS[isa].split())
    command_into(output, "cmake", "--build", folder / "build", "--target", "llama")


def worker_environment(python):
    libraries = list((python.parent.parent / "ik" / "build").rglob("libllama.so"))
    return {**os.environ, "IK_LLAMA_CPP_LIB_PATH": str(libraries[0])} if libraries else dict(os.environ)


def worker(python, peer, model, threads, *options, timeout=3600):
    command = [str(python), str(WORKER), "--peer", peer, "--model", str(model), "--threads", str(threads),
               *map(str, options)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                              env=worker_environment(python))
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{peer}: no result after {timeout} s") from error
    if done.returncode != 0:
        raise Unavailable(f"{peer} exited with {done.returncode}: {last_line(done.stderr)}")
    return json.loads(done.stdout)


def to_sample(result):
    return Sample(result["prefill_tokens"] / result["prefill_seconds"],
                  result["decode_tokens"] / result["decode_seconds"], result["peak_rss_bytes"])


def peer_options(settings):
    ubatch, repack = settings
    return ["--ubatch", ubatch, *(["--repack"] if repack else [])]


def describe(settings):
    ubatch, repack = settings
    return f"ubatch {ubatch}{', repacked' if repack else ''}"


def tune(python, peer, model, arguments, ids):
    """The best settings for prefill and the best for decode, each measured at a short context."""
    context = min(arguments.tune_context, max(arguments.contexts))
    prefill, decode = {}, {}
    problem = None
    for repack in (False, True):
        for ubatch in UBATCHES:
            if ubatch > max(context, UBATCHES[0]):
                continue
            settings = (ubatch, repack)
            try:
                sample = to_sample(worker(python, peer, model, arguments.threads, "--ids", ids, "--context", context,
                                          "--decode-tokens", 16, *peer_options(settings), timeout=300))
            except Unavailable as error:
                problem = error
                continue
            prefill[settings], decode[settings] = sample.prefill, sample.decode
            say(f"  {peer}, {describe(settings)}: prefill {sample.prefill:.0f}, decode {sample.decode:.1f} tok/s")
    if not prefill:
        raise problem
    return max(prefill, key=prefill.get), max(decode, key=decode.get)


def peer_engine(peer, model, arguments, ids):
    engine = Engine(peer, None, peer=True)
    try:
        python = environment_python(arguments.isa)
        ensure_peer(peer, python, arguments.isa)
        say(f"tuning {peer}")
        best_prefill, best_decode = tune(python, peer, model, arguments, ids)
    except (Unavailable, subprocess.CalledProcessError, OSError) as error:
        engine.problem = str(error)
        return engine
    engine.settings = f"prefill: {describe(best_prefill)}; decode: {describe(best_decode)}"

    def run(context):
        options = ["--ids", ids, "--context", context, "--decode-tokens", arguments.decode_tokens]
        first = worker(python, peer, model, arguments.threads, *options, *peer_options(best_prefill))
        engine.version, engine.system = first["version"], first["system"]
        sample = to_sample(first)
        # Only the repacking of weights can change decode; measure it apart where the best choices differ.
        if best_decode[1] != best_prefill[1]:
            other = to_sample(worker(python, peer, model, arguments.threads, *options, *peer_options(best_decode)))
            sample.decode = max(sample.decode, other.decode)
        return sample

    engine.run = run
    return engine


# ---- keysieve --------------------------------------------------------------------------------------------------

def run_keysieve(model, text_file, arguments, options):
    """One measurement of keysieve: the one place that knows its command line."""
    if not PROGRAM.exists():
        raise Unavailable("build/keysieve is not built")
    command = [str(PROGRAM), "generate", "--model", str(model), "--raw", "--prompt-file", str(text_file), "--json",
               "--max-tokens", str(arguments.decode_tokens + 1), "--threads", str(arguments.threads),
               *options]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            raise Unavailable(f"keysieve exited with {process.returncode}: {last_line(errors.read())}")
        result = json.load(output)
    prefill, decode = result["prefill"], result["decode"]
    return Sample(prefill["tokens"] / prefill["seconds"],
                  decode["tokens"] / decode["seconds"] if decode["seconds"] > 0 else 0.0, usage.ru_maxrss * 1024)


def keysieve_engine(name, model, texts, arguments, options):
    return Engine(name, lambda context: run_keysieve(model, texts[context], arguments, options), peer=False,
                  settings=" ".join(options))


# ---- the text --------------------------------------------------------------------------------------------------

def default_text(folder):
    program = shutil.which("bible")
    if not program:
        raise SystemExit("peers: no text: install bible-kjv or give --text FILE")
    path = folder / "text.txt"
    with open(path, "w") as output:
        subprocess.run([program, "-f", "Gen1:1-Rev22:21"], stdin=subprocess.DEVNULL, stdout=output, check=True)
    return path


def prepare_text(arguments, model, folder):
    """(the ids file for the peers, {context: text file for keysieve}): the same tokens for all."""
    source = Path(arguments.text) if arguments.text else default_text(folder)
    longest = max(arguments.contexts) + arguments.decode_tokens
    python = environment_python(arguments.isa)
    ensure_peer("llama.cpp", python, arguments.isa)
    result = worker(python, "llama.cpp", model, arguments.threads, "--tokenize", source, "--longest", longest)
    if len(result["ids"]) < longest:
        raise SystemExit(f"peers: {source} has {len(result['ids'])} tokens, {longest} are needed")
    ids = folder / "ids.json"
    ids.write_text(json.dumps({"ids": result["ids"]}))
    data = result["bytes"].encode("latin-1")
    texts = {}
    for context in arguments.contexts:
        texts[context] = folder / f"text-{context}.txt"
        texts[context].write_bytes(data[:result["ends"][context - 1]])
    return ids, texts


# ---- the run and its report ------------------------------------------------------------------------------------

def measure_all(engines, arguments):
    for repeat in range(arguments.repeats):
        for context in arguments.contexts:
            for engine in engines:
                if engine.problem:
                    continue
                try:
                    sample = engine.run(context)
                except (Unavailable, KeyError, json.JSONDecodeError) as error:
                    engine.problem = str(error)
                    say(f"{engine.name}: {error}")
                    continue
                engine.samples.setdefault(context, []).append(sample)
                say(f"{repeat + 1}/{arguments.repeats} at {context}: {engine.name}: prefill {sample.prefill:.0f}, "
                    f"decode {sample.decode:.1f} tok/s, {sample.peak_rss / 1e6:.0f} MB")


def medians(engine, context):
    samples = engine.samples.get(context)
    if not samples:
        return None
    return Sample(statistics.median(s.prefill for s in samples), statistics.median(s.decode for s in samples),
                  max(s.peak_rss for s in samples))


def ratio(value, engines, context, key):
    """`value` over the better peer's; None where no peer was measured."""
    peers = [getattr(m, key) for e in engines if e.peer and (m := medians(e, context))]
    return value / max(peers) if peers else None


def report(engines, arguments, model):
    rows = []
    print(f"\n{model.name}, {arguments.threads} threads, {arguments.isa}, {cpu_name()}, {datetime.date.today()}")
    print(f"medians of {arguments.repeats} interleaved repeats; ratio: against the better peer\n")
    print(f"{'context':>8}  {'program':<22} {'prefill tok/s':>14} {'ratio':>6} {'decode tok/s':>14} {'ratio':>6} "
          f"{'peak RSS MB':>12}")
    for context in arguments.contexts:
        for engine in engines:
            middle = medians(engine, context)
            if middle is None:
                print(f"{context:>8}  {engine.name:<22} not measured: {engine.problem}")
                rows.append({"context": context, "program": engine.name, "problem": engine.problem})
                continue
            prefill_ratio = ratio(middle.prefill, engines, context, "prefill")
            decode_ratio = ratio(middle.decode, engines, context, "decode")
            show = [f"{r:.2f}" if r is not None else "-" for r in (prefill_ratio, decode_ratio)]
            print(f"{context:>8}  {engine.name:<22} {middle.prefill:>14.1f} {show[0]:>6} {middle.decode:>14.1f} "
                  f"{show[1]:>6} {middle.peak_rss / 1e6:>12.1f}")
            rows.append({"context": context, "program": engine.name, "prefill_tokens_per_second": middle.prefill,
                         "decode_tokens_per_second": middle.decode, "peak_rss_bytes": middle.peak_rss,
                         "prefill_ratio": prefill_ratio, "decode_ratio": decode_ratio,
                         "samples": [vars(s) for s in engine.samples[context]]})
        print()
    for engine in engines:
        print(f"{engine.name}: {getattr(engine, 'version', '')} {engine.settings}"
              f"{' PROBLEM: ' + engine.problem if engine.problem else ''}".rstrip())
    return rows


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main():
    parser = argparse.ArgumentParser(prog="./run bench peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a short name or a GGUF file")
    parser.add_argument("--text", help="a UTF-8 text; default: the text that Debian's bible-kjv installs")
    parser.add_argument("--contexts", default="16,512,4096,8000", help="tokens to prefill, comma-separated")
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--budget", type=int, default=512, help="keysieve's sparse rows: positions per query")
    parser.add_argument("--indexer", default="auto", help="keysieve's sparse rows; `none` leaves them out")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", default="llama.cpp,ik_llama.cpp")
    parser.add_argument("--isa", choices=BUILD_ARGUMENTS, default="native", help="what the peers are built for")
    parser.add_argument("--tune-context", type=int, default=1024)
    parser.add_argument("--keysieve-options", default="", help="more options for keysieve, space-separated")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench-peers.json")
    arguments = parser.parse_args()
    arguments.contexts = sorted({int(c) for c in arguments.contexts.split(",")})
    peers = [p for p in arguments.peers.split(",") if p]
    for peer in peers:
        if peer not in VERSIONS:
            parser.error(f"no peer called '{peer}'; there are: {', '.join(VERSIONS)}")
    model = Path(arguments.model)
    if arguments.model in MODELS:
        subprocess.run([sys.executable, str(ROOT / "tools" / "fetch_model.py"), arguments.model], check=True)
        model = ROOT / "models" / arguments.model / MODELS[arguments.model]
    if not model.is_file():
        parser.error(f"{model}: no such file; short names: {', '.join(MODELS)}")

    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is busy (load {load:.1f}): ratios will be wrong, and wrong in keysieve's favour, since the "
            "peers' threads spin while they wait for one another")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="peers-", dir=CACHE) as name:
        folder = Path(name)
        try:
            ids, texts = prepare_text(arguments, model, folder)
        except Unavailable as error:
            raise SystemExit(f"peers: the text cannot be tokenized: {error}") from error
        extra = arguments.keysieve_options.split()
        engines = [keysieve_engine("keysieve dense", model, texts, arguments, ["--dense", *extra])]
        if arguments.indexer != "none":
            sparse = ["--indexer", arguments.indexer, "--budget", str(arguments.budget), *extra]
            engines.append(keysieve_engine(f"keysieve sparse {arguments.budget}", model, texts, arguments, sparse))
        engines += [peer_engine(peer, model, arguments, ids) for peer in peers]
        measure_all(engines, arguments)
    rows = report(engines, arguments, model)
    document = {"model": model.name, "load_at_start": load, "threads": arguments.threads, "isa": arguments.isa, "cpu": cpu_name(),
                "cores": os.cpu_count(), "date": str(datetime.date.today()), "repeats": arguments.repeats,
                "decode_tokens": arguments.decode_tokens, "rows": rows,
                "programs": {e.name: {"version": getattr(e, "version", ""), "system": getattr(e, "system", ""),
                                      "settings": e.settings, "problem": e.problem} for e in engines}}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"written to {arguments.output}")
    return 1 if any(e.problem for e in engines) else 0


if __name__ == "__main__":
    sys.exit(main())
