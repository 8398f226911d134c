#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "report/fields.h"
#include "report/markup.h"
#include "report/sections.h"

namespace keysieve::report {
namespace {

std::string signed_percent(double value) { return fmt::format("{:+.2f}%", value); }

struct QualityRow {
  std::string mode;
  double budget;
  double perplexity;
  Point delta;  // x: budget, y: percent
};

QualityRow quality_row(const Json& row, const std::string& mode, double budget, const char* perplexity) {
  QualityRow out{mode, budget, number(row, perplexity), {budget, number(row, "delta_percent"), 0, 0}};
  take_interval(out.delta, row, "delta_ci95_percent");
  return out;
}

// "rows", or the fields that speak of one budget.
std::vector<QualityRow> quality_rows(const Json& result) {
  std::vector<QualityRow> rows;
  for (const Json& row : list(result, "rows"))
    rows.push_back(quality_row(row, text(row, "mode"), number(row, "budget"), "perplexity"));
  if (!rows.empty()) return rows;
  const double budget = number(result, "budget");
  if (result.contains("perplexity_sparse"))
    rows.push_back(quality_row(result, "sparse", budget, "perplexity_sparse"));
  if (result.contains("baselines") && result.at("baselines").is_object()) {
    for (const auto& [mode, row] : result.at("baselines").items())
      rows.push_back(quality_row(row, mode, budget, "perplexity"));
  }
  return rows;
}

using ByMode = std::map<std::string, Series>;
Series& of_mode(ByMode& series, const std::string& mode) {
  Series& one = series[mode];
  one.name = mode;
  one.style = style_of(mode);
  return one;
}

std::vector<Series> values_of(const ByMode& series) {
  std::vector<Series> out;
  out.reserve(series.size());
  for (const auto& [mode, one] : series) out.push_back(one);
  return out;
}

// Results that may stand in one picture: the same model and windows.
using QualityKey = std::tuple<std::string, double, double, double, std::string>;

std::string quality_figure(const QualityKey& key, const std::vector<const Json*>& results) {
  const auto& [model, window, windows, tokens, counted] = key;
  LinePlot plot;
  plot.title = "Quality against budget";
  plot.x_title = "budget (positions a query may read)";
  plot.y_title = "perplexity above dense, %";
  plot.logarithmic_x = true;
  plot.x_text = short_count;
  plot.y_text = [](double value) { return fmt::format("{:.4g}%", value); };
  ByMode series;
  std::vector<QualityRow> rows;
  for (const Json* result : results)
    for (const QualityRow& row : quality_rows(*result)) rows.push_back(row);
  std::sort(rows.begin(), rows.end(), [](const QualityRow& a, const QualityRow& b) {
    return std::tie(a.budget, a.delta.y, a.mode) < std::tie(b.budget, b.delta.y, b.mode);
  });
  Table table({"budget", "mode", "perplexity", "above dense", "95% interval"});
  for (const QualityRow& row : rows) {
    of_mode(series, row.mode).points.push_back(row.delta);
    table.add({short_count(row.budget), row.mode, fmt::format("{:.3f}", row.perplexity),
               signed_percent(row.delta.y),
               row.delta.low == row.delta.high
                   ? "-"
                   : signed_percent(row.delta.low) + " to " + signed_percent(row.delta.high)});
  }
  plot.series = values_of(series);
  return figure(fmt::format("{}, windows of {:.0f} tokens", model, window), draw(plot),
                fmt::format(
                    "Dense perplexity {:.3f}. {:.0f} predictions counted ({}; windows: {:.0f}). Bars: 95% "
                    "bootstrap intervals of the paired differences. Lower is better.",
                    number(*results.front(), "perplexity_dense"), tokens, counted, windows)) +
         "<details><summary>The figures</summary>" + table.html() + "</details>\n";
}

std::string mode_and_budget(const std::string& mode, double budget) {
  return budget > 0 ? fmt::format("{} {}", mode, short_count(budget)) : mode;
}

// [depth bins][contexts] of one mode at one budget.
struct Depths {
  static constexpr size_t kBins = 5;
  std::set<double> contexts;
  std::map<std::pair<size_t, double>, std::pair<size_t, size_t>> cells;  // passed, trials
};

std::string depth_map(const std::string& name, const Depths& depths) {
  HeatMap map;
  map.title = "needles found, " + name;
  map.x_title = "context (tokens)";
  map.y_title = "depth";
  for (const double context : depths.contexts) map.columns.push_back(short_count(context));
  for (size_t bin = 0; bin < Depths::kBins; ++bin) {
    map.rows.push_back(fmt::format("{}-{}%", bin * 100 / Depths::kBins, (bin + 1) * 100 / Depths::kBins));
    map.shares.emplace_back();
    map.notes.emplace_back();
    for (const double context : depths.contexts) {
      const auto cell = depths.cells.find({bin, context});
      const bool empty = cell == depths.cells.end();
      map.shares.back().push_back(
          empty ? -1 : static_cast<double>(cell->second.first) / static_cast<double>(cell->second.second));
      map.notes.back().push_back(empty ? "" : fmt::format("{}/{}", cell->second.first, cell->second.second));
    }
  }
  return fmt::format("<div class=\"small s-{}\"><h4>{}</h4>{}</div>",
                     style_of(name.substr(0, name.find(' '))), escape(name), draw(map));
}

using NeedleKey = std::tuple<std::string, std::string, std::string>;  // model, form, protocol

void add_depths(std::map<std::pair<std::string, double>, Depths>& maps, const Json& result) {
  std::map<std::pair<double, std::string>, double> budgets;
  for (const Json& row : list(result, "rows"))
    budgets[{number(row, "context"), text(row, "mode")}] = number(row, "budget");
  for (const Json& trial : list(result, "trials")) {
    const double context = number(trial, "context");
    const std::string mode = text(trial, "mode");
    const double depth = std::clamp(number(trial, "depth"), 0.0, 1.0);
    Depths& depths = maps[{mode, budgets[{context, mode}]}];
    depths.contexts.insert(context);
    const size_t bin = std::min(static_cast<size_t>(depth * Depths::kBins), Depths::kBins - 1);
    auto& cell = depths.cells[{bin, context}];
    ++cell.second;
    if (trial.is_object() && trial.contains("passed") && trial.at("passed") == true) ++cell.first;
  }
}

}  // namespace

std::string quality_section(std::span<const ReportInput> inputs) {
  std::map<QualityKey, std::vector<const Json*>> groups;
  Table agreement(
      {"model", "mode", "budget", "window", "same greedy token", "KL to dense, nats", "positions"});
  for (const ReportInput& input : inputs) {
    const Json& result = input.result;
    if (input.kind == "ppl") {
      groups[{text(result, "model", "a model"), number(result, "window"), number(result, "windows"),
              number(result, "tokens"), text(result, "counted", "last quarters")}]
          .push_back(&result);
    } else if (input.kind == "agreement") {
      agreement.add({text(result, "model", "a model"), text(result, "mode", "sparse"),
                     short_count(number(result, "budget")), short_count(number(result, "window")),
                     fmt::format("{:.2f}%", 100 * number(result, "top1_agreement")),
                     fmt::format("{:.5f}", number(result, "kl_mean")),
                     fmt::format("{:.0f}", number(result, "tokens"))});
    }
  }
  std::string out;
  for (const auto& [key, results] : groups) out += quality_figure(key, results);
  const std::string table = agreement.html();
  return out + (table.empty() ? "" : "<h3>Agreement with dense attention</h3>" + table);
}

std::string needle_section(std::span<const ReportInput> inputs) {
  std::map<NeedleKey, std::vector<const Json*>> groups;
  for (const ReportInput& input : inputs) {
    if (input.kind != "needle") continue;
    groups[{text(input.result, "model", "a model"), text(input.result, "form", "code"),
            text(input.result, "protocol", "in-prompt")}]
        .push_back(&input.result);
  }
  std::string out;
  for (const auto& [key, results] : groups) {
    const auto& [model, form, protocol] = key;
    std::map<std::pair<std::string, double>, Depths> maps;
    std::vector<const Json*> rows;
    for (const Json* result : results) {
      add_depths(maps, *result);
      for (const Json& row : list(*result, "rows")) rows.push_back(&row);
    }
    std::sort(rows.begin(), rows.end(), [](const Json* a, const Json* b) {
      return std::tuple(number(*a, "context"), number(*a, "budget"), text(*a, "mode")) <
             std::tuple(number(*b, "context"), number(*b, "budget"), text(*b, "mode"));
    });
    Table table({"context", "mode", "budget", "passed", "95% interval", "prefill, s"});
    for (const Json* row : rows) {
      Point p;
      take_interval(p, *row, "wilson95");
      table.add({short_count(number(*row, "context")), text(*row, "mode"),
                 number(*row, "budget") > 0 ? short_count(number(*row, "budget")) : "-",
                 fmt::format("{:.0f} of {:.0f}", number(*row, "passed"), number(*row, "trials")),
                 fmt::format("{:.0f} to {:.0f}%", 100 * p.low, 100 * p.high),
                 short_number(number(*row, "prefill_seconds"))});
    }
    std::string drawings;
    for (const auto& [at, depths] : maps) drawings += depth_map(mode_and_budget(at.first, at.second), depths);
    out +=
        fmt::format("<figure><h3>{}</h3><div class=\"smalls\">{}</div><figcaption>{}</figcaption></figure>\n",
                    escape(fmt::format("{}, form {}, question {}", model, form, protocol)), drawings,
                    escape("Needles found of those hidden, by where in the text they stood. A budget stands "
                           "behind the name of its mode.")) +
        "<details><summary>The figures</summary>" + table.html() + "</details>\n";
  }
  return out;
}

std::string gsm8k_section(std::span<const ReportInput> inputs) {
  std::map<std::string, std::vector<DotRow>> groups;
  std::string notes;
  for (const ReportInput& input : inputs) {
    if (input.kind != "gsm8k") continue;
    const Json& result = input.result;
    Point p;
    p.high = 1;
    take_interval(p, result, "wilson95");
    const std::string mode = text(result, "mode", "dense");
    const double budget = mode == "dense" ? 0 : number(result, "budget");
    groups[text(result, "model", "a model")].push_back(
        {mode_and_budget(mode, budget), style_of(mode), number(result, "accuracy"), p.low, p.high,
         fmt::format("{:.0f} of {:.0f}", number(result, "correct"), number(result, "total"))});
    if (result.contains("budget_binds") && result.at("budget_binds") == false && mode != "dense") {
      notes +=
          "<p class=\"warning\">" +
          escape(fmt::format("{}: no problem was longer than the budget, so nothing was left out and this "
                             "says nothing about the selection.",
                             mode_and_budget(mode, budget))) +
          "</p>";
    }
  }
  std::string out;
  for (const auto& [model, rows] : groups) {
    out += figure(model, draw_shares("GSM8K", "problems answered correctly", rows),
                  "Chain of thought after worked examples, greedy. Lines: Wilson's 95% intervals.");
  }
  return out + notes;
}

}  // namespace keysieve::report
