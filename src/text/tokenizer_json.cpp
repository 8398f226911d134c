#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "core/json.h"
#include "keysieve/error.h"
#include "text/sentencepiece.h"
#include "text/splitter.h"
#include "text/tokenizer.h"
#include "text/tokenizer_json_reader.h"

namespace keysieve {

namespace {

constexpr std::string_view kTokenizerWayOut =
    "use a BPE model (Qwen, Llama, Mistral, SmolLM) or its GGUF file";

[[noreturn]] void unsupported(std::string_view subject, std::string_view part, std::string_view found,
                              std::string_view expected) {
  throw Error(ErrorKind::unsupported, subject, fmt::format("{} {}", part, found), expected, kTokenizerWayOut);
}

const Json* member(const Json& object, std::string_view key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::string type_of(const Json& part, std::string_view subject) {
  return json_value(part, "type", std::string("of no type"), subject);
}

const Json::array_t& array_of(const Json& part, std::string_view key, std::string_view subject) {
  const Json* list = member(part, key);
  if (!list || !list->is_array()) throw Error(ErrorKind::format, subject, fmt::format("no list '{}'", key));
  return list->get_ref<const Json::array_t&>();
}

void check_model(const Json& document, std::string_view subject) {
  const Json* model = member(document, "model");
  if (!model || !model->is_object())
    throw Error(ErrorKind::format, subject, "no 'model'", "a tokenizer.json");
  // Files from before the key existed hold a BPE if they have merges.
  const std::string type = json_value(*model, "type", std::string("BPE"), subject);
  if (type != "BPE") unsupported(subject, "model", type, "BPE");
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* affix = member(*model, key);
    if (affix && !(affix->is_string() && affix->get_ref<const std::string&>().empty())) {
      unsupported(subject, "model", fmt::format("with {}", key), "none");
    }
  }
  // The reader takes both out where they have their proper types.
  for (const std::string_view key : {"vocab", "merges"}) {
    if (model->contains(key)) {
      throw Error(ErrorKind::format, subject, fmt::format("model.{} of another type", key),
                  "an object of ids and a list of merges");
    }
  }
  if (member(*model, "dropout") && json_value(*model, "dropout", 0.0, subject) != 0.0) {
    unsupported(subject, "model", "with dropout", "none");
  }
}

// "pattern" of a Split or Replace step where it is a string and no regular expression.
std::optional<std::string> string_pattern(const Json& step, std::string_view subject) {
  const Json* pattern = member(step, "pattern");
  if (!pattern || !pattern->is_object() || !member(*pattern, "String")) return std::nullopt;
  return json_require<std::string>(*pattern, "String", subject);
}

// Normalisers that are known here.
struct NormalizerSteps {
  bool nfc = false;
  bool prepend = false;  // ▁ in front
  bool replace = false;  // ▁ for spaces
};

void read_normalizer(const Json* normalizer, NormalizerSteps& steps, std::string_view subject,
                     int depth = 0) {
  if (!normalizer) return;
  const std::string type = type_of(*normalizer, subject);
  if (type == "NFC") {
    steps.nfc = true;
  } else if (type == "Sequence" && depth < 8) {
    for (const Json& part : array_of(*normalizer, "normalizers", subject)) {
      read_normalizer(&part, steps, subject, depth + 1);
    }
  } else if (type == "Prepend" && json_value(*normalizer, "prepend", std::string(), subject) == kSpaceMark) {
    steps.prepend = true;
  } else if (type == "Replace" && string_pattern(*normalizer, subject) == " " &&
             json_value(*normalizer, "content", std::string(), subject) == kSpaceMark) {
    steps.replace = true;
  } else {
    unsupported(subject, "normalizer", type, "NFC, ▁ for spaces or none");
  }
}

void read_metaspace(const Json& step, TokenizerSpec& spec) {
  const std::string& subject = spec.subject;
  const bool comes_first = spec.splits.empty() && !spec.sentencepiece;
  if (!comes_first || json_value(step, "replacement", std::string(), subject) != kSpaceMark) {
    unsupported(subject, "pre_tokenizer", "Metaspace", "one that makes ▁ of spaces, before other steps");
  }
  SpaceRules& spaces = spec.sentencepiece.emplace();
  spaces.in_normalizer = false;
  spaces.unless_there = true;
  // Files from before "prepend_scheme" have "add_prefix_space".
  const bool prefix = json_value(step, "add_prefix_space", true, subject);
  const auto scheme = json_value(step, "prepend_scheme", std::string(prefix ? "always" : "never"), subject);
  if (scheme == "always") spaces.prefix = SpacePrefix::always;
  if (scheme == "first") spaces.prefix = SpacePrefix::first;
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    unsupported(subject, "prepend_scheme", scheme, "always, first or never");
  }
  if (json_value(step, "split", true, subject)) {
    spec.splits.push_back({.pattern = std::string(kSpaceMark), .behavior = SplitBehavior::merged_with_next});
  }
}

// Whether decoding takes a space off the front.
bool strips_first_space(const Json* decoder, const TokenizerSpec& spec, int depth = 0) {
  if (!decoder) return false;
  const std::string& subject = spec.subject;
  const std::string type = type_of(*decoder, subject);
  if (type == "Metaspace") return spec.sentencepiece->prefix != SpacePrefix::never;
  if (type == "Strip") {
    return json_value(*decoder, "content", std::string(), subject) == " " &&
           json_value(*decoder, "start", size_t{0}, subject) > 0;
  }
  if (type != "Sequence" || depth > 8) return false;
  const Json::array_t& parts = array_of(*decoder, "decoders", subject);
  return std::any_of(parts.begin(), parts.end(),
                     [&](const Json& part) { return strips_first_space(&part, spec, depth + 1); });
}

SplitBehavior behavior_of(const Json& step, std::string_view subject) {
  constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> kNames = {{
      {"Removed", SplitBehavior::removed},
      {"Isolated", SplitBehavior::isolated},
      {"MergedWithPrevious", SplitBehavior::merged_with_previous},
      {"MergedWithNext", SplitBehavior::merged_with_next},
      {"Contiguous", SplitBehavior::contiguous},
  }};
  const auto name = json_require<std::string>(step, "behavior", subject);
  for (const auto& [known, behavior] : kNames) {
    if (known == name) return behavior;
  }
  unsupported(subject, "split behavior", name,
              "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

std::string split_pattern(const Json& step, std::string_view subject) {
  const Json* pattern = member(step, "pattern");
  if (pattern && pattern->is_object() && member(*pattern, "Regex")) {
    return json_require<std::string>(*pattern, "Regex", subject);
  }
  if (const auto text = string_pattern(step, subject)) {
    std::string escaped;
    for (const char c : *text) {
      // Every ASCII character but letters and digits may be escaped.
      const bool plain = static_cast<uint8_t>(c) >= 0x80 || (c >= '0' && c <= '9') ||
                         (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
      if (!plain) escaped += '\\';
      escaped += c;
    }
    return escaped;
  }
  throw Error(ErrorKind::format, subject, "a Split step without a pattern", "a Regex or a String");
}

// Appends the steps of a pre-tokenizer; `byte_level` becomes true at the ByteLevel step, which must be the
// last.
void append_splits(const Json& step, TokenizerSpec& spec, bool& byte_level, int depth = 0) {
  const std::string& subject = spec.subject;
  std::vector<SplitStep>& out = spec.splits;
  const std::string type = type_of(step, subject);
  if (byte_level)
    unsupported(subject, "pre_tokenizer", fmt::format("{} after ByteLevel", type), "ByteLevel last");
  if (type == "Sequence" && depth < 8) {
    for (const Json& part : array_of(step, "pretokenizers", subject)) {
      append_splits(part, spec, byte_level, depth + 1);
    }
  } else if (type == "Split") {
    out.push_back({.pattern = split_pattern(step, subject),
                   .behavior = behavior_of(step, subject),
                   .invert = json_value(step, "invert", false, subject)});
  } else if (type == "Digits") {
    const bool individual = json_value(step, "individual_digits", false, subject);
    out.push_back(
        {.pattern = "\\p{N}", .behavior = individual ? SplitBehavior::isolated : SplitBehavior::contiguous});
  } else if (type == "Punctuation") {
    const bool named = member(step, "behavior") != nullptr;
    out.push_back({.pattern = "[\\p{P}!-/:-@\\[-`{-~]",
                   .behavior = named ? behavior_of(step, subject) : SplitBehavior::isolated});
  } else if (type == "Whitespace") {
    out.push_back({.pattern = "\\w+|[^\\w\\s]+", .behavior = SplitBehavior::removed, .invert = true});
  } else if (type == "WhitespaceSplit") {
    out.push_back({.pattern = "\\s", .behavior = SplitBehavior::removed});
  } else if (type == "Metaspace") {
    read_metaspace(step, spec);
  } else if (type == "ByteLevel") {
    byte_level = true;
    SplitStep split;
    split.add_prefix_space = json_value(step, "add_prefix_space", true, subject);
    if (json_value(step, "use_regex", true, subject)) split.pattern = kGpt2SplitPattern;
    if (split.add_prefix_space || !split.pattern.empty()) out.push_back(std::move(split));
  } else {
    unsupported(subject, "pre_tokenizer", type,
                "Split, Digits, Punctuation, Whitespace, Metaspace, ByteLevel");
  }
}

AddedToken added_token(const Json& entry, std::string_view subject) {
  AddedToken token;
  const auto id = json_require<size_t>(entry, "id", subject);
  if (id > static_cast<size_t>(INT32_MAX)) {
    throw Error(ErrorKind::format, subject, fmt::format("added token id {}", id), "an id below 2^31");
  }
  token.id = static_cast<int32_t>(id);
  token.content = json_require<std::string>(entry, "content", subject);
  token.special = json_value(entry, "special", false, subject);
  token.lstrip = json_value(entry, "lstrip", false, subject);
  token.rstrip = json_value(entry, "rstrip", false, subject);
  token.single_word = json_value(entry, "single_word", false, subject);
  token.normalized = json_value(entry, "normalized", !token.special, subject);
  return token;
}

// Puts tokens at their ids. Ids may leave gaps, but not so many that a small file asks for a large
// allocation.
void place_tokens(TokenizerSpec& spec, std::vector<std::pair<std::string, int64_t>> vocabulary) {
  const size_t entries = vocabulary.size() + spec.added_tokens.size();
  const auto limit = static_cast<int64_t>(2 * entries + 65'536);
  int64_t highest = -1;
  const auto check = [&](int64_t id, std::string_view token) {
    if (id < 0 || id >= limit) {
      throw Error(ErrorKind::format, spec.subject, fmt::format("token '{}' has id {}", token, id),
                  fmt::format("0 to {} with {} tokens", limit - 1, entries));
    }
    highest = std::max(highest, id);
  };
  for (const auto& [token, id] : vocabulary) check(id, token);
  for (const AddedToken& token : spec.added_tokens) check(token.id, token.content);
  spec.tokens.resize(static_cast<size_t>(highest + 1));
  const auto place = [&](int64_t id, std::string&& token) {
    std::string& slot = spec.tokens[static_cast<size_t>(id)];
    if (!slot.empty() && slot != token) {
      throw Error(ErrorKind::format, spec.subject,
                  fmt::format("tokens '{}' and '{}' share id {}", slot, token, id), "one token an id");
    }
    slot = std::move(token);
  };
  for (auto& [token, id] : vocabulary) place(id, std::move(token));
  for (const AddedToken& token : spec.added_tokens) place(token.id, std::string(token.content));
}

// "bos_token" of tokenizer_config.json: a string, or an object with its content.
std::optional<std::string> named_token(const Json& config, std::string_view key, std::string_view subject) {
  const Json* token = member(config, key);
  if (!token) return std::nullopt;
  if (token->is_object()) return json_require<std::string>(*token, "content", subject);
  return json_require<std::string>(config, key, subject);
}

std::optional<int32_t> id_of(const TokenizerSpec& spec, const std::optional<std::string>& token) {
  if (!token || token->empty()) return std::nullopt;
  const auto found = std::find(spec.tokens.begin(), spec.tokens.end(), *token);
  if (found == spec.tokens.end()) return std::nullopt;
  return static_cast<int32_t>(found - spec.tokens.begin());
}

// The token that the post-processor puts in front of every text (Llama 3's <|begin_of_text|>).
std::optional<std::string> leading_token(const Json* processor, std::string_view subject, int depth = 0) {
  if (!processor || depth > 8) return std::nullopt;
  const std::string type = type_of(*processor, subject);
  if (type == "Sequence") {
    for (const Json& part : array_of(*processor, "processors", subject)) {
      if (auto token = leading_token(&part, subject, depth + 1)) return token;
    }
  }
  if (type != "TemplateProcessing") return std::nullopt;
  const Json::array_t& single = array_of(*processor, "single", subject);
  const Json* special = single.empty() ? nullptr : member(single[0], "SpecialToken");
  if (!special) return std::nullopt;
  return json_require<std::string>(*special, "id", subject);
}

void append_config_tokens(TokenizerSpec& spec, const Json& config, std::string_view subject) {
  const Json* decoder = member(config, "added_tokens_decoder");
  if (!decoder || !decoder->is_object()) return;
  for (const auto& [id, entry] : decoder->items()) {
    if (id.empty() || id.size() > 9 || id.find_first_not_of("0123456789") != std::string::npos) {
      throw Error(ErrorKind::format, subject, fmt::format("added token id '{}'", id), "a number");
    }
    Json with_id = entry;
    if (with_id.is_object()) with_id["id"] = std::stoul(id);
    AddedToken token = added_token(with_id, subject);
    const bool known = std::any_of(spec.added_tokens.begin(), spec.added_tokens.end(),
                                   [&](const AddedToken& other) { return other.content == token.content; });
    if (!known) spec.added_tokens.push_back(std::move(token));
  }
}

// How text is taken apart: byte-level, or by SentencePiece's rules.
void read_scheme(const Json& document, TokenizerSpec& spec) {
  const std::string& subject = spec.subject;
  const bool byte_fallback = json_value(document["model"], "byte_fallback", false, subject);
  NormalizerSteps normalizer;
  read_normalizer(member(document, "normalizer"), normalizer, subject);
  spec.normalize_nfc = normalizer.nfc;
  if (normalizer.replace) {
    spec.sentencepiece = {.prefix = normalizer.prepend ? SpacePrefix::always : SpacePrefix::never};
  } else if (normalizer.prepend) {
    unsupported(subject, "normalizer", "Prepend alone", "▁ for spaces too");
  }
  bool byte_level = false;
  if (const Json* step = member(document, "pre_tokenizer")) append_splits(*step, spec, byte_level);
  if (byte_level && (spec.sentencepiece || byte_fallback || (spec.unknown_id && spec.fuse_unknown))) {
    unsupported(subject, "model", "with ByteLevel and byte_fallback, fuse_unk or ▁", "one or the other");
  }
  if (byte_level) return;
  if (!spec.sentencepiece || !byte_fallback) {
    unsupported(subject, "pre_tokenizer", "without ByteLevel", "byte-level BPE, or ▁ with byte_fallback");
  }
  spec.sentencepiece->strip_first = strips_first_space(member(document, "decoder"), spec);
}

}  // namespace

TokenizerSpec tokenizer_spec_from_json(std::string_view json, std::string_view config_json,
                                       std::string_view subject) {
  TokenizerJson file = read_tokenizer_json(json, subject);
  const Json& document = file.document;
  check_model(document, subject);
  TokenizerSpec spec;
  spec.subject = subject;
  spec.merges = std::move(file.merges);
  if (member(document, "added_tokens")) {
    for (const Json& entry : array_of(document, "added_tokens", subject)) {
      spec.added_tokens.push_back(added_token(entry, subject));
    }
  }
  const std::string config_subject = fmt::format("tokenizer_config.json beside {}", subject);
  const Json config = config_json.empty() ? Json::object() : parse_json(config_json, config_subject);
  append_config_tokens(spec, config, config_subject);
  place_tokens(spec, std::move(file.vocabulary));

  const Json& model = document["model"];
  spec.ignore_merges = json_value(model, "ignore_merges", false, subject);
  if (const auto unknown = named_token(model, "unk_token", subject)) {
    spec.unknown_id = id_of(spec, unknown);
  }
  spec.fuse_unknown = json_value(model, "fuse_unk", false, subject);
  read_scheme(document, spec);

  const std::optional<std::string> leading = leading_token(member(document, "post_processor"), subject);
  const std::optional<std::string> bos = named_token(config, "bos_token", config_subject);
  spec.bos_id = id_of(spec, bos ? bos : leading);
  spec.eos_id = id_of(spec, named_token(config, "eos_token", config_subject));
  const bool wanted =
      member(config, "add_bos_token") && json_value(config, "add_bos_token", false, config_subject);
  spec.add_bos = spec.bos_id && (wanted || (leading && id_of(spec, leading) == spec.bos_id));
  return spec;
}

}  // namespace keysieve
