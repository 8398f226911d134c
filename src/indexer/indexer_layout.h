#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "indexer/indexer_config.h"
#include "indexer/tensor_role.h"
#include "keysieve/error.h"

namespace keysieve {

// Rows of one tensor within a part of a layer.
struct PlacedRows {
  const TensorInfo* tensor;
  TensorPart part;
};

// Where the parts of one layer lie in the files. Several rows of one part where heads are stored apart.
struct LayerLayout {
  std::array<std::vector<PlacedRows>, kTensorRoles> parts;  // by TensorRole

  const std::vector<PlacedRows>& of(TensorRole role) const { return parts[static_cast<size_t>(role)]; }
  bool empty() const;
};

// What an indexer's files were understood to hold.
struct IndexerLayout {
  std::vector<LayerLayout> layers;
  std::vector<size_t> missing;       // layers of which there is nothing: they run dense
  std::vector<std::string> assumed;  // what the files do not say, in sentences
  std::vector<std::string> ignored;  // tensors that carry no weights
};

// Called for what is not understood; where it returns, reading goes on without.
using LayoutProblem = std::function<void(const Error&)>;

// Sorts the files' tensors into parts. `config` is bound to a model, or its layers are 0: then as many as the
// files number. Sets config.layers, has_bias, has_norm and, for missing layers, budgets of 0.
// Problems: Error{format} for a tensor that fits nothing, a duplicate, a part that only some of a layer's
// neighbours have, no layer at all; Error{mismatch} for another model's shapes; Error{unsupported}. Without
// `problem` they are thrown. Messages name the tensor.
IndexerLayout read_layout(std::span<const SafetensorsFile> files, IndexerConfig& config,
                          const LayoutProblem& problem = {});

// The values of one part, its rows in order. Throws Error{format} for values that are not finite.
std::vector<float> read_part(const std::vector<PlacedRows>& rows);

// "0-3, 7"
std::string layer_ranges(std::span<const size_t> layers);

}  // namespace keysieve
