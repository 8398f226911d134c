#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace keysieve {

// A token matched in the text before the byte-pair encoding sees it: "<|im_start|>", "<think>".
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // a control token: recognised only with parse_special, left out by skip_special
  bool lstrip = false;       // swallows white space before it
  bool rstrip = false;       // swallows white space after it
  bool single_word = false;  // matches only between characters that are not word characters
  bool normalized = false;   // matched after normalisation instead of before
};

// What becomes of the matches of a split pattern: the names and meanings of Hugging Face tokenizers.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

// One step of cutting text into words; steps run in order, each on the pieces of the one before.
struct SplitStep {
  bool add_prefix_space = false;  // first a space goes before each piece that does not start with one
  std::string pattern;            // PCRE2 syntax with Unicode properties; empty cuts nothing
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  // the pattern describes what lies between the matches
};

// Which texts get a space in front.
enum class SpacePrefix { never, first, always };  // first: not what follows an added token

// How a SentencePiece vocabulary takes text apart. Spaces become "▁".
struct SpaceRules {
  SpacePrefix prefix = SpacePrefix::never;
  bool unless_there = false;  // no second space in front
  // Whether spaces are marked before `normalized` added tokens are looked for (a normaliser) or after them
  // (Metaspace).
  bool in_normalizer = true;
  bool strip_first = false;  // decoding takes one space off the front of a text
};

// Everything that defines a BPE tokenizer, as plain data. The token strings are spelled as every file holds
// them: in the GPT-2 byte alphabet ("Ġthe"), or those of SentencePiece in plain text with "▁" for a space and
// "<0x0A>" for the bytes of characters that have no token.
struct TokenizerSpec {
  std::string subject = "tokenizer";  // names the source in error messages, usually a path
  std::vector<std::string> tokens;    // [vocabulary], indexed by id; an empty string is an id without a token
  std::vector<std::string> merges;    // "left right", best first
  std::vector<AddedToken> added_tokens;
  std::vector<int32_t> unused;        // ids that text never produces, though they have a name
  std::optional<int32_t> unknown_id;  // stands for bytes without a token; without it they are dropped
  bool fuse_unknown = false;          // SentencePiece: one stands for all that follow each other
  std::vector<SplitStep> splits;
  std::optional<SpaceRules> sentencepiece;  // not a byte-level vocabulary
  bool normalize_nfc = false;
  bool ignore_merges = false;  // a word that is itself a token needs no merging (Llama 3)
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  bool add_bos = false;
};

// The tokenizer keys of a GGUF file, without `tokenizer.ggml.`.
struct GgufVocabulary {
  std::string model;  // "gpt2", a byte-level BPE, or "llama", a SentencePiece BPE
  std::string pre;    // names the split patterns: "qwen2", "llama-bpe", ...; empty means "default"
  std::vector<std::string> tokens;
  std::vector<std::string> merges;   // gpt2 only
  std::vector<float> scores;         // [tokens], llama only: the order of merges
  std::vector<int32_t> token_types;  // [tokens] or empty: 1 normal, 2 unknown, 3 control, 4 user-defined,
                                     // 5 unused, 6 byte
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::optional<int32_t> unknown_id;
  std::optional<bool> add_bos;
  std::optional<bool> add_space_prefix;  // llama only
};

// `pre` names that tokenizer_spec_from_gguf knows, sorted.
std::vector<std::string_view> known_gguf_pre_tokenizers();

// Throws Error{unsupported} for another model and for an unknown `pre`, Error{format} for damaged data.
TokenizerSpec tokenizer_spec_from_gguf(GgufVocabulary vocabulary, std::string_view subject);

// `json` is a tokenizer.json and `config_json` the tokenizer_config.json beside it, empty if there is none.
// The split patterns and the normaliser are the file's own. Throws Error{format} for damaged files and
// Error{unsupported}, naming the part, for anything but a byte-level BPE or one of SentencePiece (Unigram,
// WordPiece, ...).
TokenizerSpec tokenizer_spec_from_json(std::string_view json, std::string_view config_json,
                                       std::string_view subject);

// Text to token ids and back; the same ids as Hugging Face tokenizers without their post-processor: nothing
// is added in front or behind (see add_bos). Immutable, so one object serves any number of threads.
class Tokenizer {
 public:
  // Throws Error{format} for ids out of range, duplicate tokens and merges of unknown tokens,
  // Error{unsupported} for split patterns that PCRE2 cannot run.
  explicit Tokenizer(TokenizerSpec spec);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // With parse_special false, control tokens spelled in the text are plain text; other added tokens are
  // recognised all the same. Bytes that are not UTF-8 become U+FFFD first, as Python's
  // bytes.decode(errors="replace") does: the reference takes strings only. Bytes without a token in the
  // vocabulary are dropped. Throws Error{resource} when a split pattern exceeds its matching limits or the
  // text is 2 GiB or longer.
  std::vector<int32_t> encode(std::string_view text, bool parse_special) const;

  // A whole text: SentencePiece's space in front of it is taken off again. U+FFFD stands for bytes that are
  // not UTF-8. Throws Error{usage} for an id without a token.
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  int32_t vocabulary_size() const;  // highest id + 1
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  bool add_bos() const;  // whether a prompt without a chat template starts with bos_id
  // eos_id and the well-known tokens that end a turn or a text, where the vocabulary has them; ascending.
  std::span<const int32_t> end_ids() const;
  bool is_special(int32_t id) const;  // false for ids out of range

  // The bytes of a token, possibly a part of a character; empty for an id without a token.
  std::string token_bytes(int32_t id) const;
  // The token as the file spells it ("Ġthe"); empty for an id without a token.
  std::string_view token_text(int32_t id) const;
  std::optional<int32_t> find_token(std::string_view token_text) const;

  // Throws Error{mismatch} if this tokenizer has ids that a model with `model_vocabulary` rows has no row
  // for. `subject` names the model. Models with more rows than tokens are common (padding) and fit.
  void check_fits(int64_t model_vocabulary, std::string_view subject) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

// Turns ids that arrive one by one into the text that they add to a prompt; the concatenated results equal
// Tokenizer::decode of all ids, but for a space in front, which belongs there. Keeps a reference to the
// tokenizer.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true);

  // The text completed by this token, empty while a character is still open. An id past the vocabulary gives
  // nothing: models have padding rows. Throws Error{usage} for a negative id.
  std::string push(int32_t id);
  // What is left: U+FFFD for an open character. The decoder is then as new.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;  // at most 3 bytes between calls
};

}  // namespace keysieve
