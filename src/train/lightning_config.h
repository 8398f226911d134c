#pragma once

#include <cstddef>

#include "indexer/indexer_config.h"

namespace keysieve {

// The published indexer's sizes.
struct LightningSizes {
  size_t heads = 6;
  size_t dim = 69;   // values of a query or key
  size_t rope = 64;  // of these, the first that rotate; even
};

// An indexer of that shape for `model`, bound to it: one key a position, one set of positions for a layer, no
// biases. Throws Error{usage} for sizes of 0, more rotated values than there are, or too many for the
// kernels.
IndexerConfig lightning_config(const LightningSizes& sizes, const ModelShape& model, size_t budget);

}  // namespace keysieve
