#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/file_io.h"
#include "formats/npy.h"
#include "kernels/kernels.h"
#include "model/forward.h"
#include "support/golden.h"

namespace keysieve::testing {

inline std::vector<int32_t> read_ids(const std::filesystem::path& path) {
  const std::vector<int64_t> ids = NpyFile(path).integers();
  return {ids.begin(), ids.end()};
}

// Logits of every token, [tokens, vocabulary], through chunks of `chunk` tokens.
inline std::vector<float> all_logits(SequenceState& state, std::span<const int32_t> tokens,
                                     ForwardOptions options = {}) {
  std::vector<float> rows;
  options.logits = Logits::all;
  options.on_logits = [&](size_t first, size_t, std::span<const float> block) {
    EXPECT_EQ(first * state.model().config().vocabulary, rows.size());
    rows.insert(rows.end(), block.begin(), block.end());
  };
  EXPECT_EQ(prefill(state, tokens, options), tokens.size());
  return rows;
}

inline std::vector<float> all_logits(const std::shared_ptr<const Model>& model,
                                     std::span<const int32_t> tokens, const SequenceOptions& options = {}) {
  SequenceState state(model, options);
  return all_logits(state, tokens);
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

inline double log_sum_exp(std::span<const float> row) {
  const double largest = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (const float value : row) sum += std::exp(static_cast<double>(value) - largest);
  return largest + std::log(sum);
}

inline size_t argmax(std::span<const float> row) {
  return static_cast<size_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

struct Agreement {
  double mean_kl = 0;  // KL(softmax(expected) || softmax(found)), nats
  double max_kl = 0;
  double top1 = 0;  // share of rows with the same argmax
};

inline Agreement compare_rows(std::span<const float> expected, std::span<const float> found,
                              size_t vocabulary) {
  EXPECT_EQ(expected.size(), found.size());
  const size_t rows = expected.size() / vocabulary;
  Agreement result;
  for (size_t row = 0; row < rows; ++row) {
    const auto p = expected.subspan(row * vocabulary, vocabulary);
    const auto q = found.subspan(row * vocabulary, vocabulary);
    const double p_sum = log_sum_exp(p);
    const double q_sum = log_sum_exp(q);
    double kl = 0;
    for (size_t i = 0; i < vocabulary; ++i) {
      const double log_p = static_cast<double>(p[i]) - p_sum;
      kl += std::exp(log_p) * (log_p - (static_cast<double>(q[i]) - q_sum));
    }
    result.mean_kl += kl / static_cast<double>(rows);
    result.max_kl = std::max(result.max_kl, kl);
    result.top1 += (argmax(p) == argmax(q) ? 1.0 : 0.0) / static_cast<double>(rows);
  }
  return result;
}

// The float32 arrays of an uncompressed .npz (a zip archive of .npy members).
inline std::map<std::string, std::vector<float>> read_npz(const std::filesystem::path& path) {
  const std::string bytes = read_text_file(path);
  const auto number = [&](size_t at, size_t width) {
    uint64_t value = 0;
    for (size_t i = 0; i < width; ++i)
      value |= static_cast<uint64_t>(static_cast<uint8_t>(bytes.at(at + i))) << (8 * i);
    return value;
  };
  std::map<std::string, std::vector<float>> arrays;
  const size_t end = bytes.rfind("PK\5\6");
  size_t entry = number(end + 16, 4);
  for (size_t i = 0; i < number(end + 10, 2); ++i) {
    const size_t name_size = number(entry + 28, 2);
    const std::string name = bytes.substr(entry + 46, name_size);
    const size_t size = number(entry + 20, 4);
    const size_t local = number(entry + 42, 4);
    EXPECT_EQ(number(entry + 10, 2), 0u) << name << " is compressed";
    const size_t data = local + 30 + number(local + 26, 2) + number(local + 28, 2);
    // The process's number keeps apart the tests that run at the same time.
    const std::filesystem::path member =
        ::testing::TempDir() + "/npz_" + std::to_string(::getpid()) + "_" + name;
    std::ofstream(member, std::ios::binary) << bytes.substr(data, size);
    arrays[name.substr(0, name.size() - 4)] = NpyFile(member).floats();
    std::filesystem::remove(member);
    entry += 46 + name_size + number(entry + 30, 2) + number(entry + 32, 2);
  }
  return arrays;
}

}  // namespace keysieve::testing
