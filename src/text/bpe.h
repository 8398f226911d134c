#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace keysieve {

// The GPT-2 byte alphabet: every byte is spelled as one printable character, so that tokens are printable
// strings. The 188 printable bytes of Latin-1 stand for themselves, the others for U+0100 to U+0143 in order.
char32_t byte_alphabet_character(uint8_t byte);
// The byte that a character of the alphabet stands for.
std::optional<uint8_t> byte_alphabet_byte(char32_t character);

// The texts of a vocabulary one after the other: as strings of their own 152,000 take 5 MB more.
class TokenTexts {
 public:
  // Throws Error{format} for more than 4 GiB of text.
  TokenTexts(const std::vector<std::string>& tokens, std::string_view subject);
  size_t size() const { return offsets_.size() - 1; }
  std::string_view operator[](size_t id) const {
    return std::string_view(text_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
  }

 private:
  std::string text_;
  std::vector<uint32_t> offsets_;  // [size + 1]
};

// Token texts to ids: open addressing over the caller's texts, which must outlive the map and not move. Takes
// 4 bytes a slot.
class TokenMap {
 public:
  static constexpr size_t kMostTokens = size_t{1} << 24;

  // Skips empty texts. At most kMostTokens. Throws Error{format} naming the ids of a token that occurs twice.
  TokenMap(const TokenTexts& tokens, std::string_view subject);
  std::optional<int32_t> find(std::string_view token) const;

 private:
  // The slot with this text, or the empty one where it would go.
  size_t slot(std::string_view token) const;
  int32_t id(size_t slot) const { return static_cast<int32_t>(slots_[slot] & kId); }

  static constexpr uint32_t kId = (1u << 24) - 1;
  static constexpr uint32_t kEmpty = ~0u;
  const TokenTexts* tokens_;
  // The id and above it 8 bits of the hash, never all ones: few texts are looked at that are not the one. A
  // power of two, at most three quarters full.
  std::vector<uint32_t> slots_;
};

// What merging two neighbouring tokens gives.
struct Merge {
  uint32_t rank;
  int32_t result;
};

// All merges of a vocabulary in a list and open addressing over it: 2.9 MB for 151,000, where the pairs
// themselves in the table's slots took 4.2.
class MergeTable {
 public:
  explicit MergeTable(size_t capacity);
  // The next merge; its rank is the number of those before it. A later merge of the same pair replaces the
  // earlier.
  void append(int32_t left, int32_t right, int32_t result);
  std::optional<Merge> find(int32_t left, int32_t right) const;

 private:
  struct Entry {
    int32_t left, right, result;
  };
  static constexpr uint32_t kEmpty = ~0u;
  size_t slot(int32_t left, int32_t right) const;
  std::vector<Entry> merges_;    // by rank
  std::vector<uint32_t> slots_;  // a rank; a power of two, at most two thirds full
};

// Byte-pair encoding of one word: the best-ranked pair of neighbours merges first, the leftmost among equals.
// O(n log n) in the word's length by a linked list of symbols and a heap of candidate pairs.
class BytePairEncoder {
 public:
  // The working memory of one thread.
  struct Scratch {
    struct Symbol {
      int32_t id;  // -1: merged into its left neighbour
      int32_t previous;
      int32_t next;  // -1: none
    };
    struct Candidate {
      uint32_t rank;
      int32_t position;
      int32_t left, right, result;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  explicit BytePairEncoder(MergeTable merges);
  // `word`: the tokens of its bytes or characters. Appends what is left of them once they are merged.
  void encode(std::span<const int32_t> word, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  void push_candidate(Scratch& scratch, int32_t position) const;
  MergeTable merges_;
};

// Ids of words seen before in this text: prose repeats nine words of ten.
class WordCache {
 public:
  WordCache();
  struct Ids {
    uint32_t begin, count;
  };
  // The ids of `word` if it is known.
  std::optional<Ids> find(std::string_view word) const;
  void insert(std::string_view word, const int32_t* ids, size_t count);
  const int32_t* ids(Ids range) const { return ids_.data() + range.begin; }

 private:
  struct Slot {
    uint64_t hash;
    uint32_t text, length;  // length 0: empty
    Ids ids;
  };
  size_t slot(std::string_view word, uint64_t hash) const;
  void grow();
  std::vector<Slot> slots_;
  size_t used_ = 0;
  std::string text_;
  std::vector<int32_t> ids_;
};

}  // namespace keysieve
