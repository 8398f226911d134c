#include "indexer/indexer_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <set>

#include "formats/matrix.h"

namespace keysieve {
namespace {

constexpr std::array kRoles{TensorRole::q,      TensorRole::k,      TensorRole::head_weight,
                            TensorRole::q_bias, TensorRole::k_bias, TensorRole::q_norm,
                            TensorRole::k_norm};

// "layer_3.safetensors", or with its folder where that is numbered: "layer_3/indexer.safetensors".
std::string file_place(const SafetensorsFile& file) {
  const std::filesystem::path path = file.subject();
  const std::string folder = path.parent_path().filename().string();
  const std::string name = path.filename().string();
  return layer_in_file_name(name) ? name : folder + "/" + name;
}

// Collects or throws.
class Reader {
 public:
  Reader(IndexerConfig& config, const LayoutProblem& problem) : config_(config), problem_(problem) {
    known_layers_ = config.layers;
    layout_.layers.resize(config.layers);
  }

  void read(std::span<const SafetensorsFile> files) {
    for (const SafetensorsFile& file : files) {
      const std::optional<size_t> layer =
          files.size() > 1 ? layer_in_file_name(file_place(file)) : std::nullopt;
      for (const TensorInfo& tensor : file.tensors()) {
        if (carries_no_weights(tensor.name)) {
          layout_.ignored.push_back(tensor.name);
          continue;
        }
        try {
          require_readable(tensor);
          place(tensor, layer);
        } catch (const Error& error) {
          report(error);
        }
      }
    }
    if (config_.layers == 0) config_.layers = layout_.layers.size();
  }

  IndexerLayout finish(const std::string& subject) {
    check_complete(subject);
    for (const std::string& sentence : assumed_) layout_.assumed.push_back(sentence);
    return std::move(layout_);
  }

 private:
  void report(const Error& error) {
    if (!problem_) throw error;
    problem_(error);
  }

  void place(const TensorInfo& tensor, std::optional<size_t> file_layer) {
    NamePlace where = place_in_name(tensor.name);
    if (file_layer && !where.layer_by_word) {
      // The first number of the name, if any, is not the layer's.
      where.head = where.layer;
      where.layer = file_layer;
      where.rest = tensor.name;
      assumed_.insert("files are numbered by their layers");
    }
    if (!where.layer) {
      throw Error(ErrorKind::format, tensor.subject(), "a name without a layer number",
                  "names like layers.0.indexer.wq.weight", "rename or remove the tensor");
    }
    const size_t most = known_layers_ != 0 ? known_layers_ : kMostIndexerLayers;
    if (*where.layer >= most) {
      throw Error(ErrorKind::mismatch, tensor.subject(), fmt::format("layer {}", *where.layer),
                  fmt::format("layers 0 to {} as the model has", most - 1),
                  "use an indexer made for this model");
    }
    if (*where.layer >= layout_.layers.size()) layout_.layers.resize(*where.layer + 1);
    LayerLayout& layer = layout_.layers[*where.layer];
    const bool seed = config_.shape == IndexerShape::seed;
    const auto parts = seed ? seed_parts(tensor, where, config_) : native_parts(tensor, where, config_);
    if (parts.size() > 1) {
      std::string order;
      for (const TensorPart& part : parts)
        order += fmt::format("{}{}", order.empty() ? "" : ", ", to_string(part.role));
      assumed_.insert(
          fmt::format("{} rows hold {}, in this order", parts.back().first + parts.back().rows, order));
    }
    if (parts.front().transposed) {
      assumed_.insert(fmt::format("the {} is stored as [inputs, outputs]", to_string(parts.front().role)));
    }
    for (const TensorPart& part : parts) add(layer, tensor, part);
  }

  static void add(LayerLayout& layer, const TensorInfo& tensor, const TensorPart& part) {
    std::vector<PlacedRows>& rows = layer.parts[static_cast<size_t>(part.role)];
    for (const PlacedRows& other : rows) {
      if (part.at + part.rows <= other.part.at || other.part.at + other.part.rows <= part.at) continue;
      throw Error(ErrorKind::format, tensor.subject(),
                  fmt::format("a second {} of its layer beside {}", to_string(part.role), other.tensor->name),
                  "one", "remove one of the two");
    }
    rows.push_back({&tensor, part});
    std::ranges::sort(rows, {}, [](const PlacedRows& placed) { return placed.part.at; });
  }

  bool any(TensorRole role) const {
    return std::ranges::any_of(layout_.layers,
                               [&](const LayerLayout& layer) { return !layer.of(role).empty(); });
  }

  // A part some layer has, every layer must have, unless there is nothing of it at all: a damaged file would
  // otherwise pass for one without biases.
  void check_complete(const std::string& subject) {
    config_.has_bias = any(TensorRole::q_bias) || any(TensorRole::k_bias);
    config_.has_norm = any(TensorRole::q_norm) || any(TensorRole::k_norm);
    const bool seed = config_.shape == IndexerShape::seed;
    const auto wanted = [&](TensorRole role) {
      if (role == TensorRole::head_weight) return seed;
      if (role == TensorRole::q_bias) return seed && config_.has_bias;
      if (role == TensorRole::k_bias) return config_.has_bias;
      if (role == TensorRole::q_norm || role == TensorRole::k_norm) return config_.has_norm;
      return true;
    };
    for (size_t i = 0; i < layout_.layers.size(); ++i) {
      if (layout_.layers[i].empty()) {
        layout_.missing.push_back(i);
        continue;
      }
      for (const TensorRole role : kRoles) {
        if (wanted(role)) check_part(subject, i, role);
      }
    }
    if (layout_.missing.size() == layout_.layers.size()) {
      report(Error(ErrorKind::format, subject, "no layer of an indexer",
                   "names like layers.0.indexer.wq.weight", "get the whole file again"));
    }
    if (layout_.missing.empty()) return;
    if (config_.budgets.empty()) config_.budgets.assign(config_.layers, config_.budget);
    for (const size_t layer : layout_.missing) config_.budgets[layer] = 0;
  }

  void check_part(const std::string& subject, size_t layer, TensorRole role) {
    size_t rows = 0;
    for (const PlacedRows& placed : layout_.layers[layer].of(role)) rows += placed.part.rows;
    const size_t expected = rows_of(role, config_);
    if (rows == expected) return;
    const std::string found =
        rows == 0 ? fmt::format("no {} for layer {}", to_string(role), layer)
                  : fmt::format("{} of {} rows of layer {}'s {}", rows, expected, layer, to_string(role));
    report(Error(ErrorKind::format, subject, found, "each layer that is there complete",
                 "get the whole file again"));
  }

  IndexerConfig& config_;
  const LayoutProblem& problem_;
  size_t known_layers_ = 0;  // 0: not known
  IndexerLayout layout_;
  std::set<std::string> assumed_;
};

// rows [columns, rows] of a transposed tensor as [rows, columns]
std::vector<float> turned(const std::vector<float>& values, size_t rows) {
  const size_t columns = values.size() / rows;
  std::vector<float> result(values.size());
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < columns; ++c) result[r * columns + c] = values[c * rows + r];
  }
  return result;
}

size_t tensor_rows(const PlacedRows& placed) {
  if (placed.part.transposed) return placed.part.rows;
  const TensorRole role = placed.part.role;
  const bool matrix = role == TensorRole::q || role == TensorRole::k || role == TensorRole::head_weight;
  if (!matrix) return placed.tensor->elements();
  return placed.tensor->shape.size() < 2 ? 1 : placed.tensor->elements() / placed.tensor->shape.back();
}

}  // namespace

bool LayerLayout::empty() const {
  return std::ranges::all_of(parts, [](const std::vector<PlacedRows>& rows) { return rows.empty(); });
}

IndexerLayout read_layout(std::span<const SafetensorsFile> files, IndexerConfig& config,
                          const LayoutProblem& problem) {
  Reader reader(config, problem);
  reader.read(files);
  return reader.finish(files.empty() ? "indexer" : files.front().subject());
}

std::vector<float> read_part(const std::vector<PlacedRows>& rows) {
  std::vector<float> part;
  for (const PlacedRows& placed : rows) {
    std::vector<float> values = read_vector(*placed.tensor);
    if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); })) {
      throw Error(ErrorKind::format, placed.tensor->subject(), "a value that is not finite", "finite weights",
                  "get the file again");
    }
    if (placed.part.transposed) values = turned(values, placed.part.rows);
    if (rows.size() == 1 && placed.part.rows == tensor_rows(placed)) return values;
    const size_t width = values.size() / tensor_rows(placed);
    const auto first = values.begin() + static_cast<ptrdiff_t>(placed.part.first * width);
    part.insert(part.end(), first, first + static_cast<ptrdiff_t>(placed.part.rows * width));
  }
  return part;
}

std::string layer_ranges(std::span<const size_t> layers) {
  std::string text;
  for (size_t i = 0; i < layers.size();) {
    size_t last = i;
    while (last + 1 < layers.size() && layers[last + 1] == layers[last] + 1) ++last;
    text += text.empty() ? "" : ", ";
    text += last == i ? fmt::format("{}", layers[i]) : fmt::format("{}-{}", layers[i], layers[last]);
    i = last + 1;
  }
  return text;
}

}  // namespace keysieve
