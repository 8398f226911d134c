// The recorded ids of Hugging Face tokenizers, line by line, and the encode vectors of the Qwen vocabulary.

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "core/file_io.h"
#include "core/json.h"
#include "formats/gguf.h"
#include "support/golden.h"
#include "text/model_text.h"
#include "text/tokenizer.h"

namespace keysieve {
namespace {

using testing::golden_dir;
using testing::models_dir;

// The tokenizer that a golden file belongs to; null where its model is not here.
std::unique_ptr<Tokenizer> golden_tokenizer(const std::string& name) {
  std::filesystem::path path;
  if (name == "qwen3") {
    path = *golden_dir() / ".." / "tokenizer" / "qwen3";
    if (!std::filesystem::exists(path)) return nullptr;
    return std::make_unique<Tokenizer>(load_tokenizer(path));
  }
  if (!models_dir()) return nullptr;
  path = name == "smollm2-gguf"
             ? *models_dir() / "smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"
             : *models_dir() / "qwen2.5-coder-0.5b/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
  if (!std::filesystem::exists(path)) return nullptr;
  return std::make_unique<Tokenizer>(load_tokenizer(GgufFile(path)));
}

std::vector<Json> read_lines(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<Json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(parse_json(line, path.string()));
  return lines;
}

std::string stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  StreamDecoder decoder(tokenizer, skip_special);
  std::string text;
  for (const int32_t id : ids) text += decoder.push(id);
  return text + decoder.flush();
}

class GoldenTokenizer : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!golden_dir()) GTEST_SKIP() << "no golden data";
    tokenizer_ = golden_tokenizer(GetParam());
    if (!tokenizer_) GTEST_SKIP() << "the model of this tokenizer is not here";
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(GoldenTokenizer, EncodesEveryLine) {
  const auto lines = read_lines(*golden_dir() / "tokenizer" / (std::string(GetParam()) + ".jsonl"));
  ASSERT_GT(lines.size(), 100u);
  for (const Json& line : lines) {
    const auto ids = line["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer_->encode(line["text"].get<std::string>(), line["parse_special"].get<bool>()), ids)
        << line;
    EXPECT_EQ(tokenizer_->decode(ids, false), line["decoded"].get<std::string>());
    EXPECT_EQ(stream(*tokenizer_, ids, false), line["decoded"].get<std::string>());
  }
}

TEST_P(GoldenTokenizer, DecodesEveryLine) {
  size_t checked = 0;
  for (const Json& line : read_lines(*golden_dir() / "tokenizer" / "decode.jsonl")) {
    if (line["tokenizer"] != GetParam()) continue;
    const auto ids = line["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer_->decode(ids, false), line["text"].get<std::string>()) << line;
    EXPECT_EQ(tokenizer_->decode(ids, true), line["text_skip_special"].get<std::string>()) << line;
    EXPECT_EQ(stream(*tokenizer_, ids, false), line["text"].get<std::string>()) << line;
    ++checked;
  }
  EXPECT_GT(checked, 10u);
}

TEST_P(GoldenTokenizer, EncodesProseFast) {
  const auto book = *golden_dir() / ".." / "eval" / "wikitext2-test.txt";
  if (!std::filesystem::exists(book)) GTEST_SKIP() << "no text to measure with";
  const std::string text = read_text_file(book);
  const auto start = std::chrono::steady_clock::now();
  const std::vector<int32_t> ids = tokenizer_->encode(text, false);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  RecordProperty("megabytes_per_second",
                 std::to_string(static_cast<double>(text.size()) / 1e6 / seconds.count()));
  EXPECT_GT(ids.size(), text.size() / 10);
  EXPECT_EQ(tokenizer_->decode(ids, false), text);
  // About 0.15 s here; the bound only catches a quadratic mistake, sanitised builds included.
  EXPECT_LT(seconds.count(), 20.0);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTokenizer,
                         ::testing::Values("qwen3", "smollm2-gguf", "qwen2.5-coder-gguf"));

TEST(TokenizerVectors, QwenIdsMatch) {
  if (!golden_dir()) GTEST_SKIP() << "no golden data";
  const auto folder = *golden_dir() / ".." / "tokenizer" / "vectors";
  const auto tokenizer = golden_tokenizer("qwen3");
  if (!tokenizer || !std::filesystem::exists(folder)) GTEST_SKIP() << "no encode vectors";
  const std::string inputs = read_text_file(folder / "ggml-vocab-qwen2.gguf.inp");
  std::istringstream outputs(read_text_file(folder / "ggml-vocab-qwen2.gguf.out"));
  const std::string separator = "\n__ggml_vocab_test__\n";
  size_t checked = 0;
  for (size_t at = 0; at < inputs.size(); ++checked) {
    const size_t end = inputs.find(separator, at);
    if (end == std::string::npos) break;  // what follows the last separator is no vector
    std::string line;
    ASSERT_TRUE(std::getline(outputs, line));
    std::istringstream numbers(line);
    std::vector<int32_t> ids;
    for (int32_t id; numbers >> id;) ids.push_back(id);
    EXPECT_EQ(tokenizer->encode(inputs.substr(at, end - at), false), ids) << inputs.substr(at, end - at);
    at = end + separator.size();
  }
  EXPECT_GT(checked, 40u);
}

}  // namespace
}  // namespace keysieve
