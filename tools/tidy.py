#!/usr/bin/env python3
"""clang-tidy over the sources, several files of a room at once, remembering which passed.

Two files of a room therefore name different things differently. A file that passed is not read again until it, a header
of ours that it includes or .clang-tidy changes: .cache/tidy holds an empty file per hash of the three.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from check_rooms import includes_of

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "examples", "fuzz")
MOST_IN_UNIT = 24
PRECOMPILED = re.compile(r"(-Winvalid-pch )?(-Xclang -include(-pch)? -Xclang \S+cmake_pch\S* ?)+")


def digest_of(path):
    """Of a source and all that it includes, directly or not."""
    state = hashlib.sha256(str(path.relative_to(ROOT)).encode())
    for each in [ROOT / ".clang-tidy", *sorted(includes_of(ROOT, path)[0])]:
        state.update(each.read_bytes() + b"\0")
    return state.hexdigest()


def units_of(sources):
    """Lists of files to be read as one: what costs time is the headers, and those of a room are the same."""
    alone = [path for path in sources if path.name == "simd_kernels.cpp" or "fuzz" in path.relative_to(ROOT).parts]
    rooms = {}
    for path in sources:
        if path not in alone:
            rooms.setdefault(path.relative_to(ROOT).parts[:2], []).append(path)
    units = [[path] for path in alone]
    for paths in rooms.values():
        count = -(-len(paths) // MOST_IN_UNIT)
        units += [paths[at::count] for at in range(count)]
    # Those that take longest go first, so that none is left alone at the end: the SIMD kernels take as long as a room.
    return sorted(units, key=lambda unit: (unit[0].name == "simd_kernels.cpp", len(unit)), reverse=True)


def commands_of(build):
    """How each source is compiled; several may be one file of CMake's that includes them (a unity build)."""
    commands = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = Path(entry["file"])
        sources = [entry["file"]]
        if path.parent.name == "Unity":
            sources = re.findall(r'^#include "(.+\.cpp)"$', path.read_text(), re.MULTILINE)
        commands.update((source, entry) for source in sources)
    return commands


def write_units(build, commands, units):
    """A folder with a file for each unit, which includes its sources, and the commands to compile them: the build's
    own less its precompiled headers."""
    folder = build / "tidy"
    folder.mkdir(exist_ok=True)
    entries, files = [], []
    for number, unit in enumerate(units):
        entry = dict(commands[str(unit[0])])
        path = unit[0]
        if len(unit) > 1:
            path = folder / f"unit{number}.cpp"
            path.write_text("".join(f'#include "{source}"\n' for source in unit))
        entry["command"] = PRECOMPILED.sub("", entry["command"]).replace(entry["file"], str(path))
        entry["file"] = str(path)
        entries.append(entry)
        files.append(path)
    (folder / "compile_commands.json").write_text(json.dumps(entries))
    return folder, files


def tidy(build, path):
    done = subprocess.run(["clang-tidy-19", "-quiet", f"--config-file={ROOT}/.clang-tidy",
                           "--checks=-bugprone-suspicious-include", "-p", str(build),
                           str(path)], cwd=ROOT, text=True, stdin=subprocess.DEVNULL, capture_output=True)
    return done.returncode, done.stdout + ("" if done.stdout else done.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="a folder with compile_commands.json")
    parser.add_argument("files", nargs="*", type=Path, help="default: all of " + ", ".join(FOLDERS))
    arguments = parser.parse_args()
    commands = commands_of(arguments.build)
    sources = [path.resolve() for path in arguments.files] or [
        path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.cpp"))]
    sources = [path for path in sources if str(path) in commands]
    cache = ROOT / ".cache" / "tidy"
    cache.mkdir(parents=True, exist_ok=True)
    stamps = {path: cache / digest_of(path) for path in sources}
    todo = [path for path in sources if not stamps[path].exists()]
    units = units_of(todo)
    folder, files = write_units(arguments.build, commands, units)

    seen = set()
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for unit, (status, text) in zip(units, pool.map(lambda path: tidy(folder, path), files)):
            if status == 0:
                for path in unit:
                    stamps[path].touch()
                continue
            failed += 1
            findings = [line for line in text.splitlines() if re.search(r": (warning|error):", line)]
            for line in findings or text.splitlines()[-10:]:
                if line not in seen:  # a header's finding shows up in every file that includes it
                    seen.add(line)
                    print(line)
    print(f"tidy: {len(sources)} files, {len(todo)} read, {failed} of {len(units)} units with findings", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
