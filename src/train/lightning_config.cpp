#include "train/lightning_config.h"

#include <fmt/format.h>

#include "kernels/index_query.h"
#include "keysieve/error.h"

namespace keysieve {

IndexerConfig lightning_config(const LightningSizes& sizes, const ModelShape& model, size_t budget) {
  if (sizes.heads == 0 || sizes.dim == 0 || sizes.dim > kMaxIndexDim || sizes.rope > sizes.dim ||
      sizes.rope % 2 != 0) {
    throw Error(
        ErrorKind::usage, "lightning indexer",
        fmt::format("{} heads of {} values, {} of them rotated", sizes.heads, sizes.dim, sizes.rope),
        fmt::format("at least 1 head of 1 to {} values, an even number of them rotated", kMaxIndexDim));
  }
  IndexerConfig config;
  config.shape = IndexerShape::seed;
  config.layers = model.layers;
  config.hidden = model.hidden;
  config.heads = sizes.heads;
  config.dim = sizes.dim;
  config.rope_dim = sizes.rope;
  config.rope_theta = model.rope_theta;
  config.budget = budget;
  config.model = model.fingerprint;
  return config;
}

}  // namespace keysieve
