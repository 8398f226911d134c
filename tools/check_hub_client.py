#!/usr/bin/env python3
"""Holds `keysieve pull` to the Python client of the Hub (huggingface_hub, from the package index): what one of them
fetched the other finds, without a connection; what one left half done the other goes on with; each waits for the
other's lock. Both download from a small Hub on this machine. Skips (77) where the client cannot be installed."""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SKIPPED = 77
ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / ".cache" / "hub-client"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
REPOSITORY = "org/model"


def install_client():
    """The folder to import the client from; None where the package index cannot be reached."""
    done = CLIENT / "installed"
    if done.exists():
        return CLIENT
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--require-hashes", "--upgrade", "--target", str(CLIENT), "-r", str(ROOT / "tools" / "hub_client.txt")]
    if subprocess.run(command, check=False).returncode != 0:
        return None
    done.touch()
    return CLIENT


def make_files():
    """{name: (bytes, whether it is a large one)}"""
    shapes = random.Random(1)
    header = json.dumps({"a": {"dtype": "F32", "shape": [65536], "data_offsets": [0, 262144]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + shapes.randbytes(262144)
    return {"config.json": (b'{"model_type": "llama"}', False),
            "tokenizer.json": (b'{"model": {"type": "BPE"}}', False),
            "model.safetensors": (weights, True)}


def etag(content, large):
    return hashlib.sha256(content).hexdigest() if large else \
        hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    files = make_files()
    gets = []

    def log_message(self, *arguments):
        pass

    def reply(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def reply_bytes(self, content, headers):
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes="):].split("-")[0])
        self.gets.append((self.command, self.path, start))
        if start:
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.reply(206 if start else 200, headers, content[start:])

    def do_GET(self):
        host = f"http://{self.headers['Host']}"
        name = self.path.rsplit("/", 1)[-1]
        if self.path.startswith(f"/api/models/{REPOSITORY}/revision/"):
            listing = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": file} for file in self.files]}
            self.reply(200, {"Content-Type": "application/json"}, json.dumps(listing).encode())
        elif self.path.startswith("/storage/"):
            self.reply_bytes(self.files[name][0], {"ETag": '"of-the-storage"'})
        elif self.path.startswith(f"/{REPOSITORY}/resolve/") and name in self.files:
            content, large = self.files[name]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag(content, large)}"'}
            if large:
                headers |= {"X-Linked-Etag": f'"{etag(content, large)}"', "X-Linked-Size": str(len(content)),
                            "Location": f"{host}/storage/{name}"}
                self.reply(302, headers, b"")
            else:
                self.reply_bytes(content, headers)
        else:
            self.reply(404, {"X-Error-Code": "EntryNotFound"}, b"")

    do_HEAD = do_GET


class Bench:
    """Both programs, with a cache of their own each time."""

    def __init__(self, keysieve, client, endpoint, folder):
        self.keysieve, self.client, self.folder = keysieve, client, folder
        kept = {key: value for key, value in os.environ.items()
                if not key.startswith("HF_") and not key.lower().endswith("_proxy")}
        self.environment = kept | {"HF_ENDPOINT": endpoint, "PYTHONPATH": str(client), "HF_HUB_DISABLE_XET": "1",
                                   "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.caches = 0

    def fresh_cache(self):
        self.caches += 1
        home = self.folder / f"home{self.caches}"
        self.environment["HF_HOME"] = str(home)
        return home / "hub"

    def pull(self):
        done = subprocess.run([self.keysieve, "pull", REPOSITORY, "--json"], env=self.environment,
                              capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            sys.exit(f"keysieve pull failed: {done.stderr}")
        return json.loads(done.stdout)

    def python(self, code, **more):
        done = subprocess.run([sys.executable, "-c", code], env=self.environment | more, capture_output=True,
                              text=True, timeout=60, check=False)
        if done.returncode != 0:
            sys.exit(f"the Python client failed:\n{done.stderr[-2000:]}")
        return done.stdout.strip()


SNAPSHOT = f"from huggingface_hub import snapshot_download; print(snapshot_download('{REPOSITORY}'))"
SCAN = """from huggingface_hub import scan_cache_dir
info = scan_cache_dir()
assert not info.warnings, info.warnings
(repository,) = info.repos
print(repository.repo_id, repository.nb_files, sorted(r.commit_hash for r in repository.revisions))"""
HOLD = """import sys
from huggingface_hub.utils import WeakFileLock
with WeakFileLock(sys.argv[1]):
    print('held', flush=True)
    sys.stdin.readline()"""


def expect(truth, what):
    if not truth:
        sys.exit(f"FAILED: {what}")
    print(f"hub client: {what}")


def check_ours_found_by_client(bench):
    bench.fresh_cache()
    pulled = bench.pull()
    folder = bench.python(SNAPSHOT, HF_HUB_OFFLINE="1")
    expect(folder == pulled["folder"], "the client finds offline what keysieve fetched")
    before = len(Hub.gets)
    bench.python(SNAPSHOT)
    expect(not [get for get in Hub.gets[before:] if get[0] == "GET"], "online it fetches none of it again")
    expect(bench.python(SCAN) == f"{REPOSITORY} 3 ['{COMMIT}']", "its scan of the cache has no complaint")


def check_clients_found_by_us(bench):
    bench.fresh_cache()
    folder = bench.python(SNAPSHOT)
    pulled = bench.pull()
    expect(pulled["folder"] == folder and pulled["bytes_fetched"] == 0, "keysieve finds what the client fetched")


def leave_half(cache):
    content, large = Hub.files["model.safetensors"]
    blobs = cache / f"models--{REPOSITORY.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{etag(content, large)}.incomplete").write_bytes(content[:100000])


def check_halves(bench):
    leave_half(bench.fresh_cache())
    pulled = bench.pull()
    expect(pulled["bytes"] - pulled["bytes_fetched"] == 100000, "keysieve goes on with the client's half file")
    leave_half(bench.fresh_cache())
    before = len(Hub.gets)
    folder = Path(bench.python(SNAPSHOT))
    expect(("GET", "/storage/model.safetensors", 100000) in Hub.gets[before:],
           "the client goes on with keysieve's")
    expect((folder / "model.safetensors").read_bytes() == Hub.files["model.safetensors"][0], "and ends with the file")


def check_locks(bench):
    cache = bench.fresh_cache()
    locks = cache / ".locks" / f"models--{REPOSITORY.replace('/', '--')}"
    locks.mkdir(parents=True)
    path = locks / f"{etag(*Hub.files['model.safetensors'])}.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], env=bench.environment, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:
        holder.stdout.readline()
        with subprocess.Popen([bench.keysieve, "pull", REPOSITORY], env=bench.environment,
                              stdout=subprocess.DEVNULL) as puller:
            time.sleep(1)
            waiting = puller.poll() is None
            holder.stdin.write("\n")
            holder.stdin.flush()
            status = puller.wait(timeout=60)
    expect(waiting and status == 0, "keysieve waits for the client's lock")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keysieve", type=Path, default=ROOT / "build" / "keysieve")
    arguments = parser.parse_args()
    client = install_client()
    if client is None:
        print("hub client: skipped, huggingface_hub cannot be installed here")
        return SKIPPED
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(str(arguments.keysieve.resolve()), client, f"http://127.0.0.1:{server.server_port}", Path(folder))
        check_ours_found_by_client(bench)
        check_clients_found_by_us(bench)
        check_halves(bench)
        check_locks(bench)
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
