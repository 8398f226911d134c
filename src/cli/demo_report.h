#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "keysieve/keysieve.h"

namespace keysieve::cli {

// One prompt answered both ways.
struct DemoAnswer {
  std::string title;  // the question, without the document it may be about
  std::string fact;   // what a right answer must contain; empty: anything goes
  GenerateResult dense;
  GenerateResult sparse;

  bool equal() const { return dense.text == sparse.text; }
  size_t same_leading_tokens() const;
  bool found(const GenerateResult& result) const { return result.text.find(fact) != std::string::npos; }
};

struct DemoSetting {
  std::string model;
  std::string kernels;
  int threads = 0;
  std::string indexer;
  size_t budget = 0;
};

// Figures of one answer: speeds, positions and bytes, one per line.
std::string figures(const GenerateResult& result);
// Question, both answers and their figures: side by side in `width` columns, or one after the other
// (nullopt).
std::string show_answer(const DemoAnswer& answer, const DemoSetting& setting, std::optional<size_t> width);
// What was saved, and whether the answers agree: the demo's last lines.
std::string show_summary(const std::vector<DemoAnswer>& answers);

Json to_json(const DemoAnswer& answer);
Json summary_json(const std::vector<DemoAnswer>& answers);
Json to_json(const DemoSetting& setting);

}  // namespace keysieve::cli
