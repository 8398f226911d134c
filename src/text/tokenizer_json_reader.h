#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"

namespace keysieve {

// A tokenizer.json with its two long lists taken out: 150,000 vocabulary entries and as many merges as JSON
// values would cost more time and memory than all the rest of loading.
struct TokenizerJson {
  Json document;  // without model.vocab and model.merges
  std::vector<std::pair<std::string, int64_t>> vocabulary;
  std::vector<std::string> merges;  // "left right"
};

// Throws Error{format} on bad JSON, nesting deeper than 200, ids that are no integers and merges that are
// neither "left right" nor ["left", "right"].
TokenizerJson read_tokenizer_json(std::string_view json, std::string_view subject);

}  // namespace keysieve
