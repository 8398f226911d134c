"""Markdown tables of docs/results/*.json, and their place in docs/results.md: between BEGIN and END."""

import json

BEGIN = "<!-- tables: ./run bench results --tables writes these from results/*.json -->"
END = "<!-- end of tables -->"
MODELS = {"smollm2": "SmolLM2-135M-Instruct Q4_1", "qwen2.5": "Qwen2.5-Coder-0.5B-Instruct Q4_K_M"}
MODES = ["dense", "sparse", "oracle", "recent", "random", "snap-kv", "h2o", "streaming", "quest"]


def model_name(result):
    name = result["model"].lower()
    return next((full for short, full in MODELS.items() if name.startswith(short)), result["model"])


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def by_mode(rows, cell):
    """One line a mode, one column a budget."""
    budgets = sorted({row["budget"] for row in rows if row["mode"] != "dense"})
    lines = []
    for mode in sorted({row["mode"] for row in rows}, key=MODES.index):
        cells = []
        for budget in budgets:
            found = [row for row in rows if row["mode"] == mode and (mode == "dense" or row["budget"] == budget)]
            cells.append(cell(found[0]) if found else "-")
        lines.append([mode, *cells])
    return table(["mode", *(f"K = {budget:,}" for budget in budgets)], lines)


def refined(result):
    """Which layers chose by attention itself, where the file says so."""
    layers = result.get("refine_layers")
    if not layers:
        return ""
    if len(layers) > 2 and layers[-1] - layers[0] + 1 == len(layers):
        return f" in layers {layers[0]} to {layers[-1]}"
    return f" in layers {', '.join(map(str, layers))}"


def perplexity(result):
    texts = f"{result['windows']} window{'s' if result['windows'] > 1 else ''} of {result['window']:,} tokens"
    indexer = "the indexer that ships" if result.get("indexer") else "no indexer"
    if result.get("refine_prompt"):
        indexer += f" with --refine-prompt {result['refine_prompt']}{refined(result)}"
    title = f"{model_name(result)}, {texts}, {result['tokens']:,} predictions, {indexer}; dense {result['perplexity_dense']:.3f}"
    low_high = lambda row: " to ".join(f"{bound:+.2f}" for bound in row["delta_ci95_percent"])
    return title, by_mode(result["rows"], lambda row: f"{row['delta_percent']:+.2f}% ({low_high(row)})")


def needle(result):
    def cell(row):
        low, high = (100 * bound for bound in row["wilson95"])
        # A cache that forgets has none: it cannot go back to the prompt's end.
        loss = "" if row["code_nll"] is None else f", loss {row['code_nll']:.3f}"
        return f"{row['passed']} of {row['trials']} ({low:.0f} to {high:.0f}%){loss}"

    if len({row["context"] for row in result["rows"]}) > 1:
        return card_layout(result)
    context = result["rows"][0]["context"]
    protocol = "the question in the prompt"
    if result["protocol"] == "after":
        protocol = "the question after the text was read"
    title = f"{model_name(result)}, {context:,} tokens, form {result['form']}, {protocol}"
    if result.get("refine"):
        title += f", refined among {result['refine']:,}{refined(result)}"
    return title, by_mode(result["rows"], cell)


def card_layout(result):
    """The columns of the model card's own table, which is of Qwen3-8B on an Apple machine, one trial a line."""
    rows = [[f"{row['context']:,}", f"{row['budget']:,}", f"{row['passed']} of {row['trials']}",
             f"{min(1, row['budget'] / row['context']):.1%}", f"{row['prefill_seconds']:.1f} s", f"{row['peak_rss_bytes'] / 1e9:.2f} GB"]
            for row in result["rows"] if row["mode"] == "sparse"]
    head = ["context", "top_k", "needle found", "retention", "prefill", "peak memory"]
    return f"{model_name(result)}, the columns of the model card", table(head, rows)


def gsm8k(documents):
    rows = []
    for document in sorted(documents, key=lambda d: (d["result"]["mode"] != "dense", -(d["result"].get("budget") or 0))):
        result = document["result"]
        low, high = (100 * bound for bound in result["wilson95"])
        budget = "-" if result["mode"] == "dense" else str(result["budget"])
        rows.append([result["mode"], budget, f"{result['correct']} of {result['total']}", f"{low:.0f} to {high:.0f}%",
                     document.get("note", "")])
    return table(["mode", "budget", "right", "95%", ""], rows)


def latency(result):
    rows = [[f"{row['context']:,}", row["mode"], str(row["budget"] or "-"), f"{row['prefill_tokens_per_second']:,.0f}",
             f"{row['decode_tokens_per_second']:,.0f}", f"{row['decode_positions_read']:,.0f}"] for row in result["rows"]]
    head = ["context", "mode", "K", "prefill tok/s", "decode tok/s", "positions a query reads in decode"]
    return f"{model_name(result)}, one run", table(head, rows)


def memory(result):
    mb = lambda value: f"{value / 1e6:,.1f} MB"
    rows = [[f"{row['context']:,}", mb(row["dense_kv_bytes"]), mb(row["sparse_kv_bytes"]), mb(row["sparse_index_bytes"]),
             f"{row['saved_percent_with_index']:.1f}%"] for row in result["rows"]]
    title = f"{model_name(result)}, K = {result['budget']}"
    return title, table(["context", "dense KV", "kept KV", "index", "saved, index counted"], rows)


SECTIONS = [
    ("Perplexity", "ppl", perplexity,
     "Predictions in the last quarter of each window; how far above dense, with the 95% bootstrap interval (over windows, or with "
     "fewer than 8 of them over blocks of 128 tokens, which says less of other texts). Where two files are named, the baselines' rows are "
     "over the dense figure of their own run."),
    ("Needles", "needle", needle,
     "Passed of trials with the 95% Wilson interval, and the mean loss of the code's tokens given the answer's beginning. `recent` and "
     "`random` find what lies in their reach."),
    ("Speed against context", "latency", latency, "`keysieve eval latency`; tables of different days may be of different machines."),
    ("Memory of the caches", "memory", memory, "`keysieve eval memory`: fp16 rows; kept by a cache with a fixed budget."),
]


def place(path, document):
    """Where a table comes from."""
    note = f"; {document['note']}" if "note" in document else ""
    return f"[{path.name}](results/{path.name}), {document['date']}, {document['machine']}{note}"


# Parts that ask the same of the same texts as the part whose name they add this to.
BESIDE = ("-baselines", "-oracle")


def join_baselines(documents):
    """One table of NAME and what was run beside it: (document, places)."""
    found = {path.stem: (document, [place(path, document)]) for path, document in documents}
    for path, document in documents:
        suffix = next((suffix for suffix in BESIDE if path.stem.endswith(suffix)), None)
        main = found.get(path.stem.removesuffix(suffix)) if suffix else None
        if main is None:
            continue
        rows = main[0]["result"]["rows"]
        has = {(row["mode"], row["budget"]) for row in rows}
        rows += [row for row in document["result"]["rows"] if (row["mode"], row["budget"]) not in has]
        main[1].append(place(path, document))
        del found[path.stem]
    return list(found.values())


def markdown(folder):
    documents = join_baselines([(path, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))])
    parts = []
    for heading, kind, make, words in SECTIONS:
        chosen = [entry for entry in documents if entry[0]["result"]["kind"] == kind]
        if not chosen:
            continue
        parts.append(f"## {heading}\n\n{words}")
        for document, places in chosen:
            title, body = make(document["result"])
            parts.append(f"{title} ({'; beside it '.join(places)}):\n\n{body}")
    graded = [document for document, _ in documents if document["result"]["kind"] == "gsm8k"]
    if graded:
        parts.append(f"## GSM8K\n\n{model_name(graded[0]['result'])}, 4 worked examples, greedy:\n\n{gsm8k(graded)}")
    return "\n\n".join(parts) + "\n"


def write(page, folder):
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise SystemExit(f"results: {page} has no place for the tables ({BEGIN} ... {END})")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(folder)}\n{END}{after}")
