#include "generate/session_impl.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "cache/fixed_cache.h"
#include "cache/tiered_cache.h"
#include "core/memory.h"
#include "indexer/selectors.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

SelectionPolicy policy_of(const SessionOptions& options) {
  SelectionPolicy policy = SelectionPolicy::from(options.indexer->impl()->indexer->config());
  if (options.budget > 0) {
    policy.budget = options.budget;
    // A budget asked for holds for every layer, but those the indexer leaves dense (0) stay dense.
    for (size_t& budget : policy.budgets) budget = budget == 0 ? 0 : options.budget;
  }
  if (options.sinks) policy.sinks = *options.sinks;
  if (options.recent) policy.recent = *options.recent;
  if (options.selection == SelectionMode::shared) policy.scope = SelectionScope::shared;
  if (options.selection == SelectionMode::per_group) policy.scope = SelectionScope::per_group;
  return policy;
}

SequenceOptions sequence_options(const LanguageModel::Impl& model, const SessionOptions& options) {
  SequenceOptions sequence;
  sequence.context = options.context;
  sequence.kv_type = model.kv_type;
  if (!options.indexer) {
    if (options.budget > 0 || options.cache != CacheKind::full) {
      throw Error(ErrorKind::usage, "session", options.budget > 0 ? "a budget" : "a cache other than full",
                  "an indexer to go by", "attach one, or leave it out");
    }
    return sequence;
  }
  const LightningIndexer::Impl& indexer = *options.indexer->impl();
  if (indexer.fingerprint != model.model->fingerprint_text()) {
    throw Error(ErrorKind::mismatch, indexer.info.path, "an indexer loaded for another model",
                "one loaded for this model");
  }
  const SelectionPolicy policy = policy_of(options);
  sequence.selector = std::make_shared<LearnedSelector>(indexer.indexer, policy);
  if (options.cache == CacheKind::tiered) {
    TieredCacheOptions tiered;
    tiered.budget = policy.budget;
    tiered.budgets = policy.budgets;
    tiered.sets = sequence.selector->groups();
    // A chunk's rows are hot beside the budget's: no more of them than that, but enough for fast prefill.
    tiered.chunk = sequence.max_chunk = std::clamp<size_t>(policy.budget, 64, sequence.max_chunk);
    sequence.make_cache = [tiered, folder = options.cold_store](const CacheShape& shape,
                                                                std::shared_ptr<const Kernels> kernels) {
      return make_tiered_cache(shape, std::move(kernels), tiered, folder);
    };
  }
  if (options.cache == CacheKind::fixed) {
    FixedCacheOptions fixed;
    fixed.budget = policy.budget;
    fixed.budgets = policy.budgets;
    fixed.sinks = policy.sinks;
    fixed.recent = policy.recent;
    fixed.sets = sequence.selector->groups();
    // The seed's rule lets the last query alone decide what stays; a vote of 32 is steadier, and the native
    // shape is bound to no rule.
    fixed.voters = indexer.indexer->config().shape == IndexerShape::seed ? 1 : 32;
    sequence.make_cache = [fixed](const CacheShape& shape, std::shared_ptr<const Kernels> kernels) {
      return std::make_unique<FixedCache>(shape, fixed, std::move(kernels));
    };
  }
  return sequence;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Adds the work between two readings of the counters; the mean of positions is weighted by tokens, since
// every token is one query in every layer and KV head.
void add_work(PhaseStatistics& phase, size_t tokens, double seconds, const WorkCounters& before,
              const WorkCounters& after) {
  const uint64_t queries = after.queries - before.queries;
  if (queries > 0) {
    const double mean =
        static_cast<double>(after.positions_read - before.positions_read) / static_cast<double>(queries);
    const auto old_tokens = static_cast<double>(phase.tokens);
    const auto new_tokens = static_cast<double>(tokens);
    phase.positions_read =
        (phase.positions_read * old_tokens + mean * new_tokens) / (old_tokens + new_tokens);
  }
  phase.tokens += tokens;
  phase.seconds += seconds;
  phase.kv_bytes_read += after.kv_bytes_read - before.kv_bytes_read;
  phase.memory_bytes_read += after.memory_bytes_read - before.memory_bytes_read;
  phase.multiply_adds += after.multiply_adds - before.multiply_adds;
}

}  // namespace

PhaseStatistics& operator+=(PhaseStatistics& sum, const PhaseStatistics& part) {
  const size_t tokens = sum.tokens + part.tokens;
  if (tokens > 0) {
    sum.positions_read = (sum.positions_read * static_cast<double>(sum.tokens) +
                          part.positions_read * static_cast<double>(part.tokens)) /
                         static_cast<double>(tokens);
  }
  sum.tokens = tokens;
  sum.seconds += part.seconds;
  sum.kv_bytes_read += part.kv_bytes_read;
  sum.memory_bytes_read += part.memory_bytes_read;
  sum.multiply_adds += part.multiply_adds;
  return sum;
}

Session::Impl::Impl(const LanguageModel& for_model, const SessionOptions& options)
    : model(for_model.impl()),
      budget(options.indexer ? policy_of(options).budget : 0),
      state(model->model, sequence_options(*model, options)) {
  if (state.selector()) groups = state.selector()->groups();
}

const TextCodec& Session::Impl::text() const {
  if (!model->text) std::rethrow_exception(model->text_error);
  return *model->text;
}

void Session::Impl::clear() {
  state.clear();
  tokens.clear();
  prefill_sum = {};
  decode_sum = {};
}

void Session::Impl::check_tokens(std::span<const int32_t> ids) const {
  const size_t vocabulary = model->info.vocabulary;
  if (ids.empty()) throw Error(ErrorKind::usage, "prompt", "no tokens", "at least one");
  for (const int32_t id : ids) {
    if (id >= 0 && static_cast<size_t>(id) < vocabulary) continue;
    throw Error(ErrorKind::usage, "token id", fmt::format("{}", id), fmt::format("0 to {}", vocabulary - 1),
                "the tokens belong to another model");
  }
}

size_t Session::Impl::reuse(std::span<const int32_t> prompt) {
  const size_t limit = std::min(tokens.size(), prompt.size() - 1);
  size_t common = 0;
  while (common < limit && tokens[common] == prompt[common]) ++common;
  if (common < tokens.size() && !state.truncate(common)) {
    state.clear();
    common = 0;
  }
  tokens.resize(common);
  return common;
}

bool Session::Impl::append(std::span<const int32_t> ids, Logits logits, const std::atomic<bool>* cancel,
                           const std::function<void(size_t done)>& on_chunk, PhaseStatistics& phase,
                           const ForwardOptions& base) {
  const auto cancelled = [cancel] { return cancel && cancel->load(std::memory_order_relaxed); };
  ForwardOptions options = base;
  options.logits = logits;
  // A chunk of 512 tokens takes a large model half a minute: too long to wait for after Ctrl-C, so the flag
  // is looked at after every layer. A single token is soon done, and stopping inside it would cost the whole
  // cache.
  ForwardTaps taps;
  if (cancel && ids.size() > 1) {
    taps.residual = [&](const TapPlace&, const float*) {
      if (cancelled()) throw Cancelled{};
    };
    options.taps = &taps;
  }
  const auto start = std::chrono::steady_clock::now();
  const WorkCounters before = state.work();
  size_t done = 0;
  const auto keep_going = [&](size_t count) {
    if (on_chunk) on_chunk(count);
    return !cancelled();
  };
  try {
    done = keysieve::prefill(state, ids, options, keep_going);
  } catch (const Cancelled&) {
    state.clear();
    tokens.clear();
    return false;
  } catch (...) {
    state.clear();
    tokens.clear();
    throw;
  }
  count_appended(ids.first(done), seconds_since(start), before, phase);
  return done == ids.size();
}

void Session::Impl::count_appended(std::span<const int32_t> ids, double seconds, const WorkCounters& before,
                                   PhaseStatistics& phase) {
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  add_work(phase, ids.size(), seconds, before, state.work());
}

Statistics Session::Impl::statistics(const PhaseStatistics& prefill_phase,
                                     const PhaseStatistics& decode) const {
  Statistics all;
  all.prefill = prefill_phase;
  all.decode = decode;
  const CacheBytes bytes = state.memory();
  all.kv_bytes_kept = bytes.hot + bytes.cold;
  all.memory = {model->info.weights_bytes, bytes.hot, bytes.cold, bytes.moved, bytes.index,
                peak_resident_bytes()};
  return all;
}

}  // namespace keysieve
