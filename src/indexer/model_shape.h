#pragma once

#include <cstddef>
#include <string>

namespace keysieve {

// What an indexer must agree on with the model it runs beside.
struct ModelShape {
  size_t layers = 0;
  size_t hidden = 0;    // width of the residual stream
  size_t heads = 0;     // query heads
  size_t kv_heads = 0;  // key/value heads; query head h reads KV head h / (heads / kv_heads)
  size_t head_dim = 0;
  double rope_theta = 0;
  float rms_norm_eps = 0;
  std::string fingerprint;  // identifies the weights; empty: unknown, not compared
};

}  // namespace keysieve
