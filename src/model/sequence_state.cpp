#include "model/sequence_state.h"

#include <fmt/format.h>

#include <algorithm>

#include "cache/full_cache.h"
#include "keysieve/error.h"
#include "model/sequence_impl.h"

namespace keysieve {
namespace {

size_t checked_context(const ModelConfig& config, size_t asked) {
  if (asked <= config.context) return asked == 0 ? config.context : asked;
  throw Error(ErrorKind::usage, "context", fmt::format("{} positions", asked),
              fmt::format("at most the model's {}", config.context),
              "load the model with a larger context to go past it");
}

size_t checked_chunk(size_t asked) {
  // 65,536 tokens of an 8B model are 10 GB of buffers: past any use.
  if (asked >= 1 && asked <= 65536) return asked;
  throw Error(ErrorKind::usage, "chunk", fmt::format("{} tokens", asked), "1 to 65536");
}

std::unique_ptr<KvCache> make_cache(const Model& model, const SequenceOptions& options,
                                    const KeySelector::KeyShape& index) {
  const ModelConfig& config = model.config();
  const CacheShape shape{.layers = config.layers,
                         .kv_heads = config.kv_heads,
                         .head_dim = config.head_dim,
                         .kv_type = options.kv_type.value_or(model.default_kv_type()),
                         .capacity = checked_context(config, options.context),
                         .index_heads = index.heads,
                         .index_dim = index.dim,
                         .index_type = index.type};
  std::unique_ptr<KvCache> cache;
  if (options.make_cache) {
    cache = options.make_cache(shape, model.shared_kernels());
  } else {
    cache = std::make_unique<FullCache>(shape, model.shared_kernels());
  }
  if (cache->keeps_everything()) return cache;
  if (!options.selector) {
    throw Error(ErrorKind::usage, "cache", "one that forgets, without an indexer",
                "an indexer to say what to keep", "add --indexer or choose --cache full");
  }
  if (options.selector->groups() != cache->sets()) {
    throw Error(ErrorKind::usage, "cache", fmt::format("{} sets of positions a layer", cache->sets()),
                fmt::format("{}, as the indexer selects", options.selector->groups()));
  }
  return cache;
}

}  // namespace

ForwardBuffers::ForwardBuffers(const ModelConfig& config, size_t chunk, const KeySelector::KeyShape& index)
    : mlp_rows(std::min<size_t>(chunk, bounded_memory(chunk) ? 64 : 512)),
      positions(chunk),
      x(chunk * config.hidden),
      normed(chunk * config.hidden),
      q(chunk * config.q_width()),
      k(chunk * config.kv_width()),
      v(chunk * config.kv_width()),
      index_keys(chunk * index.heads * index.dim),
      attention(chunk * config.q_width()),
      gated(mlp_rows * config.mlp),
      last_logits(config.vocabulary) {}

SequenceState::Impl::Impl(std::shared_ptr<const Model> for_model, const SequenceOptions& options)
    : model(std::move(for_model)),
      selector(options.selector),
      index(selector ? selector->key_shape() : KeySelector::KeyShape{}),
      max_chunk(checked_chunk(options.max_chunk)),
      cache(make_cache(*model, options, index)),
      scratch(model->threads()),
      buffers(model->config(), max_chunk, index) {}

SequenceState::SequenceState(std::shared_ptr<const Model> model, const SequenceOptions& options)
    : impl_(std::make_unique<Impl>(std::move(model), options)) {}
SequenceState::SequenceState(SequenceState&&) noexcept = default;
SequenceState& SequenceState::operator=(SequenceState&&) noexcept = default;
SequenceState::~SequenceState() = default;

size_t SequenceState::position() const { return impl_->position; }
size_t SequenceState::context() const { return impl_->cache->shape().capacity; }
size_t SequenceState::max_chunk() const { return impl_->max_chunk; }
KvType SequenceState::kv_type() const { return impl_->cache->shape().kv_type; }
const Model& SequenceState::model() const { return *impl_->model; }
const KvCache& SequenceState::cache() const { return *impl_->cache; }
KeySelector* SequenceState::selector() const { return impl_->selector.get(); }
const WorkCounters& SequenceState::work() const { return impl_->work; }

std::span<const float> SequenceState::last_logits() const {
  if (!impl_->has_logits) return {};
  return impl_->buffers.last_logits.span();
}

void SequenceState::clear() {
  impl_->cache->clear();
  impl_->position = 0;
  impl_->has_logits = false;
  impl_->work = {};
}

void SequenceState::save(StateWriter& out) const {
  const std::span<const float> logits = last_logits();
  out.value<uint8_t>(logits.empty() ? 0 : 1);
  out.write(std::as_bytes(logits));
  impl_->cache->save(out);
}

void SequenceState::load(StateReader& in, size_t positions) {
  clear();
  try {
    const bool has_logits = in.value<uint8_t>() != 0;
    if (has_logits) in.read(std::as_writable_bytes(impl_->buffers.last_logits.span()));
    impl_->cache->load(in, positions);
    impl_->position = positions;
    impl_->has_logits = has_logits;
  } catch (...) {
    clear();
    throw;
  }
}

bool SequenceState::truncate(size_t positions) {
  if (positions == impl_->position) return true;
  if (positions > impl_->position || !impl_->cache->truncate(positions)) return false;
  impl_->position = positions;
  impl_->has_logits = false;
  return true;
}

}  // namespace keysieve
