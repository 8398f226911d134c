#include "train/lightning_config.h"

namespace keysieve {

IndexerConfig lightning_config(const LightningSizes& sizes, const ModelShape& model, size_t budget) {
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
