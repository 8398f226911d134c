#include "indexer/tensor_role.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <vector>

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
  constexpr std::array kWords{"layers", "layer", "blocks", "block", "h", "indexers"};
  return std::find(kWords.begin(), kWords.end(), part) != kWords.end();
}

bool is_digit(char letter) { return letter >= '0' && letter <= '9'; }

// The number at the end of `layer_12` or `layer12`.
std::optional<size_t> trailing_number(std::string_view part) {
  size_t digits = 0;
  while (digits < part.size() && is_digit(part[part.size() - 1 - digits])) ++digits;
  std::string_view word = part.substr(0, part.size() - digits);
  if (word.ends_with('_') || word.ends_with('-')) word.remove_suffix(1);
  return digits != 0 && names_layers(word) ? to_number(part.substr(part.size() - digits)) : std::nullopt;
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

Hint name_hint(std::string_view name) {
  const std::vector<std::string_view> parts = split(name, '.');
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (to_number(*part)) break;
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
// something else is refused rather than guessed at.
TensorRole pick(const TensorInfo& tensor, const std::vector<Candidate>& candidates,
                std::string_view expected) {
  const Hint hint = name_hint(tensor.name);
  std::vector<const Candidate*> fitting;
  const Candidate* named = nullptr;
  for (const Candidate& candidate : candidates) {
    if (candidate.shape == tensor.shape) fitting.push_back(&candidate);
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
  throw Error(
      ErrorKind::format, tensor.subject(),
      fmt::format("{}, which {}", shape_text(tensor.shape),
                  fitting.size() > 1 ? "several parts of the indexer share" : "is no part of this indexer"),
      expected, "rename or remove the tensor");
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

std::optional<size_t> layer_in_name(std::string_view name) {
  const std::vector<std::string_view> parts = split(name, '.');
  for (size_t i = 0; i < parts.size(); ++i) {
    if (names_layers(parts[i]) && i + 1 < parts.size()) {
      if (const auto number = to_number(parts[i + 1])) return number;
    }
    if (const auto number = trailing_number(parts[i])) return number;
  }
  for (const std::string_view part : parts) {
    if (const auto number = to_number(part)) return number;
  }
  return std::nullopt;
}

TensorRole seed_role(const TensorInfo& tensor, const IndexerConfig& config) {
  const uint64_t q_width = config.heads * config.dim;
  if (tensor.shape.size() == 1) {
    const bool in_norm = tensor.name.find("norm") != std::string::npos;
    const bool is_bias = tensor.name.ends_with("bias");
    if (in_norm && is_bias) {
      throw Error(ErrorKind::unsupported, tensor.subject(), "the bias of a layer norm",
                  "an RMS norm, which has a weight only");
    }
    const std::vector<Candidate> candidates{
        {is_bias ? TensorRole::q_bias : TensorRole::q_norm, Hint::q, {q_width}},
        {is_bias ? TensorRole::k_bias : TensorRole::k_norm, Hint::k, {config.dim}}};
    return pick(tensor, candidates,
                fmt::format("a bias or norm of [{}] for queries or [{}] for keys", q_width, config.dim));
  }
  const std::vector<Candidate> candidates{
      {TensorRole::q, Hint::q, {q_width, config.hidden}},
      {TensorRole::k, Hint::k, {config.dim, config.hidden}},
      {TensorRole::head_weight, Hint::head_weight, {config.heads, config.hidden}}};
  return pick(
      tensor, candidates,
      fmt::format("a query projection [{0}, {3}], key projection [{1}, {3}] or head-weight projection "
                  "[{2}, {3}]",
                  q_width, config.dim, config.heads, config.hidden));
}

TensorRole native_role(const TensorInfo& tensor, const IndexerConfig& config) {
  const uint64_t maps = config.map_per_head ? config.heads : config.key_heads;
  if (tensor.shape.size() == 2) {
    return pick(tensor, {{TensorRole::k_bias, Hint::k, {config.key_heads, config.dim}}},
                fmt::format("k_bias [{}, {}]", config.key_heads, config.dim));
  }
  const std::vector<Candidate> candidates{
      {TensorRole::q, Hint::q, {maps, config.dim, config.head_dim}},
      {TensorRole::k, Hint::k, {config.key_heads, config.dim, config.head_dim}}};
  return pick(tensor, candidates,
              fmt::format("q_proj {} or k_proj {}", shape_text(candidates[0].shape),
                          shape_text(candidates[1].shape)));
}

}  // namespace keysieve
