#include "indexer/tensor_role.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string>

#include "core/ascii.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(separator, start), text.size());
    parts.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

std::optional<size_t> to_number(std::string_view text) {
  size_t value = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

bool names_layers(std::string_view part) {
  constexpr std::array kWords{"layers", "layer", "blocks", "block", "h", "indexers", "indexer"};
  return std::find(kWords.begin(), kWords.end(), part) != kWords.end();
}

// The number at the end of `layer_12` or `layer12`, and the word before it.
struct NumberedWord {
  std::string_view word;
  std::optional<size_t> number;
};
NumberedWord numbered_word(std::string_view part) {
  size_t digits = 0;
  while (digits < part.size() && is_ascii_digit(part[part.size() - 1 - digits])) ++digits;
  std::string_view word = part.substr(0, part.size() - digits);
  if (word.ends_with('_') || word.ends_with('-')) word.remove_suffix(1);
  return {word, digits != 0 ? to_number(part.substr(part.size() - digits)) : std::nullopt};
}
std::optional<size_t> trailing_number(std::string_view part) {
  const NumberedWord found = numbered_word(part);
  return names_layers(found.word) ? found.number : std::nullopt;
}

enum class Hint { none, q, k, head_weight };

// What one component of the name says: wq, q_proj, q_norm, query ...; wk, k_proj, key ...; weights_proj,
// head_gate.
Hint component_hint(std::string_view part) {
  for (const std::string_view word : split(part, '_')) {
    if (word == "q" || word == "wq" || word.starts_with("quer")) return Hint::q;
    if (word == "k" || word == "wk" || word == "key" || word == "keys") return Hint::k;
    if (word == "w" || word == "ww" || word == "weights" || word == "gate") return Hint::head_weight;
  }
  return Hint::none;
}

Hint hint_of(std::string_view rest) {
  const std::vector<std::string_view> parts = split(rest, '.');
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (const Hint hint = component_hint(*part); hint != Hint::none) return hint;
  }
  return Hint::none;
}

struct Candidate {
  TensorRole role;
  Hint hint;
  std::vector<uint64_t> shape;
};

// The candidate the tensor must be. Of those with its shape the name picks one; a name that clearly says
// something else is refused rather than guessed at. nullopt: none has its shape, and the name says none.
std::optional<TensorRole> pick(const TensorInfo& tensor, const NamePlace& place,
                               const std::vector<uint64_t>& shape, const std::vector<Candidate>& candidates,
                               std::string_view expected) {
  const Hint hint = hint_of(place.rest);
  std::vector<const Candidate*> fitting;
  const Candidate* named = nullptr;
  for (const Candidate& candidate : candidates) {
    if (candidate.shape == shape) fitting.push_back(&candidate);
    if (candidate.hint == hint && hint != Hint::none) named = &candidate;
  }
  for (const Candidate* candidate : fitting) {
    if (candidate == named) return candidate->role;
  }
  if (named) {
    throw Error(ErrorKind::mismatch, tensor.subject(), shape_text(tensor.shape),
                fmt::format("{} for the {}", shape_text(named->shape), to_string(named->role)),
                "use an indexer made for this model, with its own run_config.json");
  }
  // A name that points at a part which has no such tensor (a bias of the head weights) fits nothing either.
  if (fitting.size() == 1 && hint == Hint::none) return fitting.front()->role;
  if (fitting.empty()) return std::nullopt;
  throw Error(
      ErrorKind::format, tensor.subject(),
      fmt::format("{}, which {}", shape_text(tensor.shape),
                  fitting.size() > 1 ? "several parts of the indexer share" : "is no part of this indexer"),
      expected, "rename or remove the tensor");
}

[[noreturn]] void refuse(const TensorInfo& tensor, std::string_view expected) {
  throw Error(ErrorKind::format, tensor.subject(),
              fmt::format("{}, which is no part of this indexer", shape_text(tensor.shape)), expected,
              "rename or remove the tensor");
}

uint64_t product(std::span<const uint64_t> extents) {
  uint64_t count = 1;
  for (const uint64_t extent : extents) count *= extent;
  return count;
}

TensorPart whole(TensorRole role, size_t rows) { return {.role = role, .first = 0, .rows = rows, .at = 0}; }

// Several parts stacked into `rows` rows; empty where no two or three in a row make so many.
std::vector<TensorPart> stacked(size_t rows, const std::vector<TensorRole>& roles,
                                const IndexerConfig& config) {
  for (size_t first = 0; first < roles.size(); ++first) {
    for (size_t last = first + 1; last < roles.size(); ++last) {
      std::vector<TensorPart> parts;
      size_t sum = 0;
      for (size_t i = first; i <= last; ++i) {
        const size_t count = rows_of(roles[i], config);
        parts.push_back({.role = roles[i], .first = sum, .rows = count, .at = 0});
        sum += count;
      }
      if (sum == rows) return parts;
    }
  }
  return {};
}

// One head's rows, where the name has a head's number and the shape is one head's.
std::optional<TensorPart> head_part(const TensorInfo& tensor, const NamePlace& place, size_t rows,
                                    bool vector, const IndexerConfig& config) {
  if (!place.head || config.heads == 1) return std::nullopt;
  const Hint hint = hint_of(place.rest);
  const bool norm = place.rest.find("norm") != std::string_view::npos;
  TensorRole role;
  size_t each = config.dim;
  if (hint == Hint::q && !norm) {
    role = vector ? TensorRole::q_bias : TensorRole::q;
  } else if (hint == Hint::head_weight && !vector) {
    role = TensorRole::head_weight;
    each = 1;
  } else {
    return std::nullopt;
  }
  if (rows != each) return std::nullopt;
  if (*place.head >= config.heads) {
    throw Error(ErrorKind::mismatch, tensor.subject(), fmt::format("head {}", *place.head),
                fmt::format("heads 0 to {}", config.heads - 1), "use the run_config.json of this file");
  }
  return TensorPart{.role = role, .first = 0, .rows = each, .at = *place.head * each};
}

std::vector<TensorPart> vector_parts(const TensorInfo& tensor, const NamePlace& place,
                                     const IndexerConfig& config) {
  const uint64_t q_width = config.heads * config.dim;
  const uint64_t values = product(tensor.shape);
  const bool in_norm = place.rest.find("norm") != std::string_view::npos;
  const bool is_bias = place.rest.ends_with("bias");
  if (in_norm && is_bias) {
    throw Error(ErrorKind::unsupported, tensor.subject(), "the bias of a layer norm",
                "an RMS norm, which has a weight only");
  }
  if (const auto part = head_part(tensor, place, values, true, config)) return {*part};
  const TensorRole q = is_bias ? TensorRole::q_bias : TensorRole::q_norm;
  const TensorRole k = is_bias ? TensorRole::k_bias : TensorRole::k_norm;
  if (values == q_width + config.dim && hint_of(place.rest) != Hint::k) {
    return stacked(values, {q, k}, config);
  }
  const std::string expected =
      fmt::format("a bias or norm of [{}] for queries or [{}] for keys", q_width, config.dim);
  const auto role =
      pick(tensor, place, {values}, {{q, Hint::q, {q_width}}, {k, Hint::k, {config.dim}}}, expected);
  if (!role) refuse(tensor, expected);
  return {whole(*role, values)};
}

}  // namespace

std::string_view to_string(TensorRole role) {
  switch (role) {
    case TensorRole::q:
      return "query projection";
    case TensorRole::k:
      return "key projection";
    case TensorRole::head_weight:
      return "head-weight projection";
    case TensorRole::q_bias:
      return "query bias";
    case TensorRole::k_bias:
      return "key bias";
    case TensorRole::q_norm:
      return "query norm";
    case TensorRole::k_norm:
      return "key norm";
  }
  return "unknown";
}

NamePlace place_in_name(std::string_view name) {
  const std::vector<std::string_view> parts = split(name, '.');
  NamePlace place;
  size_t layer_part = parts.size();
  for (size_t i = 0; i < parts.size() && !place.layer; ++i) {
    layer_part = i;
    if (names_layers(parts[i]) && i + 1 < parts.size()) {
      place.layer = to_number(parts[i + 1]);
      if (place.layer) layer_part = i + 1;
    }
    if (!place.layer) place.layer = trailing_number(parts[i]);
  }
  place.layer_by_word = place.layer.has_value();
  for (size_t i = 0; i < parts.size() && !place.layer; ++i) {
    layer_part = i;
    place.layer = to_number(parts[i]);
  }
  const size_t after = place.layer ? layer_part + 1 : 0;
  for (size_t i = after; i < parts.size() && !place.head; ++i) {
    place.head = to_number(parts[i]);
    const NumberedWord word = numbered_word(parts[i]);
    if (!place.head && (word.word == "head" || word.word == "heads")) place.head = word.number;
  }
  place.rest = after < parts.size() ? name.substr(static_cast<size_t>(parts[after].data() - name.data()))
                                    : std::string_view();
  return place;
}

std::optional<size_t> layer_in_file_name(std::string_view name) {
  if (name.find("-of-") != std::string_view::npos) return std::nullopt;
  std::optional<size_t> found;
  for (size_t at = 0; at < name.size();) {
    if (!is_ascii_digit(name[at])) {
      ++at;
      continue;
    }
    size_t end = at;
    while (end < name.size() && is_ascii_digit(name[end])) ++end;
    found = to_number(name.substr(at, end - at));
    at = end;
  }
  return found;
}

size_t rows_of(TensorRole role, const IndexerConfig& config) {
  const bool native = config.shape == IndexerShape::native;
  switch (role) {
    case TensorRole::q:
      return native ? (config.map_per_head ? config.heads : config.key_heads) * config.dim
                    : config.heads * config.dim;
    case TensorRole::q_bias:
    case TensorRole::q_norm:
      return config.heads * config.dim;
    case TensorRole::head_weight:
      return config.heads;
    case TensorRole::k:
    case TensorRole::k_bias:
    case TensorRole::k_norm:
      return config.key_heads * config.dim;
  }
  return 0;
}

bool carries_no_weights(std::string_view name) {
  constexpr std::array<std::string_view, 6> kEndings = {"inv_freq",   "cos_cached", "sin_cached",
                                                        "rope.freqs", "step",       "num_batches_tracked"};
  return std::ranges::any_of(kEndings, [&](std::string_view ending) { return name.ends_with(ending); });
}

std::vector<TensorPart> seed_parts(const TensorInfo& tensor, const NamePlace& place,
                                   const IndexerConfig& config) {
  const uint64_t hidden = config.hidden;
  const bool vector_name = place.rest.ends_with("bias") || place.rest.find("norm") != std::string_view::npos;
  // One head's weights may be a vector as wide as the hidden state.
  const bool head_row = tensor.shape.size() == 1 && place.head && tensor.shape[0] == hidden && !vector_name;
  if (tensor.shape.size() < 2 && !head_row) {
    return vector_parts(tensor, place, config);
  }
  if (vector_name && (tensor.shape.empty() || tensor.shape.back() != hidden)) {
    return vector_parts(tensor, place, config);
  }
  const uint64_t q_width = config.heads * config.dim;
  const std::string expected = fmt::format(
      "a query projection [{0}, {3}], key projection [{1}, {3}] or head-weight projection [{2}, {3}]",
      q_width, config.dim, config.heads, hidden);
  const auto candidates_for = [&](bool transposed) {
    const auto shape = [&](uint64_t rows) {
      return transposed ? std::vector<uint64_t>{hidden, rows} : std::vector<uint64_t>{rows, hidden};
    };
    return std::vector<Candidate>{{TensorRole::q, Hint::q, shape(q_width)},
                                  {TensorRole::k, Hint::k, shape(config.dim)},
                                  {TensorRole::head_weight, Hint::head_weight, shape(config.heads)}};
  };
  if (tensor.shape.size() == 2 && tensor.shape.front() == hidden && tensor.shape.back() != hidden) {
    const auto candidates = candidates_for(true);
    const auto fits = [&](const Candidate& candidate) { return candidate.shape == tensor.shape; };
    if (std::ranges::any_of(candidates, fits)) {
      const auto role = pick(tensor, place, tensor.shape, candidates, expected);
      TensorPart part = whole(*role, rows_of(*role, config));
      part.transposed = true;
      return {part};
    }
  }
  if (tensor.shape.back() == hidden) {
    const uint64_t rows = product(std::span(tensor.shape).first(tensor.shape.size() - 1));
    if (const auto part = head_part(tensor, place, rows, false, config)) return {*part};
    const std::vector<TensorPart> fused =
        stacked(rows, {TensorRole::q, TensorRole::k, TensorRole::head_weight}, config);
    // A plain part of that many rows is likelier than a stack of others.
    if (!fused.empty() && rows != q_width && rows != config.dim && rows != config.heads) return fused;
    const auto role = pick(tensor, place, {rows, hidden}, candidates_for(false), expected);
    if (role) return {whole(*role, rows)};
    refuse(tensor, expected);
  }
  const auto role = pick(tensor, place, tensor.shape, candidates_for(false), expected);
  if (!role) refuse(tensor, expected);
  return {whole(*role, rows_of(*role, config))};
}

std::vector<TensorPart> native_parts(const TensorInfo& tensor, const NamePlace& place,
                                     const IndexerConfig& config) {
  const uint64_t maps = config.map_per_head ? config.heads : config.key_heads;
  std::vector<Candidate> candidates{
      {TensorRole::q, Hint::q, {maps, config.dim, config.head_dim}},
      {TensorRole::k, Hint::k, {config.key_heads, config.dim, config.head_dim}}};
  std::string expected =
      fmt::format("q_proj {} or k_proj {}", shape_text(candidates[0].shape), shape_text(candidates[1].shape));
  if (tensor.shape.size() == 2) {
    candidates = {{TensorRole::k_bias, Hint::k, {config.key_heads, config.dim}}};
    expected = fmt::format("k_bias {}", shape_text(candidates[0].shape));
  }
  const auto role = pick(tensor, place, tensor.shape, candidates, expected);
  if (!role) refuse(tensor, expected);
  return {whole(*role, rows_of(*role, config))};
}

}  // namespace keysieve
