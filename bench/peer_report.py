"""Tables, ratios and bars from the samples of ./run bench peers."""

import operator
import statistics
from dataclasses import dataclass

from peer_programs import Sample


@dataclass(frozen=True)
class Plan:
    """What is measured of one model and what is asked of it. Contexts are tokens before the first decoded one."""

    file: str
    budget: int  # positions a sparse query may read
    contexts: tuple
    empty_decode: float  # bar for decode after the shortest context, over the better peer
    sparse_prefill: tuple  # (context, over the better peer) bars of sparse prefill
    deep_decode: tuple  # contexts whose sparse decode must be `deep_factor` times the better peer's
    growth: tuple = ()  # (short, long): seconds a token of sparse prefill are compared
    deep_factor: float = 2


OWN_SPEED_AT = 512  # decode far into a text is held against decode here

PLANS = {
    "smollm2-135m": Plan("SmolLM2-135M-Instruct.Q4_1.gguf", 512, (16, 512, 4096, 8000), 1.3,
                         ((8000, 3),), (8000,)),
    "qwen2.5-coder-0.5b": Plan("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", 1024, (16, 512, 2000, 16000, 30000), 1.0,
                               ((16000, 3),), (16000, 30000), (2000, 30000)),
}
# Random weights of Qwen3-8B's shape: bench/full_size.py.
FULL_SIZE = Plan("", 2048, (512, 2048, 4096, 8192), 1.0, ((2048, 1.3), (8192, 2)), (8192,), deep_factor=1)


@dataclass
class Bar:
    what: str
    value: float | None  # None: not measured
    bound: float
    upper: bool = False  # the value may be at most the bound instead of at least
    unit: str = "x"

    @property
    def met(self):
        return None if self.value is None else (operator.le if self.upper else operator.ge)(self.value, self.bound)

    def row(self):
        value = "-" if self.value is None else f"{self.value:.4g}{self.unit}"
        verdict = {None: "not measured", True: "pass", False: "MISS"}[self.met]
        return f"{self.what:<66} {value:>9}  {'<=' if self.upper else '>='} {self.bound:g}{self.unit:<2} {verdict}"

    def document(self):
        return {"bar": self.what, "value": self.value, "bound": self.bound, "at_most": self.upper, "met": self.met}


def medians(engine, context):
    samples = engine.samples.get(context)
    if not samples:
        return None
    first = [s.first for s in samples if s.first is not None]
    return Sample(statistics.median(s.prefill for s in samples), statistics.median(s.decode for s in samples),
                  max(s.peak_rss for s in samples), statistics.median(s.load for s in samples),
                  statistics.median(first) if first else None)


def best_peer(engines, context, key):
    """The better peer's median; None unless every peer was measured: the better one may be the one that was not."""
    peers = [medians(e, context) for e in engines if e.peer]
    return max(getattr(m, key) for m in peers) if peers and all(peers) else None


def over_peer(engine, engines, context, key):
    own, peer = engine and medians(engine, context), best_peer(engines, context, key)
    return getattr(own, key) / peer if own and peer else None


def table_bars(plan, engines, isa):
    """The bars on speed beside the peers and on growth with context."""
    ours = {e.name.split()[1]: e for e in engines if not e.peer}  # "dense", "sparse"
    dense, sparse = ours.get("dense"), ours.get("sparse")

    def own(context, key):
        middle = sparse and medians(sparse, context)
        return getattr(middle, key) if middle else None

    def share(a, b):
        return a / b if a and b else None

    shortest = min(plan.contexts)
    bars = [Bar("dense prefill at 512 over the better peer", over_peer(dense, engines, 512, "prefill"),
                1.5 if isa == "native" else 1.2),
            *(Bar(f"sparse prefill at {context:,} over the better peer", over_peer(sparse, engines, context, "prefill"),
                  factor) for context, factor in plan.sparse_prefill),
            Bar(f"decode, empty cache ({shortest} tokens), dense, over the better peer",
                over_peer(dense, engines, shortest, "decode"), plan.empty_decode)]
    for context in plan.deep_decode:
        bars.append(Bar(f"sparse decode at {context:,} over the better peer",
                        over_peer(sparse, engines, context, "decode"), plan.deep_factor))
        bars.append(Bar(f"sparse decode at {context:,} over its own at {OWN_SPEED_AT}",
                        share(own(context, "decode"), own(OWN_SPEED_AT, "decode")), 0.85))
    if plan.growth:
        short, long = plan.growth
        bars.append(Bar(f"sparse prefill, seconds a token at {long:,} over those at {short:,}",
                        share(own(short, "prefill"), own(long, "prefill")), 1.5, upper=True))
    return bars


def spread(samples, key):
    values = [getattr(s, key) for s in samples]
    return f"{min(values):.0f}-{max(values):.0f}" if len(values) > 1 else ""


def print_table(engines, contexts):
    print(f"{'context':>8}  {'program':<20} {'n':>2} {'prefill tok/s':>13} {'min-max':>11} {'ratio':>6} "
          f"{'decode tok/s':>12} {'min-max':>9} {'ratio':>6} {'peak MB':>8}")
    for context in contexts:
        for engine in engines:
            middle = medians(engine, context)
            if middle is None:
                why = engine.problem or engine.problems.get(context) or "not asked for"
                print(f"{context:>8}  {engine.name:<20} not measured: {why}")
                continue
            samples = engine.samples[context]
            ratios = [over_peer(engine, engines, context, key) for key in ("prefill", "decode")]
            show = [f"{r:.2f}" if r is not None else "-" for r in ratios]
            print(f"{context:>8}  {engine.name:<20} {len(samples):>2} {middle.prefill:>13.1f} "
                  f"{spread(samples, 'prefill'):>11} {show[0]:>6} {middle.decode:>12.1f} "
                  f"{spread(samples, 'decode'):>9} {show[1]:>6} {middle.peak_rss / 1e6:>8.0f}")
        print()


def print_programs(engines):
    for engine in engines:
        loads = [s.load for samples in engine.samples.values() for s in samples]
        firsts = [s.first for samples in engine.samples.values() for s in samples if s.first is not None]
        parts = [engine.version, engine.settings]
        if loads:
            parts.append(f"load {statistics.median(loads):.2f} s")
        if firsts:
            parts.append(f"load and first 16 tokens {statistics.median(firsts):.2f} s")
        if engine.problem:
            parts.append("PROBLEM: " + engine.problem)
        print(f"{engine.name}: {'; '.join(p for p in parts if p)}")
        if engine.system:
            print(f"  {engine.system}")


def print_bars(bars):
    for bar in bars:
        print(bar.row())
