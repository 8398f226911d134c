"""The programs that ./run bench peers measures: how each is built, set up and run once."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
WORKER = ROOT / "bench" / "peer_worker.py"
SETTINGS = CACHE / "peer-settings.json"

VERSIONS = {"llama.cpp": ("llama-cpp-python", "0.3.36"), "ik_llama.cpp": ("ik-llama-cpp-python", "0.1.5")}
SOURCE_HASHES = {"llama.cpp": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
                 "ik_llama.cpp": "33c67eb99e4dcab5e611050433243815709b8b3067753f9ce18375013cf002ad"}  # SHA-256
AVX2_ONLY = ("-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX_VNNI=OFF "
             "-DGGML_AVX512=OFF -DGGML_AVX512_VBMI=OFF -DGGML_AVX512_VNNI=OFF -DGGML_AVX512_BF16=OFF")
BUILD_ARGUMENTS = {"native": "-DGGML_NATIVE=ON", "avx2": AVX2_ONLY}
COMPILERS = {"CC": "clang-19", "CXX": "clang++-19", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
UBATCHES = (128, 256, 512, 1024, 2048)
BEYOND_AVX2 = re.compile(r"\b(AVX512\w*|AVX_VNNI|AMX\w*) = 1")


class Unavailable(Exception):
    """A program that cannot be measured here; the message says why."""


@dataclass
class Sample:
    prefill: float  # tokens per second
    decode: float
    peak_rss: int  # bytes
    load: float  # seconds until a model from the page cache is in memory; peers map the file and read it later
    first: float | None = None  # seconds from the start of loading to the end of the first 16 tokens


@dataclass
class Engine:
    """One row of the table: a name and how to measure it once."""

    name: str
    run: object  # (context) -> Sample
    peer: bool
    settings: str = ""
    problem: str = ""  # why nothing can be measured
    problems: dict = field(default_factory=dict)  # context -> why not there
    samples: dict = field(default_factory=dict)  # context -> [Sample]
    version: str = ""
    system: str = ""

    def document(self):
        return {"version": self.version, "system": self.system, "settings": self.settings, "problem": self.problem,
                "problems": self.problems,
                "samples": {str(c): [asdict(s) for s in samples] for c, samples in self.samples.items()}}

    def restore(self, document):
        """Takes over what an earlier run measured, if its settings and, as far as it is known yet, its program were these."""
        if document.get("settings") != self.settings or self.version and document.get("version") != self.version:
            return
        self.samples = {int(c): [Sample(**s) for s in samples] for c, samples in document["samples"].items()}
        self.version, self.system = document["version"], document["system"]


@dataclass
class Setting:
    """What all programs of one table share."""

    model: Path
    threads: int
    isa: str
    decode_tokens: int
    program: Path  # keysieve
    under: list  # a command that each measurement runs under
    own_model: Path | None = None  # for keysieve; else `model`
    ids: Path | None = None  # the text as token ids, for the peers
    texts: dict = field(default_factory=dict)  # context -> the same as text, for keysieve


def say(text):
    print(f"peers: {text}", file=sys.stderr, flush=True)


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


# ---- building the peers ----------------------------------------------------------------------------------------

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
            with tempfile.TemporaryDirectory(prefix=f"{package}-", dir=CACHE) as folder:
                archive = download_source(peer, python, Path(folder), output)
                if peer == "llama.cpp":
                    build_llama_cpp(python, archive, isa, output)
                else:
                    build_ik_llama_cpp(python, f"{package}=={version}", archive, isa, environment / "ik", output)
        except (subprocess.CalledProcessError, OSError) as error:
            output.flush()
            raise Unavailable(f"{package} {version} does not build here: {last_line(log.read_text())} ({log})") from error
    stamp.write_text(BUILD_ARGUMENTS[isa] + "\n")


def command_into(output, *command, **variables):
    subprocess.run([str(part) for part in command], check=True, env={**os.environ, **COMPILERS, **variables},
                   stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)


def download_source(peer, python, folder, output):
    """The peer's source package, checked against its hash."""
    package, version = VERSIONS[peer]
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package}=={version} --hash=sha256:{SOURCE_HASHES[peer]}\n")
    command_into(output, python, "-m", "pip", "download", "--no-deps", "--no-binary", package, "--require-hashes",
                 "--dest", folder, "--requirement", requirements)
    archive, = folder.glob("*.tar.gz")
    return archive


def build_llama_cpp(python, archive, isa, output):
    command_into(output, python, "-m", "pip", "install", "-v", "--force-reinstall", "--no-cache-dir", archive,
                 CMAKE_ARGS=f"{BUILD_ARGUMENTS[isa]} -DCMAKE_BUILD_TYPE=Release")


def build_ik_llama_cpp(python, requirement, archive, isa, folder, output):
    """The wheel's Python files with libraries built here: the source package lacks a file that its own full build
    needs, and the wheel's libraries come from another compiler."""
    command_into(output, python, "-m", "pip", "install", "--only-binary", ":all:", requirement)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    source, = folder.glob("ik_llama_cpp_python-*/vendor/ik_llama.cpp")
    # f16, the KV type measured here, is among the flash-attention kernels that stay.
    command_into(output, "cmake", "-S", source, "-B", folder / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                 "-DBUILD_SHARED_LIBS=ON", "-DGGML_IQK_FA_ALL_QUANTS=OFF", "-DLLAMA_BUILD_TESTS=OFF",
                 "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF", *BUILD_ARGUMENTS[isa].split())
    command_into(output, "cmake", "--build", folder / "build", "--target", "llama")


# ---- running the peers -----------------------------------------------------------------------------------------

def worker_environment(python):
    libraries = list((python.parent.parent / "ik" / "build").rglob("libllama.so"))
    return {**os.environ, "IK_LLAMA_CPP_LIB_PATH": str(libraries[0])} if libraries else dict(os.environ)


def worker(python, peer, setting, *options, timeout=3600):
    command = [*setting.under, str(python), str(WORKER), "--peer", peer, "--model", str(setting.model), "--threads",
               str(setting.threads), *map(str, options)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                              env=worker_environment(python))
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{peer}: no result after {timeout} s") from error
    if done.returncode != 0:
        raise Unavailable(f"{peer} exited with {done.returncode}: {last_line(done.stderr)}")
    result = json.loads(done.stdout)
    beyond = BEYOND_AVX2.findall(result.get("system", ""))
    if setting.isa == "avx2" and beyond:
        raise Unavailable(f"{peer} was to be built for AVX2 and says that it uses {', '.join(beyond)}")
    return result


def to_sample(result):
    return Sample(result["prefill_tokens"] / result["prefill_seconds"],
                  result["decode_tokens"] / result["decode_seconds"], result["peak_rss_bytes"],
                  result["load_seconds"], result["first_seconds"])


def peer_options(settings):
    ubatch, repack = settings
    return ["--ubatch", ubatch, *(["--repack"] if repack else [])]


def describe(settings):
    ubatch, repack = settings
    return f"ubatch {ubatch}{', repacked' if repack else ''}"


def tune(python, peer, setting, context):
    """The best settings for prefill and the best for decode, each measured at a short context."""
    prefill, decode = {}, {}
    problem = None
    for repack in (False, True):
        for ubatch in UBATCHES:
            if ubatch > max(context, UBATCHES[0]):
                continue
            settings = (ubatch, repack)
            try:
                sample = to_sample(worker(python, peer, setting, "--ids", setting.ids, "--context", context,
                                          "--decode-tokens", 16, *peer_options(settings), timeout=300))
            except Unavailable as error:
                problem = error
                continue
            prefill[settings], decode[settings] = sample.prefill, sample.decode
            say(f"  {peer}, {describe(settings)}: prefill {sample.prefill:.0f}, decode {sample.decode:.1f} tok/s")
    if not prefill:
        raise problem
    return max(prefill, key=prefill.get), max(decode, key=decode.get)


def tuned(python, peer, setting, context, again):
    """tune(), remembered between runs."""
    key = " ".join([peer, VERSIONS[peer][1], setting.isa, setting.model.name, f"{setting.threads} threads"])
    known = json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}
    if again or key not in known:
        say(f"tuning {peer}")
        known[key] = tune(python, peer, setting, context)
        SETTINGS.write_text(json.dumps(known, indent=2) + "\n")
    return tuple(map(tuple, known[key]))


def peer_engine(peer, setting, tune_context, tune_again):
    engine = Engine(peer, None, peer=True)
    try:
        python = environment_python(setting.isa)
        ensure_peer(peer, python, setting.isa)
        best_prefill, best_decode = tuned(python, peer, setting, tune_context, tune_again)
    except (Unavailable, subprocess.CalledProcessError, OSError) as error:
        engine.problem = str(error)
        return engine
    engine.settings = f"prefill: {describe(best_prefill)}; decode: {describe(best_decode)}"

    def run(context):
        options = ["--ids", setting.ids, "--context", context, "--decode-tokens", setting.decode_tokens]
        result = worker(python, peer, setting, *options, *peer_options(best_prefill))
        engine.version, engine.system = result["version"], result["system"]
        sample = to_sample(result)
        # Only the repacking of weights can change decode; measure it apart where the best choices differ.
        if best_decode[1] != best_prefill[1]:
            other = to_sample(worker(python, peer, setting, *options, *peer_options(best_decode)))
            sample.decode = max(sample.decode, other.decode)
        return sample

    engine.run = run
    return engine


# ---- keysieve --------------------------------------------------------------------------------------------------

def keysieve_environment(isa):
    return {**os.environ, "KEYSIEVE_KERNELS": isa} if isa != "native" else dict(os.environ)


def keysieve_json(setting, *arguments):
    """keysieve's one JSON document for these arguments."""
    command = [*setting.under, str(setting.program), *map(str, arguments), "--json"]
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
                              env=keysieve_environment(setting.isa))
        errors.seek(0)
        if done.returncode != 0:
            raise Unavailable(f"keysieve exited with {done.returncode}: {last_line(errors.read())}")
    return json.loads(done.stdout)


def generate(setting, context, *options, threads=None):
    """One measurement of keysieve: the one place that knows its command line."""
    result = keysieve_json(setting, "generate", "--model", setting.own_model or setting.model, "--raw", "--prompt-file",
                           setting.texts[context], "--ignore-eos", "--max-tokens", setting.decode_tokens + 1,
                           "--threads", threads or setting.threads, *options)
    if setting.isa != "native" and result["kernels"] != setting.isa:
        raise Unavailable(f"keysieve ran on {result['kernels']} kernels, not {setting.isa}")
    return result


def keysieve_engine(name, setting, options):
    def run(context):
        result = generate(setting, context, *options)
        prefill, decode, load = result["prefill"], result["decode"], result["load_seconds"]
        return Sample(prefill["tokens_per_second"], decode["tokens_per_second"], result["memory"]["peak_rss_bytes"],
                      load, load + prefill["seconds"] if context == 16 else None)

    program = hashlib.sha256(setting.program.read_bytes()).hexdigest()[:12]
    return Engine(name, run, peer=False, settings=" ".join(options), version=f"program {program}")
