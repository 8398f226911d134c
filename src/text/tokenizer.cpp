#include "text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <deque>
#include <utility>

#include "keysieve/error.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/sentencepiece.h"
#include "text/splitter.h"
#include "text/utf8.h"

namespace keysieve {

namespace {

// The largest vocabularies have about 262,000 tokens; ids are kept well inside int32.
constexpr size_t kMostTokens = TokenMap::kMostTokens;

// Tokens that end a turn or a text, in the families whose tokenizers this room reads.
constexpr std::array<std::string_view, 9> kEndTokens = {
    "<|im_end|>", "<|endoftext|>",         "<|eot_id|>",           "<|end_of_text|>", "<|eom_id|>", "<|end|>",
    "<|EOT|>",    "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>"};

// The bytes a token stands for: the byte alphabet undone, or, if the token has any character outside of it,
// the token as it is spelled.
void append_token_bytes(std::string& out, std::string_view token) {
  const size_t begin = out.size();
  for (size_t i = 0; i < token.size();) {
    const Utf8Step step = utf8_step(token, i);
    const std::optional<uint8_t> byte = step.valid ? byte_alphabet_byte(step.code_point) : std::nullopt;
    if (!byte) {
      out.resize(begin);
      out.append(token);
      return;
    }
    out.push_back(static_cast<char>(*byte));
    i += step.length;
  }
}

std::string spell_in_byte_alphabet(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) append_utf8(out, byte_alphabet_character(static_cast<uint8_t>(c)));
  return out;
}

MergeTable make_merge_table(const TokenizerSpec& spec, const TokenMap& map, const std::vector<bool>& unused) {
  MergeTable table(spec.merges.size());
  std::string joined;
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const std::string_view merge = spec.merges[rank];
    const size_t space = merge.find(' ');
    if (space == 0 || space == std::string_view::npos || space + 1 == merge.size() ||
        merge.find(' ', space + 1) != std::string_view::npos) {
      throw Error(ErrorKind::format, spec.subject, fmt::format("merge {} is '{}'", rank, merge),
                  "two tokens with a space between");
    }
    joined.assign(merge.substr(0, space)).append(merge.substr(space + 1));
    const std::optional<int32_t> left = map.find(merge.substr(0, space));
    const std::optional<int32_t> right = map.find(merge.substr(space + 1));
    const std::optional<int32_t> result = map.find(joined);
    if (!left || !right || !result) {
      throw Error(ErrorKind::format, spec.subject,
                  fmt::format("merge {} '{}' names a token that is not in the vocabulary", rank, merge),
                  "tokens of the vocabulary", "get the file again");
    }
    if (unused[static_cast<size_t>(*result)]) continue;
    table.append(*left, *right, *result);
  }
  return table;
}

std::vector<bool> mark_ids(const std::vector<int32_t>& ids, const TokenizerSpec& spec) {
  std::vector<bool> marks(spec.tokens.size());
  for (const int32_t id : ids) {
    if (id < 0 || static_cast<size_t>(id) >= spec.tokens.size()) {
      throw Error(ErrorKind::format, spec.subject, fmt::format("token id {}", id),
                  fmt::format("0 to {}", static_cast<int64_t>(spec.tokens.size()) - 1));
    }
    marks[static_cast<size_t>(id)] = true;
  }
  return marks;
}

std::array<int32_t, 256> make_byte_ids(const TokenizerSpec& spec, const TokenMap& map,
                                       const std::vector<bool>& unused) {
  if (spec.sentencepiece) return fallback_ids(map);
  std::array<int32_t, 256> ids;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const std::optional<int32_t> id = map.find(spell_in_byte_alphabet({&c, 1}));
    ids[byte] = id && !unused[static_cast<size_t>(*id)] ? *id : spec.unknown_id.value_or(-1);
  }
  return ids;
}

void check_spec(const TokenizerSpec& spec) {
  const auto size = static_cast<int64_t>(spec.tokens.size());
  const auto fail = [&](std::string_view what, int64_t id) {
    throw Error(ErrorKind::format, spec.subject, fmt::format("{} {}", what, id),
                fmt::format("0 to {}", size - 1));
  };
  if (spec.tokens.empty()) throw Error(ErrorKind::format, spec.subject, "no tokens", "a vocabulary");
  if (spec.tokens.size() > kMostTokens || spec.merges.size() > kMostTokens) {
    throw Error(ErrorKind::format, spec.subject,
                fmt::format("{} tokens and {} merges", size, spec.merges.size()),
                fmt::format("at most {} each", kMostTokens));
  }
  if (spec.bos_id && (*spec.bos_id < 0 || *spec.bos_id >= size))
    fail("beginning-of-sequence id", *spec.bos_id);
  if (spec.eos_id && (*spec.eos_id < 0 || *spec.eos_id >= size)) fail("end-of-sequence id", *spec.eos_id);
  if (spec.unknown_id && (*spec.unknown_id < 0 || *spec.unknown_id >= size))
    fail("unknown id", *spec.unknown_id);
  for (const AddedToken& token : spec.added_tokens) {
    if (token.id < 0 || token.id >= size) fail("added token id", token.id);
    if (spec.tokens[static_cast<size_t>(token.id)] != token.content) {
      throw Error(ErrorKind::format, spec.subject,
                  fmt::format("id {} is added token '{}' and token '{}'", token.id, token.content,
                              spec.tokens[static_cast<size_t>(token.id)]),
                  "one token an id");
    }
  }
}

std::string with_marks(std::string_view text, const SpaceRules& spaces, bool first) {
  const bool prefix = spaces.prefix == SpacePrefix::always || (spaces.prefix == SpacePrefix::first && first);
  return mark_spaces(text, prefix, spaces.unless_there);
}

// What a normaliser makes of text.
std::string normalized_text(std::string_view text, const TokenizerSpec& spec, bool first) {
  std::string normalized(text);
  if (spec.normalize_nfc && !is_ascii(text)) normalized = normalize_nfc(text);
  if (spec.sentencepiece && spec.sentencepiece->in_normalizer) {
    normalized = with_marks(normalized, *spec.sentencepiece, first);
  }
  return normalized;
}

std::vector<AddedToken> added_tokens_where(const TokenizerSpec& spec, bool normalized) {
  std::vector<AddedToken> chosen;
  for (AddedToken token : spec.added_tokens) {
    if (token.normalized != normalized) continue;
    if (!is_valid_utf8(token.content)) continue;  // no text, which is valid UTF-8 by then, can contain it
    if (normalized) token.content = normalized_text(token.content, spec, true);
    chosen.push_back(std::move(token));
  }
  return chosen;
}

}  // namespace

struct Tokenizer::Impl {
  struct Step {
    bool add_prefix_space;
    std::optional<Splitter> splitter;
  };
  // What one call of encode works with.
  struct Work {
    MatchMemory memory;
    BytePairEncoder::Scratch scratch;
    WordCache cache;
    std::vector<std::string_view> words;
    std::vector<std::string_view> next_words;
    std::deque<std::string> prefixed;  // pieces that got a space in front
    std::vector<int32_t> symbols;      // of one word, before merging
    std::vector<int32_t> ids;
  };

  explicit Impl(TokenizerSpec&& given);
  // `first`: nothing comes before this text.
  void encode_plain(std::string_view text, bool first, bool parse_special, Work& work) const;
  // Between added tokens.
  void encode_words(std::string_view text, bool first, Work& work) const;
  void cut_into_words(std::string_view text, Work& work) const;
  void encode_word(std::string_view word, Work& work) const;
  // The tokens of a word's bytes or characters.
  void append_bytes(std::string_view bytes, std::vector<int32_t>& out) const;
  void append_characters(std::string_view word, std::vector<int32_t>& out) const;

  TokenizerSpec spec;  // without tokens and merges, which the next ones have
  TokenTexts texts;
  TokenMap map;
  std::vector<bool> unused;
  std::vector<bool> special;
  std::vector<bool>
      never_a_word;  // unused and added tokens: what a word may not become by being spelled like it
  std::array<int32_t, 256> byte_ids;  // -1: none, the byte is dropped
  bool words_alone;                   // SentencePiece: each word may be merged by itself
  BytePairEncoder encoder;
  AddedTokenMatcher added;
  AddedTokenMatcher added_normalized;
  std::vector<Step> steps;
  std::vector<int32_t> end_ids;
};

namespace {

TokenizerSpec checked(TokenizerSpec&& spec) {
  check_spec(spec);
  return std::move(spec);
}

}  // namespace

Tokenizer::Impl::Impl(TokenizerSpec&& given)
    : spec(checked(std::move(given))),
      texts(spec.tokens, spec.subject),
      map(texts, spec.subject),
      unused(mark_ids(spec.unused, spec)),
      special(spec.tokens.size()),
      never_a_word(unused),
      byte_ids(make_byte_ids(spec, map, unused)),
      words_alone(spec.sentencepiece && !spec.ignore_merges && map.find(kSpaceMark) &&
                  !merges_cross_words(spec.merges)),
      encoder(make_merge_table(spec, map, unused)),
      added(added_tokens_where(spec, false)),
      added_normalized(added_tokens_where(spec, true)) {
  for (const AddedToken& token : spec.added_tokens) {
    if (token.special) special[static_cast<size_t>(token.id)] = true;
    never_a_word[static_cast<size_t>(token.id)] = true;
  }
  for (const SplitStep& step : spec.splits) {
    steps.push_back({step.add_prefix_space, std::nullopt});
    if (!step.pattern.empty()) steps.back().splitter.emplace(step, spec.subject);
  }
  if (spec.eos_id) end_ids.push_back(*spec.eos_id);
  for (const std::string_view name : kEndTokens) {
    const std::optional<int32_t> id = map.find(name);
    if (id && special[static_cast<size_t>(*id)]) end_ids.push_back(*id);
  }
  std::sort(end_ids.begin(), end_ids.end());
  end_ids.erase(std::unique(end_ids.begin(), end_ids.end()), end_ids.end());
  // Not `= {}`, which assigns an empty list and keeps the memory.
  spec.merges = std::vector<std::string>();
  spec.tokens = std::vector<std::string>();
}

void Tokenizer::Impl::append_bytes(std::string_view bytes, std::vector<int32_t>& out) const {
  for (const char c : bytes) {
    const int32_t id = byte_ids[static_cast<uint8_t>(c)];
    if (id >= 0) out.push_back(id);
  }
}

void Tokenizer::Impl::append_characters(std::string_view word, std::vector<int32_t>& out) const {
  bool after_unknown = false;
  for (size_t at = 0; at < word.size();) {
    const std::string_view character = word.substr(at, utf8_step(word, at).length);
    at += character.size();
    std::optional<int32_t> known = map.find(character);
    if (known && unused[static_cast<size_t>(*known)]) known.reset();
    const bool has_bytes = std::all_of(character.begin(), character.end(),
                                       [&](char c) { return byte_ids[static_cast<uint8_t>(c)] >= 0; });
    if (known) {
      out.push_back(*known);
    } else if (has_bytes) {
      append_bytes(character, out);
    } else if (spec.unknown_id && !(spec.fuse_unknown && after_unknown)) {
      out.push_back(*spec.unknown_id);
    }
    after_unknown = !known && !has_bytes;
  }
}

void Tokenizer::Impl::encode_word(std::string_view word, Work& work) const {
  if (const auto known = work.cache.find(word)) {
    const int32_t* ids = work.cache.ids(*known);
    work.ids.insert(work.ids.end(), ids, ids + known->count);
    return;
  }
  const size_t begin = work.ids.size();
  std::optional<int32_t> whole;
  if (spec.ignore_merges) {
    whole = map.find(spec.sentencepiece ? std::string(word) : spell_in_byte_alphabet(word));
  }
  if (whole && !never_a_word[static_cast<size_t>(*whole)]) {
    work.ids.push_back(*whole);
  } else {
    work.symbols.clear();
    if (spec.sentencepiece) {
      append_characters(word, work.symbols);
    } else {
      append_bytes(word, work.symbols);
    }
    encoder.encode(work.symbols, work.scratch, work.ids);
  }
  work.cache.insert(word, work.ids.data() + begin, work.ids.size() - begin);
}

void Tokenizer::Impl::cut_into_words(std::string_view text, Work& work) const {
  work.words.assign(1, text);
  work.prefixed.clear();
  for (const Step& step : steps) {
    work.next_words.clear();
    for (std::string_view word : work.words) {
      if (step.add_prefix_space && word[0] != ' ') word = work.prefixed.emplace_back(" ").append(word);
      if (step.splitter) {
        step.splitter->split(word, work.memory, work.next_words);
      } else {
        work.next_words.push_back(word);
      }
    }
    work.words.swap(work.next_words);
  }
  if (!words_alone) return;
  work.next_words.clear();
  for (const std::string_view word : work.words) cut_into_marked_words(word, work.next_words);
  work.words.swap(work.next_words);
}

void Tokenizer::Impl::encode_words(std::string_view text, bool first, Work& work) const {
  std::string marked;
  if (spec.sentencepiece && !spec.sentencepiece->in_normalizer) {
    marked = with_marks(text, *spec.sentencepiece, first);
    text = marked;
  }
  cut_into_words(text, work);
  for (const std::string_view word : work.words) encode_word(word, work);
}

void Tokenizer::Impl::encode_plain(std::string_view text, bool first, bool parse_special, Work& work) const {
  std::string normalized;
  if (spec.sentencepiece || (spec.normalize_nfc && !is_ascii(text))) {
    normalized = normalized_text(text, spec, first);
    text = normalized;
  }
  for (const AddedTokenMatcher::Piece& piece : added_normalized.split(text, parse_special)) {
    if (piece.id >= 0) {
      work.ids.push_back(piece.id);
    } else {
      encode_words(piece.text, first && piece.text.data() == text.data(), work);
    }
  }
}

Tokenizer::Tokenizer(TokenizerSpec spec) : impl_(std::make_unique<const Impl>(std::move(spec))) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special) const {
  if (text.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw Error(ErrorKind::resource, "text", fmt::format("{} bytes", text.size()), "less than 2 GiB");
  }
  std::string replaced;
  if (!is_valid_utf8(text)) {
    replaced = replace_invalid_utf8(text);
    text = replaced;
  }
  Impl::Work work;
  for (const AddedTokenMatcher::Piece& piece : impl_->added.split(text, parse_special)) {
    if (piece.id >= 0) {
      work.ids.push_back(piece.id);
    } else {
      impl_->encode_plain(piece.text, piece.text.data() == text.data(), parse_special, work);
    }
  }
  return std::move(work.ids);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocabulary_size() || token_text(id).empty()) {
      throw Error(ErrorKind::usage, "token id", fmt::format("{}", id),
                  fmt::format("a token of the vocabulary, 0 to {}", vocabulary_size() - 1));
    }
    if (!skip_special || !is_special(id)) bytes += token_bytes(id);
  }
  const std::optional<SpaceRules>& spaces = impl_->spec.sentencepiece;
  if (spaces && spaces->strip_first && bytes.starts_with(' ')) bytes.erase(0, 1);
  return is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes);
}

int32_t Tokenizer::vocabulary_size() const { return static_cast<int32_t>(impl_->texts.size()); }
std::optional<int32_t> Tokenizer::bos_id() const { return impl_->spec.bos_id; }
std::optional<int32_t> Tokenizer::eos_id() const { return impl_->spec.eos_id; }
bool Tokenizer::add_bos() const { return impl_->spec.add_bos && impl_->spec.bos_id; }
std::span<const int32_t> Tokenizer::end_ids() const { return impl_->end_ids; }

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocabulary_size() && impl_->special[static_cast<size_t>(id)];
}

std::string Tokenizer::token_bytes(int32_t id) const {
  std::string bytes;
  if (impl_->spec.sentencepiece) {
    append_piece_bytes(bytes, token_text(id));
  } else {
    append_token_bytes(bytes, token_text(id));
  }
  return bytes;
}

std::string_view Tokenizer::token_text(int32_t id) const {
  if (id < 0 || id >= vocabulary_size()) return {};
  return impl_->texts[static_cast<size_t>(id)];
}

std::optional<int32_t> Tokenizer::find_token(std::string_view text) const {
  if (text.empty()) return std::nullopt;
  return impl_->map.find(text);
}

void Tokenizer::check_fits(int64_t model_vocabulary, std::string_view subject) const {
  if (vocabulary_size() <= model_vocabulary) return;
  throw Error(ErrorKind::mismatch, subject,
              fmt::format("{} vocabulary rows, but {} has token ids up to {}", model_vocabulary,
                          impl_->spec.subject, vocabulary_size() - 1),
              "a row for every token", "use the tokenizer that came with the model");
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

std::string StreamDecoder::push(int32_t id) {
  if (id < 0) throw Error(ErrorKind::usage, "token id", fmt::format("{}", id), "0 or more");
  if (skip_special_ && tokenizer_->is_special(id)) return {};
  pending_ += tokenizer_->token_bytes(id);
  const size_t open = incomplete_utf8_suffix(pending_);
  std::string complete = replace_invalid_utf8(std::string_view(pending_).substr(0, pending_.size() - open));
  pending_.erase(0, pending_.size() - open);
  return complete;
}

std::string StreamDecoder::flush() {
  std::string rest = replace_invalid_utf8(pending_);
  pending_.clear();
  return rest;
}

}  // namespace keysieve
