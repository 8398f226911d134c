#include "text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include "keysieve/error.h"

namespace keysieve {

namespace {

constexpr bool stands_for_itself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

struct ByteAlphabet {
  std::array<char16_t, 256> characters{};
  std::array<int16_t, 0x144> bytes{};  // by character; -1: not of the alphabet
};

constexpr ByteAlphabet make_byte_alphabet() {
  ByteAlphabet alphabet;
  alphabet.bytes.fill(-1);
  char16_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const char16_t character = stands_for_itself(byte) ? static_cast<char16_t>(byte) : next++;
    alphabet.characters[byte] = character;
    alphabet.bytes[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr ByteAlphabet kByteAlphabet = make_byte_alphabet();

uint64_t hash_of(std::string_view text) { return std::hash<std::string_view>{}(text); }

// The upper 8 bits of a TokenMap's slot: from the upper end of the hash, whose lower end chooses the slot.
uint32_t hash_bits(std::string_view text) {
  return static_cast<uint32_t>(std::min<uint64_t>(hash_of(text) >> 56, 254)) << 24;
}

}  // namespace

char32_t byte_alphabet_character(uint8_t byte) { return kByteAlphabet.characters[byte]; }

std::optional<uint8_t> byte_alphabet_byte(char32_t character) {
  if (character >= kByteAlphabet.bytes.size() || kByteAlphabet.bytes[character] < 0) return std::nullopt;
  return static_cast<uint8_t>(kByteAlphabet.bytes[character]);
}

TokenTexts::TokenTexts(const std::vector<std::string>& tokens, std::string_view subject) {
  size_t total = 0;
  for (const std::string& token : tokens) total += token.size();
  if (total > std::numeric_limits<uint32_t>::max()) {
    throw Error(ErrorKind::format, subject, "tokens of more than 4 GiB in all", "a vocabulary");
  }
  text_.reserve(total);
  offsets_.reserve(tokens.size() + 1);
  offsets_.push_back(0);
  for (const std::string& token : tokens) {
    text_ += token;
    offsets_.push_back(static_cast<uint32_t>(text_.size()));
  }
}

TokenMap::TokenMap(const TokenTexts& tokens, std::string_view subject)
    : tokens_(&tokens), slots_(std::bit_ceil(tokens.size() + tokens.size() / 3 + 2), kEmpty) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].empty()) continue;
    const size_t at = slot(tokens[i]);
    if (slots_[at] != kEmpty) {
      throw Error(ErrorKind::format, subject,
                  fmt::format("token '{}' has the ids {} and {}", tokens[i], id(at), i), "every token once");
    }
    slots_[at] = hash_bits(tokens[i]) | static_cast<uint32_t>(i);
  }
}

size_t TokenMap::slot(std::string_view token) const {
  const size_t mask = slots_.size() - 1;
  const uint32_t bits = hash_bits(token);
  size_t at = hash_of(token) & mask;
  for (; slots_[at] != kEmpty; at = (at + 1) & mask) {
    if ((slots_[at] & ~kId) == bits && (*tokens_)[static_cast<size_t>(id(at))] == token) break;
  }
  return at;
}

std::optional<int32_t> TokenMap::find(std::string_view token) const {
  const size_t at = slot(token);
  if (slots_[at] == kEmpty) return std::nullopt;
  return id(at);
}

MergeTable::MergeTable(size_t capacity) : slots_(std::bit_ceil(capacity + capacity / 2 + 2), kEmpty) {
  merges_.reserve(capacity);
}

size_t MergeTable::slot(int32_t left, int32_t right) const {
  const uint64_t key =
      (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
  // Two rounds of multiply and fold (the finaliser of MurmurHash3): neighbouring ids scatter.
  uint64_t hash = (key ^ (key >> 33)) * 0xff51afd7ed558ccdu;
  hash = (hash ^ (hash >> 33)) * 0xc4ceb9fe1a85ec53u;
  const size_t mask = slots_.size() - 1;
  size_t at = (hash ^ (hash >> 33)) & mask;
  for (; slots_[at] != kEmpty; at = (at + 1) & mask) {
    const Entry& entry = merges_[slots_[at]];
    if (entry.left == left && entry.right == right) break;
  }
  return at;
}

void MergeTable::append(int32_t left, int32_t right, int32_t result) {
  slots_[slot(left, right)] = static_cast<uint32_t>(merges_.size());
  merges_.push_back({left, right, result});
}

std::optional<Merge> MergeTable::find(int32_t left, int32_t right) const {
  const uint32_t rank = slots_[slot(left, right)];
  if (rank == kEmpty) return std::nullopt;
  return Merge{rank, merges_[rank].result};
}

BytePairEncoder::BytePairEncoder(MergeTable merges) : merges_(std::move(merges)) {}

namespace {

// For std heaps, which keep the largest on top: the worse candidate is the smaller one.
bool worse(const BytePairEncoder::Scratch::Candidate& a, const BytePairEncoder::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

}  // namespace

void BytePairEncoder::push_candidate(Scratch& scratch, int32_t position) const {
  if (position < 0) return;
  const Scratch::Symbol& left = scratch.symbols[static_cast<size_t>(position)];
  if (left.next < 0) return;
  const int32_t right = scratch.symbols[static_cast<size_t>(left.next)].id;
  const std::optional<Merge> merge = merges_.find(left.id, right);
  if (!merge) return;
  scratch.heap.push_back({merge->rank, position, left.id, right, merge->result});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), worse);
}

void BytePairEncoder::encode(std::span<const int32_t> word, Scratch& scratch,
                             std::vector<int32_t>& out) const {
  auto& symbols = scratch.symbols;
  symbols.clear();
  scratch.heap.clear();
  for (const int32_t id : word) {
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, index - 1, index + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  for (size_t i = 0; i + 1 < symbols.size(); ++i) push_candidate(scratch, static_cast<int32_t>(i));

  while (!scratch.heap.empty()) {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), worse);
    const Scratch::Candidate best = scratch.heap.back();
    scratch.heap.pop_back();
    Scratch::Symbol& left = symbols[static_cast<size_t>(best.position)];
    // Stale candidates: one side has merged with another neighbour since.
    if (left.id != best.left || left.next < 0) continue;
    Scratch::Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (right.id != best.right) continue;
    left.id = best.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.position;
    push_candidate(scratch, left.previous);
    push_candidate(scratch, best.position);
  }
  for (int32_t at = 0; at >= 0; at = symbols[static_cast<size_t>(at)].next) {
    out.push_back(symbols[static_cast<size_t>(at)].id);
  }
}

namespace {

// Longer words are rare and would fill the memory of a cache that never forgets; 32,768 entries of 64 bytes
// and as many ids are 11 MB at most.
constexpr size_t kLongestCachedWord = 64;
constexpr size_t kMostCachedWords = 32'768;

}  // namespace

WordCache::WordCache() : slots_(256, Slot{0, 0, 0, {0, 0}}) {}

size_t WordCache::slot(std::string_view word, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  size_t at = hash & mask;
  while (slots_[at].length != 0 &&
         (slots_[at].hash != hash ||
          std::string_view(text_).substr(slots_[at].text, slots_[at].length) != word)) {
    at = (at + 1) & mask;
  }
  return at;
}

std::optional<WordCache::Ids> WordCache::find(std::string_view word) const {
  if (word.size() > kLongestCachedWord) return std::nullopt;
  const Slot& found = slots_[slot(word, hash_of(word))];
  if (found.length == 0) return std::nullopt;
  return found.ids;
}

void WordCache::grow() {
  std::vector<Slot> old(slots_.size() * 2, Slot{0, 0, 0, {0, 0}});
  old.swap(slots_);
  const size_t mask = slots_.size() - 1;
  for (const Slot& entry : old) {
    if (entry.length == 0) continue;
    size_t at = entry.hash & mask;
    while (slots_[at].length != 0) at = (at + 1) & mask;
    slots_[at] = entry;
  }
}

void WordCache::insert(std::string_view word, const int32_t* ids, size_t count) {
  if (word.empty() || word.size() > kLongestCachedWord || used_ >= kMostCachedWords) return;
  if (++used_ * 2 > slots_.size()) grow();
  const uint64_t hash = hash_of(word);
  slots_[slot(word, hash)] = {hash,
                              static_cast<uint32_t>(text_.size()),
                              static_cast<uint32_t>(word.size()),
                              {static_cast<uint32_t>(ids_.size()), static_cast<uint32_t>(count)}};
  text_.append(word);
  ids_.insert(ids_.end(), ids, ids + count);
}

}  // namespace keysieve
