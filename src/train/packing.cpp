#include "train/packing.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <string_view>
#include <utility>

#include "keysieve/error.h"

namespace keysieve {
namespace {

// Byte-pair tokens of English prose hold 4.1 to 4.6 bytes; a piece of five bytes a token fills its window and
// wastes a tenth.
constexpr size_t kBytesPerToken = 5;

}  // namespace

TextPacker::TextPacker(std::span<const std::filesystem::path> files, const Tokenizer& tokenizer,
                       const PackingOptions& options)
    : tokenizer_(tokenizer), options_(options) {
  options_.shortest = std::min(options_.shortest, options_.window);
  for (const std::filesystem::path& file : files) {
    TrainingText text = read_training_text(file);
    const size_t before = pieces_.size();
    for (std::string& document : text.documents) {
      if (document.size() < options_.shortest) continue;  // too short even at a byte a token
      const size_t count = std::max<size_t>(1, document.size() / (options_.window * kBytesPerToken));
      for (size_t i = 0; i < count; ++i) {
        const size_t begin = next_start(document, i * document.size() / count);
        const size_t end =
            i + 1 == count ? document.size() : next_start(document, (i + 1) * document.size() / count);
        if (end >= begin + options_.shortest) pieces_.push_back({documents_.size(), begin, end});
      }
      documents_.push_back(std::move(document));
    }
    text.source.windows = pieces_.size() - before;
    sources_.push_back(std::move(text.source));
  }
  if (pieces_.empty()) {
    throw Error(ErrorKind::mismatch, "training texts",
                fmt::format("no document of {} tokens", options_.shortest), "at least one",
                "give longer texts or lower --shortest");
  }
}

uint64_t TextPacker::bytes() const {
  uint64_t total = 0;
  for (const std::string& document : documents_) total += document.size();
  return total;
}

const TextPacker::Piece& TextPacker::piece(uint64_t cursor) const {
  std::vector<uint32_t> order(pieces_.size());
  std::iota(order.begin(), order.end(), 0u);
  SplitMix random(options_.seed * 0x9e3779b97f4a7c15u + cursor / pieces_.size());
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return pieces_[order[cursor % pieces_.size()]];
}

std::vector<TrainingSequence> TextPacker::next(uint64_t& cursor) const {
  std::vector<TrainingSequence> sequences;
  size_t room = options_.window;
  for (size_t tried = 0; room >= options_.shortest; ++tried) {
    if (tried > pieces_.size()) {
      if (!sequences.empty()) break;
      throw Error(ErrorKind::mismatch, "training texts",
                  fmt::format("{} pieces, each of fewer than {} tokens", pieces_.size(), options_.shortest),
                  "longer documents", "give longer texts or lower --shortest");
    }
    const Piece& piece = this->piece(cursor);
    SplitMix random(options_.seed ^ (cursor * 0xd1342543de82ef95u + 1));
    ++cursor;
    const std::string_view text =
        std::string_view(documents_[piece.document]).substr(piece.begin, piece.end - piece.begin);
    std::vector<int32_t> tokens = tokenizer_.encode(text, false);
    if (tokens.size() < options_.shortest) continue;
    tokens.resize(std::min(tokens.size(), room));
    room -= tokens.size();
    sequences.push_back(random.unit() < options_.retrieval
                            ? with_retrieval(std::move(tokens), tokenizer_, random)
                            : TrainingSequence{std::move(tokens), {}});
  }
  return sequences;
}

}  // namespace keysieve
