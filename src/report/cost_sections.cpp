#include <fmt/format.h>

#include <map>

#include "report/fields.h"
#include "report/markup.h"
#include "report/sections.h"

namespace keysieve::report {
namespace {

LinePlot against_context(const std::string& title, const std::string& y_title, NumberText y_text) {
  LinePlot plot;
  plot.title = title;
  plot.x_title = "context (tokens)";
  plot.y_title = y_title;
  plot.logarithmic_x = true;
  plot.x_text = short_count;
  plot.y_text = std::move(y_text);
  return plot;
}

std::string tokens_per_second(double value) { return fmt::format("{:.4g}", value); }

// One line a mode and budget, in the order of their names.
using Lines = std::map<std::string, Series>;
void add(Lines& lines, const Json& row, std::string_view value) {
  const std::string mode = text(row, "mode");
  const double budget = number(row, "budget");
  Series& line = lines[budget > 0 ? fmt::format("{} {}", mode, short_count(budget)) : mode];
  line.name = budget > 0 ? fmt::format("{} {}", mode, short_count(budget)) : mode;
  line.style = style_of(mode);
  line.points.push_back({number(row, "context"), number(row, value), 0, 0});
}

void move_lines(LinePlot& plot, const Lines& lines) {
  for (const auto& [name, line] : lines) plot.series.push_back(line);
}

std::string training_plot(const ReportInput& input, const std::string& heading, const char* field,
                          const char* y_title, const char* words, bool with_oracle) {
  LinePlot plot;
  plot.title = heading;
  plot.x_title = "step";
  plot.y_title = y_title;
  plot.from_zero = false;
  plot.markers = false;
  plot.x_text = [](double value) { return fmt::format("{:.0f}", value); };
  plot.y_text = [](double value) { return fmt::format("{:.4g}", value); };
  Series steps{"training", "recent", {}};
  Series developments{"development", "sparse", {}};
  Series oracle{"best possible", "oracle", {}};
  const auto point = [](const Json& row, const char* key) {
    return Point{number(row, "step"), number(row, key, 1e300), 0, 0};  // left out where it is missing
  };
  for (const Json& row : list(input.result, "steps")) {
    steps.points.push_back(point(row, field));
  }
  for (const Json& row : list(input.result, "developments")) {
    developments.points.push_back(point(row, field));
    if (with_oracle) oracle.points.push_back(point(row, "oracle"));
  }
  plot.series = {steps, oracle, developments};
  return figure(heading, draw(plot), words);
}

}  // namespace

std::string memory_section(std::span<const ReportInput> inputs) {
  std::string out;
  for (const ReportInput& input : inputs) {
    if (input.kind != "memory") continue;
    LinePlot plot = against_context("Memory against context", "keys and values", short_bytes);
    Series dense{"dense", "dense", {}};
    Series sparse{"sparse", "sparse", {}};
    Series index{"sparse + index", "quest", {}};
    Table table({"context", "dense", "sparse", "index", "saved", "saved, index counted"});
    for (const Json& row : list(input.result, "rows")) {
      const double context = number(row, "context");
      const double kept = number(row, "sparse_kv_bytes");
      const double keys = number(row, "sparse_index_bytes");
      dense.points.push_back({context, number(row, "dense_kv_bytes"), 0, 0});
      sparse.points.push_back({context, kept, 0, 0});
      if (keys > 0) index.points.push_back({context, kept + keys, 0, 0});
      table.add({short_count(context), short_bytes(number(row, "dense_kv_bytes")), short_bytes(kept),
                 short_bytes(keys), fmt::format("{:.1f}%", number(row, "saved_percent")),
                 fmt::format("{:.1f}%", number(row, "saved_percent_with_index"))});
    }
    plot.series = {dense, sparse, index};
    out += figure(fmt::format("{}, budget {}", text(input.result, "model", "a model"),
                              short_count(number(input.result, "budget"))),
                  draw(plot), "Bytes of the cache of one sequence; sparse keeps only the budget.") +
           table.html();
  }
  return out;
}

std::string speed_section(std::span<const ReportInput> inputs) {
  std::map<std::string, std::pair<Lines, Lines>> models;
  for (const ReportInput& input : inputs) {
    if (input.kind != "latency") continue;
    for (const Json& row : list(input.result, "rows")) {
      auto& [prefill, decode] = models[text(input.result, "model", "a model")];
      add(prefill, row, "prefill_tokens_per_second");
      add(decode, row, "decode_tokens_per_second");
    }
  }
  std::string out;
  for (const auto& [model, lines] : models) {
    LinePlot prefill = against_context("Prefill speed", "prefill, tokens a second", tokens_per_second);
    LinePlot decode = against_context("Decode speed", "decode, tokens a second", tokens_per_second);
    move_lines(prefill, lines.first);
    move_lines(decode, lines.second);
    out += figure(model + ": reading the prompt", draw(prefill), "The whole prompt. Higher is better.");
    out += figure(model + ": writing the answer", draw(decode),
                  "At the end of the context, one token at a time. Higher is better.");
  }
  return out;
}

std::string training_section(std::span<const ReportInput> inputs) {
  std::string out;
  for (const ReportInput& input : inputs) {
    if (input.kind != "train") continue;
    out += training_plot(input, input.name + ": loss", "loss", "loss",
                         "Training batches, and the development texts where there are any.", false);
    out += training_plot(
        input, input.name + ": attention captured", "captured", "share of attention",
        "Of dense attention's probability, what lies on the positions chosen, over all layers.", true);
  }
  return out;
}

}  // namespace keysieve::report
