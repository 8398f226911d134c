#pragma once

#include <gmock/gmock.h>

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "eval/attention_mode.h"
#include "keysieve/keysieve.h"
#include "support/files.h"
#include "support/tiny_model.h"

namespace keysieve::testing {

// Words of random letters in sentences: each byte is one token of the tiny model.
inline std::string prose(size_t bytes, uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  std::string text;
  while (text.size() < bytes) {
    const size_t letters = 2 + random() % 7;
    for (size_t i = 0; i < letters; ++i) text += static_cast<char>('a' + random() % 26);
    text += random() % 9 == 0 ? ". " : " ";
  }
  text.resize(bytes);
  return text;
}

// The tiny model (bytes are tokens, context 512) with its random indexer.
class EvalTest : public ::testing::Test {
 protected:
  EvalTest()
      : model_path_(write_tiny_model(folder_.path() / "models" / "tiny")),
        indexer_path_(write_tiny_indexer(folder_.path() / "indexers" / "tiny", "")),
        model_(LanguageModel::load(model_path_.string(), {.threads = 1})) {}

  SessionOptions sparse(size_t budget) const {
    SessionOptions options;
    options.indexer = LightningIndexer::load(indexer_path_.string(), model_);
    options.budget = budget;
    return options;
  }
  static std::vector<int32_t> bytes(const std::string& text) {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }

  TempFolder folder_;
  std::filesystem::path model_path_;
  std::filesystem::path indexer_path_;
  LanguageModel model_;
};

}  // namespace keysieve::testing
