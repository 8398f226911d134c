#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "keysieve/error.h"
#include "text/sentencepiece.h"
#include "text/splitter.h"
#include "text/tokenizer.h"

namespace keysieve {

namespace {

constexpr std::string_view kGpt2 = kGpt2SplitPattern;
constexpr std::string_view kDigit = R"(\p{N})";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepSeekV3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kCjk = "[一-龥ࠀ-一가-\xED\x9F\xBF]+";
constexpr std::string_view kLineBreak = R"([\r\n])";

struct PreTokenizer {
  std::string_view name;
  std::array<std::string_view, 5> patterns;  // each Isolated; empty ones at the end do nothing
  bool normalize_nfc = false;
  bool ignore_merges = false;
};

// What llama.cpp's names for split patterns stand for, as the tokenizer.json files of those models state
// them. Sorted by name.
constexpr std::array kPreTokenizers = {
    PreTokenizer{"chatglm-bpe", {kLlama3}},
    PreTokenizer{"command-r", {kDigit, kGpt2}},
    PreTokenizer{"dbrx", {kLlama3}},
    PreTokenizer{"deepseek-coder", {kLineBreak, R"(\s?\p{L}+)", R"(\s?\p{P}+)", kCjk, kDigit}},
    PreTokenizer{
        "deepseek-llm",
        // Cased letters; the original spells all their ranges out.
        {kLineBreak, R"(\s?[\p{Lu}\p{Ll}\p{Lt}]+)", R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)", kCjk, R"(\p{N}+)"}},
    PreTokenizer{"deepseek-r1-qwen", {kQwen2}},
    PreTokenizer{"deepseek-v3", {R"(\p{N}{1,3})", "[一-龥\xE3\x81\x80-ゟ゠-ヿ]+", kDeepSeekV3}},
    PreTokenizer{"default",
                 {R"([\p{P}\$\+<=>\^~\|]+)",
                  R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))", R"(\p{N}+)",
                  "[0-9][0-9][0-9]"}},
    PreTokenizer{"exaone", {kDigit, kGpt2}},
    PreTokenizer{"falcon3", {kLlama3}, false, true},
    PreTokenizer{"gpt-2", {kGpt2}},
    PreTokenizer{"gpt-4o", {kGpt4o}},
    PreTokenizer{"llama-bpe", {kLlama3}, false, true},
    PreTokenizer{"llama-v3", {kLlama3}, false, true},
    PreTokenizer{"llama3", {kLlama3}, false, true},
    PreTokenizer{"llama4", {kGpt4o}},
    PreTokenizer{"minerva-7b", {kDigit, kGpt2}},
    PreTokenizer{"mpt", {kGpt2}},
    PreTokenizer{"olmo", {kGpt2}},
    PreTokenizer{"phi-2", {kGpt2}},
    PreTokenizer{"qwen2", {kQwen2}, true},
    PreTokenizer{"refact", {kDigit, kGpt2}},
    PreTokenizer{"roberta-bpe", {kGpt2}},
    PreTokenizer{"smaug-bpe", {kLlama3}},
    PreTokenizer{"smollm", {kDigit, kGpt2}},
    PreTokenizer{"starcoder", {kDigit, kGpt2}},
    PreTokenizer{"tekken", {kTekken}, false, true},
};

const PreTokenizer& find_pre_tokenizer(std::string_view name, std::string_view subject) {
  if (name.empty()) name = "default";
  const auto found = std::find_if(kPreTokenizers.begin(), kPreTokenizers.end(),
                                  [name](const PreTokenizer& pre) { return pre.name == name; });
  if (found != kPreTokenizers.end()) return *found;
  throw Error(ErrorKind::unsupported, subject, fmt::format("tokenizer.ggml.pre is '{}'", name),
              fmt::format("one of {}", fmt::join(known_gguf_pre_tokenizers(), ", ")),
              "use the model's Hub folder with its tokenizer.json");
}

// tokenizer.ggml.token_type
constexpr int32_t kNormal = 1;
constexpr int32_t kControl = 3;
constexpr int32_t kUserDefined = 4;
constexpr int32_t kUnused = 5;

void add_byte_level(TokenizerSpec& spec, GgufVocabulary& vocabulary) {
  const PreTokenizer& pre = find_pre_tokenizer(vocabulary.pre, spec.subject);
  for (const std::string_view pattern : pre.patterns) {
    if (!pattern.empty()) spec.splits.push_back({.pattern = std::string(pattern)});
  }
  spec.normalize_nfc = pre.normalize_nfc;
  spec.ignore_merges = pre.ignore_merges;
  spec.merges = std::move(vocabulary.merges);
  // Llama 3 files from before the key existed expect it.
  spec.add_bos = vocabulary.add_bos.value_or(pre.ignore_merges);
}

void add_sentencepiece(TokenizerSpec& spec, const GgufVocabulary& vocabulary) {
  const size_t count = vocabulary.tokens.size();
  if (vocabulary.scores.size() != count) {
    throw Error(ErrorKind::format, spec.subject,
                fmt::format("{} tokens and {} scores", count, vocabulary.scores.size()), "one score a token",
                "get the file again");
  }
  if (std::any_of(vocabulary.scores.begin(), vocabulary.scores.end(),
                  [](float s) { return std::isnan(s); })) {
    throw Error(ErrorKind::format, spec.subject, "a score that is no number", "numbers",
                "get the file again");
  }
  std::vector<bool> mergeable(count, true);
  for (size_t i = 0; i < vocabulary.token_types.size(); ++i)
    mergeable[i] = vocabulary.token_types[i] == kNormal;
  spec.merges = merges_from_scores(vocabulary.tokens, vocabulary.scores, mergeable, spec.subject);
  // The defaults of llama.cpp.
  const bool prefix = vocabulary.add_space_prefix.value_or(true);
  spec.sentencepiece =
      SpaceRules{.prefix = prefix ? SpacePrefix::always : SpacePrefix::never, .strip_first = prefix};
  spec.unknown_id = vocabulary.unknown_id;
  spec.fuse_unknown = true;
  spec.add_bos = vocabulary.add_bos.value_or(true);
}

}  // namespace

std::vector<std::string_view> known_gguf_pre_tokenizers() {
  std::vector<std::string_view> names;
  for (const PreTokenizer& pre : kPreTokenizers) names.push_back(pre.name);
  return names;
}

TokenizerSpec tokenizer_spec_from_gguf(GgufVocabulary vocabulary, std::string_view subject) {
  if (vocabulary.model != "gpt2" && vocabulary.model != "llama") {
    throw Error(ErrorKind::unsupported, subject,
                fmt::format("tokenizer.ggml.model is '{}'", vocabulary.model),
                "gpt2 or llama, a byte-level BPE or one of SentencePiece",
                "use a model of the Qwen, Llama, Mistral or SmolLM families");
  }
  if (!vocabulary.token_types.empty() && vocabulary.token_types.size() != vocabulary.tokens.size()) {
    throw Error(
        ErrorKind::format, subject,
        fmt::format("{} tokens and {} token types", vocabulary.tokens.size(), vocabulary.token_types.size()),
        "one type a token", "get the file again");
  }
  TokenizerSpec spec;
  spec.subject = subject;
  if (vocabulary.model == "gpt2") {
    add_byte_level(spec, vocabulary);
  } else {
    add_sentencepiece(spec, vocabulary);
  }
  for (size_t i = 0; i < vocabulary.token_types.size(); ++i) {
    const int32_t type = vocabulary.token_types[i];
    const auto id = static_cast<int32_t>(i);
    if (type == kUnused) spec.unused.push_back(id);
    if (type != kControl && type != kUserDefined) continue;
    spec.added_tokens.push_back({.id = id, .content = vocabulary.tokens[i], .special = type == kControl});
  }
  spec.tokens = std::move(vocabulary.tokens);
  spec.bos_id = vocabulary.bos_id;
  spec.eos_id = vocabulary.eos_id;
  return spec;
}

}  // namespace keysieve
