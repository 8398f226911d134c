#!/usr/bin/env python3
"""Opens a page of `keysieve report` in headless Chromium: no console errors, marks in the plots, a reading drawn;
light, dark and on paper. Without a page it makes one of the small results below. Skips (77) without Chromium."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SKIPPED = 77


def small_results():
    modes = ("sparse", "oracle", "recent")
    rows = [{"mode": mode, "budget": budget, "perplexity": 20.0, "delta_percent": 4 - i + 64 / budget,
             "delta_ci95_percent": [3 - i + 64 / budget, 5 - i + 64 / budget]}
            for i, mode in enumerate(modes) for budget in (128, 256, 512)]
    yield {"kind": "ppl", "model": "<img src=x onerror=console.error(1)>", "perplexity_dense": 19.0, "tokens": 1024,
           "window": 4096, "windows": 1, "rows": rows}
    yield {"kind": "needle", "model": "m",
           "rows": [{"context": 4096, "mode": "dense", "budget": 0, "passed": 2, "trials": 3}],
           "trials": [{"context": 4096, "mode": "dense", "depth": d, "passed": d < 0.7} for d in (0.1, 0.5, 0.9)]}
    yield {"kind": "reading", "model": "m", "mode": "sparse", "budget": 2, "heads": 2, "queries": [2, 3],
           "tokens": ["a", "</script>", "<b>", "\u00e9"],
           "layers": [{"captured": 0.9, "best": 0.95, "recent": 0.4, "reads": ["201", "1021"]}] * 3}


def chromium(program, profile, *arguments):
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               f"--user-data-dir={profile}", "--window-size=1100,3000", "--virtual-time-budget=3000",
               "--enable-logging=stderr", "--v=0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def check(page, program, folder, keep):
    """A list of what is wrong."""
    problems = []
    address = page.resolve().as_uri()
    profile = folder / "profile"
    opened = chromium(program, profile, "--dump-dom", address)
    if opened.returncode != 0:
        return [f"Chromium ended with {opened.returncode}: {opened.stderr[-400:]}"]
    problems += [f"console: {line}" for line in opened.stderr.splitlines() if ":CONSOLE" in line]
    dom = opened.stdout
    if 'data-ready="yes"' not in dom:
        problems.append("the page's script did not run to its end")
    if not re.search(r'<circle class="mark"', dom):
        problems.append("no marks in any plot")
    if '"application/json"' in dom and not re.search(r'<canvas[^>]* width="[1-9]', dom):
        problems.append("a reading was not drawn")
    sizes = {}
    for name, options in (("light", ["--blink-settings=preferredColorScheme=1"]),
                          ("dark", ["--blink-settings=preferredColorScheme=0"])):
        picture = keep / f"{name}.png"
        chromium(program, profile, *options, f"--screenshot={picture}", address)
        sizes[name] = picture.read_bytes() if picture.exists() else b""
        if len(sizes[name]) < 10000:
            problems.append(f"{name}: an empty picture ({len(sizes[name])} bytes)")
    if sizes["light"] == sizes["dark"]:
        problems.append("dark mode looks like light mode")
    paper = keep / "paper.pdf"
    chromium(program, profile, "--no-pdf-header-footer", f"--print-to-pdf={paper}", address)
    if not paper.exists() or paper.stat().st_size < 10000:
        problems.append("nothing on paper")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--keysieve", default=os.environ.get("KEYSIEVE_PROGRAM", "build/keysieve"))
    parser.add_argument("--keep", type=Path, help="a folder for the pictures")
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        print("check_page: skipped, there is no chromium", file=sys.stderr)
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="keysieve-page-") as name:
        folder = Path(name)
        page = options.page
        if page is None:
            files = []
            for number, result in enumerate(small_results()):
                files.append(folder / f"{number}.json")
                files[-1].write_text(json.dumps(result))
            page = folder / "report.html"
            subprocess.run([options.keysieve, "report", *map(str, files), "--out", str(page)], check=True,
                           stdout=subprocess.DEVNULL)
        keep = options.keep or folder
        keep.mkdir(parents=True, exist_ok=True)
        problems = check(page, program, folder, keep)
    for problem in problems:
        print(f"check_page: {problem}", file=sys.stderr)
    print(f"check_page: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
