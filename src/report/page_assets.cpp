#include "report/page_assets.h"

namespace keysieve::report {

// Colours of the modes: Okabe and Ito's set, which eyes without red or green can tell apart.
const char* const kStyle = R"css(
:root { color-scheme: light dark; --page: #ffffff; --card: #ffffff; --ink: #16191d; --muted: #5b6470;
  --line: #e3e6ea; --zero: #9aa2ad; --accent: #0072b2; --cell: #eef2f6; --warn: #8a4b00;
  --dense: #16191d; --sparse: #0072b2; --oracle: #00875f; --recent: #c77700; --random: #7d8590;
  --quest: #b0568f; --snap: #c84a00; --h2o: #3093c7; --streaming: #7d6429; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #191d22; --ink: #e8eaed;
  --muted: #a2abb6; --line: #2c323a; --zero: #6b7480; --accent: #3f9fdc; --cell: #222830; --warn: #f0b060;
  --dense: #f0f2f4; --sparse: #56aef0; --oracle: #2fc295; --recent: #eda52e; --random: #939ca7;
  --quest: #d98abf; --snap: #f5814a; --h2o: #86cdf2; --streaming: #c0a566; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 60rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.4rem; }
h2 { font-size: 1.35rem; margin: 3.2rem 0 0.3rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 0 0 0.6rem; font-weight: 600; }
h4 { font-size: 0.88rem; margin: 0 0 0.2rem; font-weight: 600; }
.lead, .intro, .none { color: var(--muted); margin: 0.2rem 0 1rem; max-width: 44rem; }
.none { font-style: italic; }
.warning { color: var(--warn); }
nav { display: flex; flex-wrap: wrap; gap: 0.35rem 1.1rem; margin: 1.2rem 0 0; font-size: 0.92rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
figure { margin: 1.4rem 0 0.8rem; } 
figcaption { color: var(--muted); font-size: 0.88rem; max-width: 44rem; margin-top: 0.35rem; }
svg { display: block; width: 100%; height: auto; font: 12.5px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .tick { fill: var(--muted); font-size: 11.5px; } svg .axis { fill: var(--muted); font-size: 12px; }
.grid { stroke: var(--line); } .zero { stroke: var(--zero); }
.series { --c: var(--muted); }
.s-dense { --c: var(--dense); } .s-sparse { --c: var(--sparse); } .s-oracle { --c: var(--oracle); }
.s-recent { --c: var(--recent); } .s-random { --c: var(--random); } .s-quest { --c: var(--quest); }
.s-snap-kv { --c: var(--snap); } .s-h2o { --c: var(--h2o); } .s-streaming { --c: var(--streaming); }
.series .line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
.s-sparse .line { stroke-width: 3; }
.s-oracle .line, .s-streaming .line { stroke-dasharray: 6 3; } .s-random .line { stroke-dasharray: 2 3; }
.series .mark { fill: var(--c); stroke: var(--page); stroke-width: 1.2; }
.series .interval { stroke: var(--c); stroke-width: 1.4; opacity: 0.55; }
.series .interval.wide { stroke-width: 4; opacity: 0.4; stroke-linecap: round; }
.series .leader { fill: none; stroke: var(--c); opacity: 0.4; }
.series .label { fill: var(--c); font-weight: 600; }
.smalls { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1.2rem; }
.small h4 { color: var(--c, var(--ink)); }
.cell rect { fill: color-mix(in oklab, var(--accent) calc(var(--share) * 100%), var(--cell)); }
.cell.full text { fill: #fff; }
.table { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.28rem 0.9rem 0.28rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
td.free { white-space: normal; text-align: left; overflow-wrap: anywhere; }
details { margin: 0.5rem 0 1rem; } summary { cursor: pointer; color: var(--accent); font-size: 0.9rem; }
.controls { display: flex; gap: 0.8rem; align-items: center; font-size: 0.9rem; color: var(--muted); flex-wrap: wrap; }
.controls input { vertical-align: middle; width: 15rem; accent-color: var(--accent); }
.chart { margin: 0.6rem 0 0; position: relative; padding-left: 1.4rem; }
.side { position: absolute; left: 0; top: 50%; writing-mode: vertical-rl; transform: translateY(-50%) rotate(180deg);
  font-size: 0.8rem; color: var(--muted); }
canvas.reads { width: 100%; display: block; background: var(--cell); border-radius: 4px; cursor: crosshair;
  image-rendering: pixelated; }
.scale { display: flex; justify-content: space-between; font-size: 0.8rem; color: var(--muted); }
.under { min-height: 3.2em; margin: 0.5rem 0; padding: 0.5rem 0.8rem; background: var(--cell); border-radius: 4px;
  font-size: 0.92rem; white-space: pre-wrap; }
.under b { background: var(--accent); color: #fff; border-radius: 2px; padding: 0 2px; }
.text { font-size: 0.88rem; line-height: 1.75; white-space: pre-wrap; max-height: 26rem; overflow-y: auto;
  border: 1px solid var(--line); border-radius: 4px; padding: 0.8rem 1rem; margin: 0.8rem 0; }
.text span { background: color-mix(in srgb, var(--accent) calc(var(--share) * 55%), transparent); border-radius: 2px; }
.text span.at { outline: 2px solid var(--accent); }
footer { margin-top: 4rem; color: var(--muted); font-size: 0.85rem; }
@media print {
  :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --muted: #444; --line: #ccc; --zero: #888;
    --accent: #0072b2; --cell: #f0f2f5; --warn: #8a4b00; --dense: #000; --sparse: #0072b2; --oracle: #00875f;
    --recent: #b86e00; --random: #6b727c; --quest: #a24a82; --snap: #b84400; --h2o: #2582b3; --streaming: #6f5823; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 10.5pt; } nav, .controls, .under { display: none; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } .text { max-height: none; overflow: visible; }
  figure.reading { break-inside: auto; } svg { max-width: 15cm !important; } }
)css";

const char* const kScript = R"js("use strict";
for (const figure of document.querySelectorAll("figure.reading")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const canvas = figure.querySelector("canvas.reads"), slider = figure.querySelector("input.query");
  const name = figure.querySelector(".query-name"), under = figure.querySelector(".under");
  const spans = [...figure.querySelectorAll(".text span")];
  const tokens = data.tokens.length, layers = data.layers.length, all = data.queries.length;
  // Share of the KV heads that read each position: [layers][tokens], of one query or the mean of all.
  const shares = query => data.layers.map(reads => {
    const row = new Float32Array(tokens), chosen = query === all ? reads : [reads[query]];
    for (const digits of chosen)
      for (let p = 0; p < digits.length; ++p) row[p] += parseInt(digits[p], 36) / data.heads / chosen.length;
    return row;
  });
  let now = [], lit = null;
  const draw = () => {
    const query = Number(slider.value);
    now = shares(query);
    name.textContent = query === all ? "all " + all + " queries"
      : "at position " + data.queries[query] + ": " + JSON.stringify(data.tokens[data.queries[query]]);
    canvas.width = tokens;
    canvas.height = layers;
    const context = canvas.getContext("2d"), image = context.createImageData(tokens, layers);
    for (let l = 0; l < layers; ++l)
      for (let p = 0; p < tokens; ++p) image.data.set([30, 132, 200, Math.round(255 * now[l][p])], 4 * (l * tokens + p));
    context.putImageData(image, 0, 0);
    shade(-1);
  };
  const shade = layer => spans.forEach((span, p) => {
    let share = 0;
    for (let l = 0; l < layers; ++l) if (layer < 0 || l === layer) share += now[l][p];
    span.style.setProperty("--share", (share / (layer < 0 ? layers : 1)).toFixed(3));
  });
  const show = (p, layer) => {
    if (lit !== null) spans[lit].classList.remove("at");
    spans[lit = p].classList.add("at");
    const mark = document.createElement("b"), where = layer < 0 ? "" : "layer " + layer + ", ";
    mark.textContent = data.tokens[p];
    const share = layer < 0 ? now.reduce((sum, row) => sum + row[p], 0) / layers : now[layer][p];
    under.replaceChildren(where + "position " + p + ", read by " + Math.round(100 * share) + "%:\n" +
      data.tokens.slice(Math.max(0, p - 14), p).join(""), mark, data.tokens.slice(p + 1, p + 15).join(""));
  };
  let shaded = -1;
  canvas.addEventListener("pointermove", event => {
    const box = canvas.getBoundingClientRect();
    const at = (offset, size, count) => Math.min(count - 1, Math.max(0, Math.floor(offset / size * count)));
    const layer = at(event.clientY - box.top, box.height, layers);
    if (layer !== shaded) shade(shaded = layer);
    show(at(event.clientX - box.left, box.width, tokens), layer);
  });
  canvas.addEventListener("pointerleave", () => shade(shaded = -1));
  figure.querySelector(".text").addEventListener("pointerover", event => {
    if (event.target.dataset.p !== undefined) show(Number(event.target.dataset.p), -1);
  });
  slider.addEventListener("input", draw);
  canvas.style.height = canvas.getAttribute("height") + "px";
  draw();
}
document.documentElement.dataset.ready = "yes";
)js";

}  // namespace keysieve::report
