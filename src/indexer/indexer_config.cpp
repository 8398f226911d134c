#include "indexer/indexer_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "kernels/index_query.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

// Far above any real indexer (the seed's: 6 heads of 69; Qwen3-8B: 36 layers, 4096 wide), and small enough
// that no product of two of them overflows.
constexpr size_t kMostQueryBlock = 64;
constexpr size_t kMostHeads = 4096;
constexpr size_t kMostDim = kMaxIndexDim;
constexpr size_t kMostHidden = size_t{1} << 20;
constexpr size_t kMostPositions = size_t{1} << 30;

constexpr std::string_view kRepair = "use the run_config.json that came with the indexer";

template <class Enum, size_t N>
using Names = std::array<std::pair<std::string_view, Enum>, N>;

constexpr Names<IndexerShape, 2> kShapes{{{"seed", IndexerShape::seed}, {"native", IndexerShape::native}}};
constexpr Names<SelectionScope, 2> kScopes{
    {{"shared", SelectionScope::shared}, {"per-group", SelectionScope::per_group}}};
constexpr Names<IndexKeyChoice, 4> kKeyChoices{{{"auto", IndexKeyChoice::automatic},
                                                {"f32", IndexKeyChoice::f32},
                                                {"i8", IndexKeyChoice::i8},
                                                {"i4", IndexKeyChoice::i4}}};
constexpr Names<IndexCombine, 3> kCombines{{{"relu_sum", IndexCombine::relu_sum},
                                            {"softmax_sum", IndexCombine::softmax_sum},
                                            {"linear_sum", IndexCombine::linear_sum}}};

template <class Enum, size_t N>
std::string_view name_of(Enum value, const Names<Enum, N>& names) {
  for (const auto& [name, candidate] : names) {
    if (candidate == value) return name;
  }
  return "unknown";
}

template <class Enum, size_t N>
std::string list_names(const Names<Enum, N>& names) {
  std::string list;
  for (const auto& [name, value] : names) list += (list.empty() ? "" : ", ") + std::string(name);
  return list;
}

// The seed's training script writes its keys at the top level or under `metadata`; look in both.
class ConfigReader {
 public:
  ConfigReader(const Json& json, std::string_view subject) : subject_(subject), top_(json) {
    if (!json.is_object())
      throw Error(ErrorKind::format, subject, json.type_name(), "a JSON object", kRepair);
    const auto nested = json.find("metadata");
    if (nested != json.end() && nested->is_object()) metadata_ = &*nested;
  }

  const Json& holder(std::string_view key) const {
    return !top_.contains(key) && metadata_ && metadata_->contains(key) ? *metadata_ : top_;
  }
  bool has(std::string_view key) const { return holder(key).contains(key); }

  size_t size(std::string_view key, size_t fallback, size_t least, size_t most) const {
    return check(key, json_value<size_t>(holder(key), key, fallback, subject_), least, most);
  }
  size_t size(std::string_view key, size_t least, size_t most) const {
    return check(key, json_require<size_t>(holder(key), key, subject_), least, most);
  }
  double number(std::string_view key, double fallback) const {
    return json_value<double>(holder(key), key, fallback, subject_);
  }
  std::string text(std::string_view key, std::string fallback) const {
    return json_value<std::string>(holder(key), key, std::move(fallback), subject_);
  }
  template <class Enum, size_t N>
  Enum choice(std::string_view key, Enum fallback, const Names<Enum, N>& names) const {
    const std::string found = text(key, std::string(name_of(fallback, names)));
    for (const auto& [name, value] : names) {
      if (name == found) return value;
    }
    throw Error(ErrorKind::format, fmt::format("{}, {}", subject_, key), '"' + found + '"',
                "one of " + list_names(names), kRepair);
  }
  std::vector<size_t> sizes(std::string_view key, size_t most) const {
    std::vector<size_t> values;
    const Json& object = holder(key);
    if (!object.contains(key)) return values;
    const Json& list = object.at(std::string(key));
    if (!list.is_array() || list.size() > kMostIndexerLayers) {
      throw Error(ErrorKind::format, fmt::format("{}, {}", subject_, key), list.type_name(),
                  fmt::format("a list of at most {} numbers", kMostIndexerLayers), kRepair);
    }
    for (const Json& element : list) {
      values.push_back(
          check(key, json_require<size_t>(Json{{"budget", element}}, "budget", subject_), 0, most));
    }
    return values;
  }

 private:
  size_t check(std::string_view key, size_t value, size_t least, size_t most) const {
    if (value >= least && value <= most) return value;
    throw Error(ErrorKind::format, fmt::format("{}, {}", subject_, key), std::to_string(value),
                fmt::format("{} to {}", least, most), kRepair);
  }

  std::string_view subject_;
  const Json& top_;
  const Json* metadata_ = nullptr;
};

void read_seed(IndexerConfig& config, const ConfigReader& reader) {
  config.hidden = reader.size("hidden_size", 1, kMostHidden);
  config.heads = reader.size("indexer_heads", 1, kMostHeads);
  config.dim = reader.size("proj_dim", 1, kMostDim);
  config.rope_dim = reader.size("rope_dim", 0, 0, kMostDim);
  config.key_heads = 1;
  config.combine = reader.choice("combine", IndexCombine::relu_sum, kCombines);
}

void read_native(IndexerConfig& config, const ConfigReader& reader) {
  config.heads = reader.size("indexer_heads", 1, kMostHeads);
  config.key_heads = reader.size("key_heads", 1, kMostHeads);
  config.head_dim = reader.size("head_dim", 1, kMostDim);
  config.dim = reader.size("proj_dim", 1, kMostDim);
  config.combine = reader.choice("combine", IndexCombine::softmax_sum, kCombines);
  config.map_per_head =
      reader.choice("query_maps", false, Names<bool, 2>{{{"per_group", false}, {"per_head", true}}});
  config.scope = SelectionScope::per_group;
  config.sinks = 4;
  config.recent = 64;
}

void check_rules(const IndexerConfig& config, std::string_view subject) {
  const auto refuse = [&](std::string_view key, const std::string& found, std::string_view expected) {
    throw Error(ErrorKind::format, fmt::format("{}, {}", subject, key), found, expected, kRepair);
  };
  if (config.rope_dim > config.dim || config.rope_dim % 2 != 0) {
    refuse("rope_dim", std::to_string(config.rope_dim),
           fmt::format("an even number up to proj_dim {}", config.dim));
  }
  if (config.heads % config.key_heads != 0) {
    refuse("indexer_heads", std::to_string(config.heads),
           fmt::format("a multiple of key_heads {}", config.key_heads));
  }
  if (!std::isfinite(config.rope_theta) || config.rope_theta < 0) {
    refuse("rope_theta", fmt::format("{}", config.rope_theta), "a positive number");
  }
  if ((config.combine == IndexCombine::relu_sum) != (config.shape == IndexerShape::seed)) {
    refuse("combine", std::string(to_string(config.combine)),
           config.shape == IndexerShape::seed ? "relu_sum for shape seed" : "softmax_sum or linear_sum");
  }
  if (config.scope == SelectionScope::per_group && config.key_heads == 1 &&
      config.shape == IndexerShape::seed) {
    refuse("selection", "per-group", "shared for an indexer whose heads share one key");
  }
  std::vector<size_t> budgets = config.budgets;
  budgets.push_back(config.budget);
  for (const size_t budget : budgets) {
    if (budget != 0 && config.sinks + config.recent > budget) {
      refuse("top_k", std::to_string(budget),
             fmt::format("at least sinks {} + recent {}", config.sinks, config.recent));
    }
  }
}

}  // namespace

std::string_view to_string(IndexerShape shape) { return name_of(shape, kShapes); }
std::string_view to_string(SelectionScope scope) { return name_of(scope, kScopes); }
std::string_view to_string(IndexKeyChoice choice) { return name_of(choice, kKeyChoices); }
std::string_view to_string(IndexCombine combine) { return name_of(combine, kCombines); }

SelectionScope parse_selection_scope(std::string_view text) {
  for (const auto& [name, value] : kScopes) {
    if (name == text) return value;
  }
  throw Error(ErrorKind::usage, "selection", '"' + std::string(text) + '"', "shared or per-group");
}

IndexerShape parse_indexer_shape(std::string_view text) {
  if (text == "native") return IndexerShape::native;
  if (text == "lightning") return IndexerShape::seed;
  throw Error(ErrorKind::usage, "shape", '"' + std::string(text) + '"', "native or lightning");
}

IndexKeyChoice parse_index_key_choice(std::string_view text) {
  for (const auto& [name, value] : kKeyChoices) {
    if (name == text) return value;
  }
  throw Error(ErrorKind::usage, "index keys", '"' + std::string(text) + '"', list_names(kKeyChoices));
}

IndexKeyType IndexerConfig::key_type() const {
  switch (key_choice) {
    case IndexKeyChoice::f32:
      return IndexKeyType::f32;
    case IndexKeyChoice::i8:
      return IndexKeyType::i8;
    case IndexKeyChoice::i4:
      return IndexKeyType::i4;
    case IndexKeyChoice::automatic:
      break;
  }
  return shape == IndexerShape::seed ? IndexKeyType::f32 : IndexKeyType::i8;
}

IndexerConfig IndexerConfig::native_for(const ModelShape& model, size_t dim, size_t budget) {
  IndexerConfig config;
  config.shape = IndexerShape::native;
  config.layers = model.layers;
  config.heads = model.heads;
  config.key_heads = model.kv_heads;
  config.head_dim = model.head_dim;
  config.dim = dim;
  config.combine = IndexCombine::softmax_sum;
  config.budget = budget;
  config.sinks = 4;
  config.recent = 64;
  config.scope = SelectionScope::per_group;
  config.key_choice = IndexKeyChoice::i8;
  config.model = model.fingerprint;
  return config;
}

IndexerConfig read_indexer_config(const std::filesystem::path& path) {
  // 16 MiB: a budget for each of 4096 layers takes 50 KB.
  return parse_indexer_config(read_json_file(path, size_t{1} << 24), path.string());
}

IndexerConfig parse_indexer_config(const Json& json, std::string_view subject) {
  const ConfigReader reader(json, subject);
  IndexerConfig config;
  config.shape = reader.choice("shape", IndexerShape::seed, kShapes);
  if (config.shape == IndexerShape::seed) {
    read_seed(config, reader);
  } else {
    read_native(config, reader);
  }
  config.layers = reader.size("layers", 0, 0, kMostIndexerLayers);
  config.rope_theta = reader.number("rope_theta", 0);
  config.budget = reader.size("top_k", config.budget, 1, kMostPositions);
  config.budgets = reader.sizes("budgets", kMostPositions);
  config.sinks = reader.size("sinks", config.sinks, 0, kMostPositions);
  config.recent = reader.size("recent", config.recent, 0, kMostPositions);
  config.scope = reader.choice("selection", config.scope, kScopes);
  config.query_block = reader.size("query_block", 1, 1, kMostQueryBlock);
  config.refine = reader.size("refine", 0, 0, kMostPositions);
  config.refine_prompt = reader.size("refine_prompt", 0, 0, kMostPositions);
  config.refine_layers = reader.sizes("refine_layers", kMostIndexerLayers - 1);
  std::ranges::sort(config.refine_layers);
  config.key_choice = reader.choice("index_keys", config.key_choice, kKeyChoices);
  config.model = reader.text("model", "");
  check_rules(config, subject);
  return config;
}

Json to_json(const IndexerConfig& config) {
  Json json{{"format", "keysieve-indexer"},
            {"version", 1},
            {"shape", to_string(config.shape)},
            {"layers", config.layers},
            {"indexer_heads", config.heads},
            {"key_heads", config.key_heads},
            {"proj_dim", config.dim},
            {"rope_dim", config.rope_dim},
            {"combine", to_string(config.combine)},
            {"top_k", config.budget},
            {"sinks", config.sinks},
            {"recent", config.recent},
            {"selection", to_string(config.scope)},
            {"query_block", config.query_block},
            {"index_keys", to_string(config.key_choice)}};
  if (config.shape == IndexerShape::seed) {
    json["hidden_size"] = config.hidden;
    if (config.rope_theta != 0) json["rope_theta"] = config.rope_theta;
  } else {
    json["head_dim"] = config.head_dim;
    json["query_maps"] = config.map_per_head ? "per_head" : "per_group";
  }
  if (config.refine > 0) json["refine"] = config.refine;
  if (config.refine_prompt > 0) json["refine_prompt"] = config.refine_prompt;
  if (!config.refine_layers.empty()) json["refine_layers"] = config.refine_layers;
  if (!config.budgets.empty()) json["budgets"] = config.budgets;
  if (!config.model.empty()) json["model"] = config.model;
  return json;
}

void bind_to_model(IndexerConfig& config, const ModelShape& model, std::string_view subject) {
  const auto need = [&](std::string_view what, size_t found, size_t expected) {
    if (found == expected) return;
    throw Error(ErrorKind::mismatch, subject, fmt::format("an indexer for {} {}", what, found),
                fmt::format("{} as the model has", expected), "use an indexer made for this model");
  };
  if (config.layers == 0) config.layers = model.layers;
  need("layers", config.layers, model.layers);
  if (config.shape == IndexerShape::seed) {
    need("hidden size", config.hidden, model.hidden);
  } else {
    need("query heads", config.heads, model.heads);
    need("KV heads", config.key_heads, model.kv_heads);
    need("head dim", config.head_dim, model.head_dim);
  }
  if (!config.budgets.empty()) need("layers (in `budgets`)", config.budgets.size(), model.layers);
  if (!config.refine_layers.empty() && config.refine_layers.back() >= model.layers) {
    throw Error(ErrorKind::mismatch, subject,
                fmt::format("layer {} in `refine_layers`", config.refine_layers.back()),
                fmt::format("layers 0 to {} as the model has", model.layers - 1),
                "use an indexer made for this model");
  }
  if (!config.model.empty() && !model.fingerprint.empty() && config.model != model.fingerprint) {
    throw Error(ErrorKind::mismatch, subject, "an indexer made for model " + config.model, model.fingerprint,
                "use an indexer made for this model, or calibrate one");
  }
  if (config.rope_theta == 0) config.rope_theta = model.rope_theta;
}

}  // namespace keysieve
