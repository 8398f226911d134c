#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "core/checksum.h"
#include "core/memory.h"
#include "generate/handles.h"
#include "indexer/indexer_config.h"
#include "indexer/indexer_weights.h"
#include "keysieve/error.h"
#include "keysieve/indexer.h"

namespace keysieve {
namespace {
namespace fs = std::filesystem;

// The indexer under `folders` whose run_config.json names this model. Configurations that cannot be read
// belong to nobody here: naming such an indexer outright reports what is wrong with it.
fs::path find_for(const Model& model, const std::vector<fs::path>& folders) {
  std::vector<fs::path> candidates;
  for (const fs::path& folder : folders) {
    std::error_code failed;
    for (fs::directory_iterator at(folder, failed), end; !failed && at != end; at.increment(failed)) {
      std::error_code ignored;
      if (fs::is_regular_file(at->path() / "run_config.json", ignored)) candidates.push_back(at->path());
    }
  }
  std::sort(candidates.begin(), candidates.end());
  for (const fs::path& candidate : candidates) {
    try {
      if (read_indexer_config(candidate / "run_config.json").model == model.fingerprint_text())
        return candidate;
    } catch (const Error&) {
      continue;
    }
  }
  std::vector<std::string> names;
  for (const fs::path& folder : folders) names.push_back(folder.string());
  throw Error(
      ErrorKind::file, "indexer auto",
      fmt::format("none of the {} in {} was made for this model", candidates.size(),
                  names.empty() ? "indexers/" : fmt::format("{}", fmt::join(names, ", "))),
      fmt::format("one whose run_config.json names the model's fingerprint {}", model.fingerprint_text()),
      "make one with keysieve calibrate, name one with --indexer, or use --dense");
}

uint64_t count_parameters(const IndexerConfig& config, size_t layers) {
  if (config.shape == IndexerShape::native) {
    const size_t query_maps = config.map_per_head ? config.heads : config.key_heads;
    return layers * (query_maps + config.key_heads) * config.dim * config.head_dim;
  }
  const size_t rows = config.heads * config.dim + config.dim;
  const size_t extras = (config.has_bias ? rows : 0) + (config.has_norm ? rows : 0);
  return layers * ((rows + config.heads) * config.hidden + extras);
}

// The hash of the weights and of the settings that index keys follow from; what is chosen at run time does
// not belong to it.
std::string identity_of(std::span<const fs::path> weights, const IndexerConfig& config) {
  Json settings = to_json(config);
  for (const char* key : {"top_k", "budgets", "sinks", "recent", "selection", "query_block", "refine",
                          "refine_prompt", "refine_layers"}) {
    settings.erase(key);
  }
  Checksum sum;
  for (const fs::path& file : weights) sum.add(MappedFile(file).bytes());
  const std::string text = settings.dump();
  sum.add(std::as_bytes(std::span(text)));
  return fmt::format("{:016x}", sum.value());
}

IndexerInfo describe(const IndexerFile& file) {
  const IndexerConfig& config = file.config();
  IndexerInfo info;
  info.path = file.subject();
  info.shape = to_string(config.shape);
  info.layers = config.layers;
  info.heads = config.heads;
  info.dim = config.dim;
  info.rope_dim = config.rope_dim;
  info.missing_layers = file.missing_layers();
  info.parameters = count_parameters(config, config.layers - info.missing_layers.size());
  info.budget = config.budget;
  info.sinks = config.sinks;
  info.recent = config.recent;
  info.per_group = config.scope == SelectionScope::per_group;
  return info;
}

}  // namespace

LightningIndexer::LightningIndexer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

LightningIndexer LightningIndexer::load(std::string_view indexer, const LanguageModel& model,
                                        const fs::path& run_config) {
  const Model& base = *model.impl()->model;
  const SearchPaths search = indexer_search({});
  const IndexerLocation location = indexer == "auto"
                                       ? locate_indexer(find_for(base, search.folders).string(), search)
                                       : locate_indexer(indexer, search);
  fs::path config = run_config;
  if (config.empty()) {
    if (!location.run_config) {
      throw Error(ErrorKind::file, location.weights.front().string(), "no run_config.json beside it",
                  "the configuration the indexer was made with", "name it with --run-config");
    }
    config = *location.run_config;
  }
  const IndexerFile file(location.weights, config, base.shape());
  auto loaded = std::make_shared<const Indexer>(file, base.shape(), base.shared_kernels(), base.threads());
  IndexerInfo info = describe(file);
  std::string identity = identity_of(location.weights, loaded->config());
  return LightningIndexer(std::make_shared<const Impl>(
      Impl{std::move(loaded), base.fingerprint_text(), std::move(identity), std::move(info)}));
}

const IndexerInfo& LightningIndexer::info() const { return impl_->info; }

}  // namespace keysieve
