#!/usr/bin/env python3
"""Holds every #include to the table of rooms, every file to a readable length, and every use of a common header to an
#include of it.

ROOMS is the one place the table lives. A room is a folder of src/; it may include itself, the rooms its row names,
and <keysieve/error.h>. "public" stands for the headers in include/keysieve/.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOMS = {
    "core": set(),
    "formats": {"core"},
    "hub": {"core", "formats", "public"},
    "text": {"core", "formats"},
    "kernels": {"core"},
    "indexer": {"core", "kernels", "formats"},
    "cache": {"core", "kernels"},
    "model": {"core", "formats", "kernels", "indexer", "cache"},
    "generate": {"core", "formats", "model", "text", "cache", "indexer", "public"},
    "train": {"core", "model", "indexer", "cache", "kernels", "formats", "text"},
    "eval": {"core", "generate", "model", "indexer", "cache", "text", "public"},
    "report": {"core"},
    "server": {"core", "public"},
    "cli": {"core", "server", "train", "eval", "report", "public"},
}
EVERY_ROOM = set(ROOMS) | {"public"}

SOURCE_FOLDERS = ("src", "include", "tests", "examples", "bench", "fuzz")
SOURCE_SUFFIXES = {".cpp", ".h", ".inc", ".cu"}
LENGTH_FOLDERS = SOURCE_FOLDERS + ("tools", "cmake")
LENGTH_SUFFIXES = SOURCE_SUFFIXES | {".py", ".sh", ".cmake", ".txt"}
LONGEST_FILE = 600
COMMON = "keysieve/error.h"
# Libraries whose own headers ask to be included with quotes.
EXTERNAL_QUOTED = ("hwy/",)

# The headers that are compiled once for all (cmake/rooms.cmake): a file that lacks one would build all the same.
PRECOMPILED = {
    "algorithm": r"std::(ranges::)?(sort|stable_sort|partial_sort|nth_element|min|max|clamp|find|find_if|copy|copy_n|fill|"
                 r"all_of|any_of|none_of|reverse|lower_bound|upper_bound|max_element|min_element|transform|equal)\(",
    "array": r"std::array\b",
    "filesystem": r"std::filesystem\b",
    "functional": r"std::function\b",
    "map": r"std::map\b",
    "memory": r"std::(unique_ptr|shared_ptr|weak_ptr|make_unique|make_shared)\b",
    "optional": r"std::(optional|nullopt)\b",
    "span": r"std::span\b",
    "string": r"std::(string|to_string)\b",
    "vector": r"std::vector\b",
    "fmt/format.h": r"fmt::format\b",
    "nlohmann/json.hpp": r"nlohmann::",
}
PRECOMPILED_FOLDERS = ("src", "include")
COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


@dataclass(frozen=True)
class Finding:
    path: str
    line: int
    message: str

    def __str__(self):
        return f"{self.path}:{self.line}: {self.message}"


def may_include(path):
    """(what the file is, the rooms it may include) for a path relative to the root; None: no such room."""
    parts = path.parts
    if parts[0] == "src":
        room = parts[1] if len(parts) > 2 else None
        return (f"src/{room}", ROOMS[room] | {room}) if room in ROOMS else None
    if parts[0] == "include":
        return "a public header", {"public"}
    if parts[0] == "examples":
        return "an example", {"public"}
    if parts[0] == "tests":
        room = parts[1] if len(parts) > 2 else None
        if room == "support":
            return "tests/support", EVERY_ROOM - {"cli", "server"} | {"tests/support"}
        if room in ROOMS:
            return f"tests/{room}", ROOMS[room] | {room, "core", "formats", "tests/support", f"tests/{room}"}
        return None
    return parts[0], EVERY_ROOM - {"cli"}


def owner(root, path, target, quoted):
    """Whose header `target` is: a room, "public", "tests/X", "beside", "external" or "missing"."""
    if target.startswith("keysieve/"):
        return "public" if (root / "include" / target).is_file() else "missing"
    first = target.split("/")[0]
    if (root / "src" / target).is_file() and first in ROOMS:
        return first
    if (root / "tests" / target).is_file():
        return f"tests/{first}" if "/" in target else "tests"
    if not quoted or target.startswith(EXTERNAL_QUOTED):
        return "external"
    beside = (root / path).parent / target
    if beside.is_file():
        inside = beside.resolve().relative_to(root.resolve())
        if inside.parts[0] == "src" and len(inside.parts) > 2:
            return inside.parts[1]
        return "beside" if inside.parent == Path(path).parent else str(inside.parent)
    return "missing"


def source_files(root, folders, suffixes):
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.suffix in suffixes:
                yield path.relative_to(root)


def check_includes(root):
    for path in source_files(root, SOURCE_FOLDERS, SOURCE_SUFFIXES):
        row = may_include(path)
        if row is None:
            yield Finding(str(path), 1, "this folder is no room; the rooms are in tools/check_rooms.py")
            continue
        what, allowed = row
        text = (root / path).read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            match = INCLUDE.match(line)
            if not match or match[2] == COMMON:
                continue
            target = match[2]
            found = owner(root, path, target, match[1] == '"')
            if found in ("external", "beside") or found in allowed:
                continue
            if found == "missing":
                yield Finding(str(path), number, f'"{target}" is no file of this repository; write <...> for others')
            else:
                rooms = ", ".join(sorted(allowed - {f"tests/{r}" for r in ROOMS})) or "nothing"
                yield Finding(str(path), number, f'{what} may not include "{target}" ({found}); it may: {rooms}')


def includes_of(root, path):
    """(the files of ours, the names) that a file includes, directly or not; itself is among the files, and a name is
    looked for beside the file that has it and from each of the roots."""
    files, names, todo = set(), set(), [root / path]
    while todo:
        at = todo.pop()
        if at in files:
            continue
        files.add(at)
        for line in at.read_text(encoding="utf-8", errors="replace").splitlines():
            match = INCLUDE.match(line)
            if not match:
                continue
            names.add(match[2])
            places = (folder / match[2] for folder in (at.parent, root / "src", root / "include", root))
            found = next((place for place in places if place.is_file()), None)
            if found:
                todo.append(found.resolve())
    return files, names


def check_precompiled(root):
    for path in source_files(root, PRECOMPILED_FOLDERS, {".cpp", ".h"}):
        text = (root / path).read_text(encoding="utf-8", errors="replace")
        code = COMMENT_OR_STRING.sub(lambda match: "\n" * match[0].count("\n"), text)
        names = includes_of(root, path)[1]
        for header, use in PRECOMPILED.items():
            found = None if header in names else re.search(use, code)
            if found:
                line = code.count("\n", 0, found.start()) + 1
                yield Finding(str(path), line, f"{found[0].rstrip('(')} is used without #include <{header}>")


def check_lengths(root):
    for path in source_files(root, LENGTH_FOLDERS, LENGTH_SUFFIXES):
        with open(root / path, "rb") as file:
            lines = sum(1 for _ in file)
        if lines > LONGEST_FILE:
            yield Finding(str(path), lines, f"{lines} lines, at most {LONGEST_FILE}: split it by what it does")


def all_findings(root):
    return [*check_includes(root), *check_precompiled(root), *check_lengths(root)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    root = parser.parse_args().root
    findings = all_findings(root)
    for finding in findings:
        print(finding)
    count = sum(1 for _ in source_files(root, SOURCE_FOLDERS, SOURCE_SUFFIXES))
    print(f"check_rooms: {count} files, {len(findings)} findings", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
