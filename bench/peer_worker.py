#!/usr/bin/env python3
"""Runs one peer once and prints one JSON object. Started by peers.py inside the peers' own environment.

Both peers are driven through their C API: llama_decode in chunks of n_batch, as their own benchmark tool does, so
Python costs microseconds a call. Peak memory is counted from after the libraries are loaded, so the interpreter is
not held against the peer.
"""

import argparse
import ctypes
import json
import os
import sys
import time
from pathlib import Path

WARM_UP_TOKENS = 16
BATCH = 2048


def memory_kib(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    return 0


class Peer:
    """What the two C APIs do alike; `settings` are the tunable ones: ubatch and repack."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.threads = arguments.threads

    def decode(self, ids):
        array = (ctypes.c_int32 * len(ids))(*ids)
        for start in range(0, len(ids), BATCH):
            count = min(BATCH, len(ids) - start)
            at = ctypes.cast(ctypes.byref(array, start * 4), ctypes.POINTER(ctypes.c_int32))
            status = self.decode_chunk(at, count, start)
            if status != 0:
                raise RuntimeError(f"llama_decode returned {status} at token {start} of {len(ids)}")
        self.synchronize()


class LlamaCpp(Peer):
    """llama-cpp-python."""

    def __init__(self, arguments):
        super().__init__(arguments)
        import llama_cpp.llama_cpp as api

        self.api = api
        self.baseline_kib = memory_kib("VmRSS:")
        self.start = time.perf_counter()
        self.silence = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self.silence, None)
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = arguments.repack
        self.model = api.llama_model_load_from_file(os.fsencode(arguments.model), params)
        if not self.model:
            raise RuntimeError("the model did not load")

    def open(self, tokens):
        api = self.api
        params = api.llama_context_default_params()
        params.n_ctx = (tokens + 255) // 256 * 256
        params.n_batch = BATCH
        params.n_ubatch = self.arguments.ubatch
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = 1  # f16
        params.no_perf = True
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("no context")

    def clear(self):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def decode_chunk(self, tokens, count, position):
        return self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, count))

    def synchronize(self):
        self.api.llama_synchronize(self.context)

    def tokenize(self, text):
        data = text.encode()
        vocab = self.api.llama_model_get_vocab(self.model)
        buffer = (ctypes.c_int32 * (len(data) + 8))()
        count = self.api.llama_tokenize(vocab, data, len(data), buffer, len(buffer), False, False)
        return list(buffer[:count])

    def piece(self, token):
        vocab = self.api.llama_model_get_vocab(self.model)
        buffer = ctypes.create_string_buffer(256)
        count = self.api.llama_token_to_piece(vocab, token, buffer, 256, 0, True)
        return buffer.raw[:max(count, 0)]

    def version(self):
        import llama_cpp

        return f"llama-cpp-python {llama_cpp.__version__}"

    def system(self):
        return self.api.llama_print_system_info().decode()


class IkLlamaCpp(Peer):
    """ik-llama-cpp-python."""

    def __init__(self, arguments):
        super().__init__(arguments)
        import ik_llama_cpp._ctypes_api as api

        self.api = api
        lib = api._lib
        lib.llama_synchronize.argtypes = [ctypes.c_void_p]
        lib.llama_synchronize.restype = None
        lib.llama_print_system_info.restype = ctypes.c_char_p
        lib.llama_batch_get_one.argtypes = [ctypes.POINTER(ctypes.c_int32), ctypes.c_int32, ctypes.c_int32,
                                            ctypes.c_int32]
        lib.llama_batch_get_one.restype = api.llama_batch
        self.lib = lib
        self.baseline_kib = memory_kib("VmRSS:")
        self.start = time.perf_counter()
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        params.repack_tensors = arguments.repack
        if arguments.repack:
            params.use_mmap = False
        self.model = api.llama_model_load_from_file(os.fsencode(arguments.model), params)
        if not self.model:
            raise RuntimeError("the model did not load")

    def open(self, tokens):
        api = self.api
        params = api.llama_context_default_params()
        params.n_ctx = (tokens + 255) // 256 * 256
        params.n_batch = BATCH
        params.n_ubatch = self.arguments.ubatch
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn = True
        params.type_k = params.type_v = 1  # f16
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("no context")
        self.position = 0

    def clear(self):
        self.api.llama_kv_cache_clear(self.context)
        self.position = 0

    def decode_chunk(self, tokens, count, position):
        status = self.api.llama_decode(self.context, self.lib.llama_batch_get_one(tokens, count, self.position, 0))
        self.position += count
        return status

    def synchronize(self):
        self.lib.llama_synchronize(self.context)

    def version(self):
        from importlib.metadata import version

        return f"ik-llama-cpp-python {version('ik-llama-cpp-python')}"

    def system(self):
        return self.lib.llama_print_system_info().decode()


def perplexity(arguments):
    """As llama.cpp's own perplexity tool has it: windows one after another, the second half of each counted but for its
    first token, each window's first token replaced by the begin-of-text token where the model adds one."""
    import numpy

    peer = LlamaCpp(arguments)
    api, window = peer.api, arguments.context
    vocab = api.llama_model_get_vocab(peer.model)
    ids = peer.tokenize(Path(arguments.perplexity).read_text(encoding="utf-8"))
    adds_start = api.llama_vocab_get_add_bos(vocab)
    if adds_start:
        ids = [api.llama_vocab_bos(vocab), *ids]
    size = api.llama_vocab_n_tokens(vocab)
    peer.open(window)
    batch = api.llama_batch_init(window, 0, 1)
    total, count = 0.0, 0
    for chunk in range(min(arguments.windows or len(ids), len(ids) // window)):
        part = ids[chunk * window:(chunk + 1) * window]
        if adds_start:
            part[0] = api.llama_vocab_bos(vocab)
        peer.clear()
        batch.n_tokens = window
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= window // 2
        if api.llama_decode(peer.context, batch) != 0:
            raise RuntimeError(f"llama_decode failed in window {chunk}")
        for i in range(window // 2, window - 1):
            row = numpy.ctypeslib.as_array(api.llama_get_logits_ith(peer.context, i), (size,)).astype(numpy.float64)
            top = row.max()
            total += top + numpy.log(numpy.exp(row - top).sum()) - row[part[i + 1]]
            count += 1
    return {"perplexity": float(numpy.exp(total / count)), "tokens": count, "version": peer.version()}


PEERS = {"llama.cpp": LlamaCpp, "ik_llama.cpp": IkLlamaCpp}


def measure(peer, ids, context, decode_tokens):
    """Prefills `context` tokens of the text, then feeds its next tokens one by one.

    The tokens of decode come from the text too: an arg-max in Python would be charged to the peer.
    """
    start = time.perf_counter()
    peer.open(context + decode_tokens + WARM_UP_TOKENS)
    peer.decode(ids[:WARM_UP_TOKENS])
    first = time.perf_counter() - start
    peer.decode(ids[:1])
    peer.clear()
    start = time.perf_counter()
    peer.decode(ids[:context])
    prefill = time.perf_counter() - start
    start = time.perf_counter()
    for index in range(context, context + decode_tokens):
        peer.decode(ids[index:index + 1])
    decode = time.perf_counter() - start
    return {"prefill_tokens": context, "prefill_seconds": prefill, "decode_tokens": decode_tokens,
            "decode_seconds": decode, "first_seconds": first}


def tokenize(arguments):
    """The ids of a text, and the text that ends after each of the contexts asked for."""
    peer = LlamaCpp(arguments)
    text = Path(arguments.tokenize).read_text(encoding="utf-8")[:arguments.longest * 12]
    ids = peer.tokenize(text)[:arguments.longest]
    pieces = [peer.piece(token) for token in ids]
    ends = []
    length = 0
    for piece in pieces:
        length += len(piece)
        ends.append(length)
    return {"ids": ids, "ends": ends, "bytes": b"".join(pieces).decode("latin-1")}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ubatch", type=int, default=512)
    parser.add_argument("--repack", action="store_true")
    parser.add_argument("--ids", help="a JSON file with the token ids of the text")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=32)
    parser.add_argument("--tokenize", help="tokenize this text file instead of measuring")
    parser.add_argument("--longest", type=int, default=0)
    parser.add_argument("--perplexity", help="measure the perplexity of this text file instead (llama.cpp)")
    parser.add_argument("--windows", type=int, default=0, help="of --context tokens; 0: all")
    arguments = parser.parse_args()

    # The libraries write to stdout and stderr as they please; the result goes to the stdout we were given.
    result_file = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if arguments.tokenize:
        result = tokenize(arguments)
    elif arguments.perplexity:
        result = perplexity(arguments)
    else:
        peer = PEERS[arguments.peer](arguments)
        load = time.perf_counter() - peer.start
        result = measure(peer, json.loads(Path(arguments.ids).read_text())["ids"], arguments.context,
                         arguments.decode_tokens)
        result["load_seconds"] = load
        result["first_seconds"] += load
        result["peak_rss_bytes"] = (memory_kib("VmHWM:") - peer.baseline_kib) * 1024
        result["version"] = peer.version()
        result["system"] = peer.system()
    json.dump(result, result_file)
    result_file.flush()
    # Skip the libraries' exit handlers: nothing there is part of the measurement.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
