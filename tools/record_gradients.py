"""Records what automatic differentiation says of the training losses: tests/data/gradients.safetensors.

The losses and both indexer shapes are written out again here, from their definitions and not from the C++, in
JAX and double precision; the gradients are JAX's. To record them anew (not needed to build or test):

    python3 -m venv .cache/jax && .cache/jax/bin/pip install jax==0.10.2
    .cache/jax/bin/python tools/record_gradients.py tests/data/gradients.safetensors
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

TOKENS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 72, 20, 6, 2, 8
THETA, NORM_EPS = 10000.0, 1e-5
LOSS = {"divergence": 0.9, "support": 0.3, "margin": 1.2, "decisive": 0.04, "focus": 0.5,
        "budget": 22, "sinks": 2, "recent": 5}


def attention(q, k, query, head):
    keys = k[: query + 1, head // (HEADS // KV_HEADS)]
    return jax.nn.softmax(keys @ q[query, head] / np.sqrt(HEAD_DIM))


def kept(p):
    """The mass on keys that are read whatever they score."""
    return p[: LOSS["sinks"]].sum() + p[p.shape[0] - LOSS["recent"]:].sum()


def chosen_part(p):
    return p[LOSS["sinks"]: p.shape[0] - LOSS["recent"]]


def divergence(teacher, student):
    """KL(T || P) with the kept keys as one outcome."""
    t, p = chosen_part(teacher), chosen_part(student)
    return (t * jnp.log(t / p)).sum() + kept(teacher) * jnp.log(kept(teacher) / kept(student))


def best(scores):
    """Indices of the keys that a budget leaves room for, by score; of the chosen part."""
    room = LOSS["budget"] - LOSS["sinks"] - LOSS["recent"]
    return np.argsort(-np.asarray(scores), kind="stable")[:room]


def row_loss(teacher_heads, student, student_heads, weights):
    teacher = teacher_heads.mean(0)
    peak = np.asarray(chosen_part(teacher_heads.max(0)))
    t, p = chosen_part(teacher), chosen_part(student)
    target = best(t)
    loss = LOSS["divergence"] * divergence(teacher, student)
    loss -= LOSS["support"] * jnp.log(kept(student) + p[target].sum())
    # Which keys are selected, and which of them is the last, is a constant to the gradient.
    selected = best(jax.lax.stop_gradient(p))
    last = p[selected[-1]]
    for s in target:
        if peak[s] >= LOSS["decisive"]:
            lack = LOSS["margin"] + jnp.log(last / p[s])
            loss += weights["cut"] * peak[s] * jnp.maximum(lack, 0.0)
    if student_heads is not None:
        per_head = [divergence(a, b) for a, b in zip(teacher_heads, student_heads)]
        loss += weights["head_divergence"] * sum(per_head) / len(per_head)
    return loss * t.sum() ** LOSS["focus"]


def native_loss(weights, tensors, inputs, case):
    q, k, queries = inputs["q"], inputs["k"], inputs["queries"]
    total = 0.0
    group_heads = HEADS // KV_HEADS
    sets = [range(HEADS)] if case["shared"] else [range(g * group_heads, (g + 1) * group_heads)
                                                  for g in range(KV_HEADS)]
    for query in queries:
        for heads in sets:
            teacher, student = [], []
            for head in heads:
                group = head // group_heads
                query_map = tensors["q"][head if case["map_per_head"] else group]
                keys = k[: query + 1, group] @ tensors["k"][group].T
                teacher.append(attention(q, k, query, head))
                student.append(jax.nn.softmax(keys @ (query_map @ q[query, head])))
            student = jnp.stack(student)
            total += row_loss(jnp.stack(teacher), student.mean(0), student, weights)
    return total


def rotate(x, positions, rope_dim):
    """x [tokens, heads, dim]; the first rope_dim values, pairs half of them apart."""
    half = rope_dim // 2
    angle = positions[:, None] * THETA ** (-2.0 * np.arange(half) / rope_dim)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:rope_dim]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., rope_dim:]], -1)


def project(x, tensors, part):
    y = x @ tensors[part].T
    if part + "_bias" in tensors:
        y = y + tensors[part + "_bias"]
    if part + "_norm" in tensors:
        y = y / jnp.sqrt((y * y).mean(-1, keepdims=True) + NORM_EPS) * tensors[part + "_norm"]
    return y


def lightning_loss(weights, tensors, inputs, case):
    x, queries = inputs["hidden"], np.asarray(inputs["queries"])
    heads, dim = case["heads"], case["dim"]
    keys = rotate(project(x, tensors, "k")[:, None], np.arange(TOKENS), case["rope_dim"])[:, 0]
    q = project(x[queries], tensors, "q").reshape(len(queries), heads, dim)
    q = rotate(q, queries, case["rope_dim"])
    head_weight = x[queries] @ tensors["head_weight"].T / np.sqrt(heads * dim)
    total = 0.0
    for i, query in enumerate(queries):
        score = head_weight[i] @ jax.nn.relu(q[i] @ keys[: query + 1].T)
        teacher = jnp.stack([attention(inputs["q"], inputs["k"], query, h) for h in range(HEADS)])
        total += row_loss(teacher, jax.nn.softmax(score), None, weights)
    return total


def cases(random):
    def values(spread, *shape, centre=0.0):
        return centre + spread * random.standard_normal(shape)

    maps = {"q": values(0.3, KV_HEADS, 5, HEAD_DIM), "k": values(0.4, KV_HEADS, 5, HEAD_DIM)}
    a_head = {"q": values(0.3, HEADS, 5, HEAD_DIM), "k": values(0.4, KV_HEADS, 5, HEAD_DIM)}
    shape = {"heads": 3, "dim": 7, "rope_dim": 4}
    plain = {"q": values(0.2, 21, HIDDEN), "k": values(0.2, 7, HIDDEN), "head_weight": values(0.5, 3, HIDDEN)}
    whole = plain | {"q_bias": values(0.2, 21), "k_bias": values(0.2, 7),
                     "q_norm": values(0.2, 21, centre=1), "k_norm": values(0.2, 7, centre=1)}
    yield "native", native_loss, maps, {"shared": False, "map_per_head": False}
    yield "native_map_per_head_shared", native_loss, a_head, {"shared": True, "map_per_head": True}
    yield "lightning", lightning_loss, plain, shape
    yield "lightning_bias_norm", lightning_loss, whole, shape


def write_safetensors(path, tensors, metadata):
    header, blocks, offset = {"__metadata__": metadata}, [], 0
    for name, array in tensors.items():
        data = array.tobytes()
        header[name] = {"dtype": {"float32": "F32", "int32": "I32"}[str(array.dtype)],
                        "shape": list(array.shape), "data_offsets": [offset, offset + len(data)]}
        blocks.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(blocks))


def main():
    random = np.random.default_rng(20261125)
    rounded = lambda *shape, spread: (spread * random.standard_normal(shape)).astype(np.float32)
    inputs = {"hidden": rounded(TOKENS, HIDDEN, spread=1.0), "q": rounded(TOKENS, HEADS, HEAD_DIM, spread=1.5),
              "k": rounded(TOKENS, KV_HEADS, HEAD_DIM, spread=1.5)}
    queries = np.sort(random.choice(np.arange(LOSS["budget"] + 4, TOKENS), 17, replace=False)).astype(np.int32)
    out = dict(inputs) | {"queries": queries}
    exact = {name: value.astype(np.float64) for name, value in inputs.items()} | {"queries": queries.tolist()}
    for name, loss, start, case in cases(random):
        start = {part: value.astype(np.float32) for part, value in start.items()}
        weights = {"cut": 0.8, "head_divergence": 0.7}
        double = {part: jnp.asarray(value, jnp.float64) for part, value in start.items()}
        total, gradients = jax.value_and_grad(lambda t: loss(weights, t, exact, case))(double)
        out[f"{name}.loss"] = np.asarray([total], np.float32)
        for part, value in start.items():
            out[f"{name}.start.{part}"] = value
            out[f"{name}.gradient.{part}"] = np.asarray(gradients[part], np.float32)
        print(name, float(total), {part: float(abs(g).max()) for part, g in gradients.items()})
    write_safetensors(sys.argv[1], out, {"recorded_by": "tools/record_gradients.py", "jax": jax.__version__})


if __name__ == "__main__":
    main()
