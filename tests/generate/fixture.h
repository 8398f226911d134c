#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "formats/npy.h"
#include "keysieve/keysieve.h"
#include "support/golden.h"
#include "support/tiny_model.h"

namespace keysieve::testing {

// A tiny random model and an indexer for it, made once per test program in a folder of its own.
class TinyWorld {
 public:
  static const TinyWorld& get() {
    static const TinyWorld world;
    return world;
  }
  LanguageModel load(LoadOptions options = {}) const {
    if (options.threads == 0) options.threads = 1;
    return LanguageModel::load(model.string(), options);
  }

  std::filesystem::path folder;
  std::filesystem::path model;
  std::filesystem::path indexer;  // names no model in its run_config.json

 private:
  TinyWorld() : folder(::testing::TempDir() + "/keysieve_generate_" + std::to_string(::getpid())) {
    std::filesystem::remove_all(folder);
    model = write_tiny_model(folder / "models" / "tiny");
    indexer = write_tiny_indexer(folder / "indexers" / "tiny", "");
  }

 public:
  ~TinyWorld() { std::filesystem::remove_all(folder); }
  TinyWorld(const TinyWorld&) = delete;
  TinyWorld& operator=(const TinyWorld&) = delete;
};

// Runs `work`, which must throw an Error of this kind whose one line holds all `parts`.
inline void expect_error(ErrorKind kind, const std::vector<std::string>& parts,
                         const std::function<void()>& work) {
  try {
    work();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.kind()), to_string(kind)) << error.what();
    for (const std::string& part : parts) EXPECT_THAT(error.what(), ::testing::HasSubstr(part));
  }
}

inline double max_difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(difference <= largest)) largest = difference;  // a NaN stays and fails every bound
  }
  return largest;
}

inline std::vector<int32_t> read_ids(const std::filesystem::path& path) {
  const std::vector<int64_t> ids = NpyFile(path).integers();
  return {ids.begin(), ids.end()};
}

}  // namespace keysieve::testing
