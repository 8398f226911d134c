#include "train/packing.h"

#include <gmock/gmock.h>

#include <set>

#include "support/files.h"
#include "support/tiny_model.h"
#include "text/model_text.h"

namespace keysieve {
namespace {

using testing::expect_error;
using testing::TempFolder;

std::string numbered_lines(size_t first, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += "line " + std::to_string(first + i) + " of the text.\n";
  return text;
}

// The tiny model's tokens are bytes.
std::string bytes_of(const std::vector<int32_t>& tokens) {
  std::string bytes;
  for (const int32_t id : tokens) bytes += static_cast<char>(id);
  return bytes;
}

class Packing : public ::testing::Test {
 protected:
  Packing()
      : tokenizer_(load_tokenizer(testing::write_tiny_model(folder_.path() / "tiny"))),
        book_(numbered_lines(1000, 400)) {
    Json line{{"text", numbered_lines(5000, 20)}};
    const std::string short_line = R"({"text": "too short"})";
    files_ = {folder_.write("book.txt", book_),
              folder_.write("web.jsonl", line.dump() + "\n" + short_line + "\n")};
    options_ = {.window = 600, .shortest = 200, .retrieval = 0, .seed = 4};
  }
  TempFolder folder_;
  Tokenizer tokenizer_;
  std::string book_;
  std::vector<std::filesystem::path> files_;
  PackingOptions options_;
};

TEST_F(Packing, SequencesAreWholePiecesOfOneDocument) {
  const TextPacker packer(files_, tokenizer_, options_);
  ASSERT_EQ(packer.sources().size(), 2u);
  EXPECT_EQ(packer.sources()[1].windows, 1u);
  EXPECT_EQ(packer.sources()[0].windows + 1, packer.pieces());
  const std::string web = numbered_lines(5000, 20);
  uint64_t cursor = 0;
  bool seen_web = false;
  while (cursor < packer.pieces()) {
    size_t total = 0;
    for (const TrainingSequence& sequence : packer.next(cursor)) {
      const std::string bytes = bytes_of(sequence.tokens);
      EXPECT_GE(bytes.size(), 200u);
      EXPECT_TRUE(bytes.starts_with("line "));
      const bool in_web = web.find(bytes) != std::string::npos;
      EXPECT_TRUE(in_web || book_.find(bytes) != std::string::npos);
      EXPECT_TRUE(sequence.marked.empty());
      seen_web = seen_web || in_web;
      total += bytes.size();
    }
    EXPECT_LE(total, 600u);
    EXPECT_GT(total, 0u);
  }
  EXPECT_TRUE(seen_web);
}

TEST_F(Packing, ARoundReadsEveryPieceOnceAndTheCursorIsAllThereIsToKnow) {
  options_.window = options_.shortest = 200;  // one piece a step
  const TextPacker packer(files_, tokenizer_, options_);
  std::set<std::vector<int32_t>> seen;
  uint64_t cursor = 0;
  std::vector<std::vector<int32_t>> order;
  while (cursor < packer.pieces()) order.push_back(packer.next(cursor).front().tokens);
  seen.insert(order.begin(), order.end());
  EXPECT_EQ(seen.size(), packer.pieces());
  std::vector<std::vector<int32_t>> second;
  while (cursor < 2 * packer.pieces()) second.push_back(packer.next(cursor).front().tokens);
  EXPECT_NE(order, second);
  uint64_t again = 3;
  EXPECT_EQ(TextPacker(files_, tokenizer_, options_).next(again).front().tokens, order[3]);
  options_.seed = 5;
  again = 3;
  EXPECT_NE(TextPacker(files_, tokenizer_, options_).next(again).front().tokens, order[3]);
}

TEST_F(Packing, RefusesTextsWithoutALongDocument) {
  options_.shortest = 100'000;
  options_.window = 200'000;
  expect_error(ErrorKind::mismatch, {"100000 tokens", "--shortest"},
               [&] { TextPacker(files_, tokenizer_, options_); });
}

TEST_F(Packing, RetrievalKeepsTheLengthAndMarksWhatStoodBefore) {
  const std::vector<int32_t> prose = tokenizer_.encode(book_.substr(0, 6000), false);
  size_t repeats = 0;
  size_t facts = 0;
  for (uint64_t seed = 0; seed < 30; ++seed) {
    const TrainingSequence sequence = with_retrieval(prose, tokenizer_, SplitMix(seed));
    EXPECT_EQ(sequence.tokens.size(), prose.size());
    ASSERT_FALSE(sequence.marked.empty());
    EXPECT_TRUE(std::is_sorted(sequence.marked.begin(), sequence.marked.end()));
    EXPECT_LT(sequence.marked.back() + 1, sequence.tokens.size());
    const std::string bytes = bytes_of(sequence.tokens);
    // Every run of marked queries predicts bytes that stand earlier in the text as well.
    for (size_t i = 0; i < sequence.marked.size();) {
      size_t end = i + 1;
      while (end < sequence.marked.size() && sequence.marked[end] == sequence.marked[end - 1] + 1) ++end;
      const size_t begin = sequence.marked[i] + 1;
      EXPECT_LT(bytes.find(bytes.substr(begin, end - i)), begin) << bytes.substr(begin, end - i);
      i = end;
    }
    (bytes.find("line 1000 ") != bytes.rfind("line 10", bytes.size()) && sequence.marked.size() > 400
         ? repeats
         : facts)++;
  }
  EXPECT_GT(repeats, 3u);
  EXPECT_GT(facts, 10u);
  const std::vector<int32_t> few(prose.begin(), prose.begin() + 100);
  EXPECT_EQ(with_retrieval(few, tokenizer_, SplitMix(1)).tokens, few);
}

}  // namespace
}  // namespace keysieve
