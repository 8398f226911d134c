// Any bytes as an indexer's run_config.json: it must give a config or throw Error, and what it gave must
// survive being written and bound to a model.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/json.h"
#include "indexer/indexer_config.h"
#include "keysieve/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const keysieve::Json json = keysieve::parse_json(text, "fuzz.json");
    keysieve::IndexerConfig config = keysieve::parse_indexer_config(json, "fuzz.json");
    (void)keysieve::to_json(config).dump(-1, ' ', false, keysieve::Json::error_handler_t::replace);
    const keysieve::ModelShape model{.layers = 2,
                                     .hidden = 128,
                                     .heads = 6,
                                     .kv_heads = 2,
                                     .head_dim = 32,
                                     .rope_theta = 1e6,
                                     .rms_norm_eps = 1e-6f,
                                     .fingerprint = {}};
    keysieve::bind_to_model(config, model, "fuzz.json");
  } catch (const keysieve::Error&) {
  }
  return 0;
}
