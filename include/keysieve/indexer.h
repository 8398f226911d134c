#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "keysieve/model.h"

namespace keysieve {

struct IndexerInfo {
  std::string path;
  std::string shape;  // "seed" or "native"
  size_t layers = 0;
  std::vector<size_t> missing_layers;  // of which the files have nothing: these read everything
  size_t heads = 0;                    // index heads a layer
  size_t dim = 0;                      // values of one index key
  size_t rope_dim = 0;                 // of which rotated
  uint64_t parameters = 0;
  size_t budget = 0;  // the file's own: positions each query may read, sinks and recent included
  size_t sinks = 0;
  size_t recent = 0;
  bool per_group = false;  // the file's own selection: one set per KV head instead of one per layer
};

// The folders searched for short names and for "auto": $KEYSIEVE_INDEXERS' parts (separated by ':'),
// indexers/ under the working directory, indexers/ beside the program's folder. Folders that do not exist are
// left out.
std::vector<std::filesystem::path> default_indexer_folders();

// A learned indexer bound to the model it was made for. Cheap to copy (shares its weights).
class LightningIndexer {
 public:
  // `indexer` is a folder or .safetensors file (run_config.json beside it unless `run_config` names another),
  // a Hub id, a short name, or "auto": the one among default_indexer_folders() whose run_config.json names
  // this model's fingerprint. Throws Error{file} where there is none, Error{format} for damaged files,
  // Error{mismatch} for one made for other shapes.
  static LightningIndexer load(std::string_view indexer, const LanguageModel& model,
                               const std::filesystem::path& run_config = {});

  const IndexerInfo& info() const;

  struct Impl;
  explicit LightningIndexer(std::shared_ptr<const Impl> impl);
  const std::shared_ptr<const Impl>& impl() const { return impl_; }

 private:
  std::shared_ptr<const Impl> impl_;
};

}  // namespace keysieve
