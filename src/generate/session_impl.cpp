#include "generate/session_impl.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/cancel.h"
#include "core/memory.h"
#include "generate/session_cache.h"
#include "indexer/selectors.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

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
  const SelectionPolicy policy = selection_policy(options, model.model->config().layers);
  sequence.selector = std::make_shared<LearnedSelector>(indexer.indexer, policy);
  choose_cache(sequence, options, policy, indexer.indexer->config().shape == IndexerShape::seed);
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
      budget(options.indexer ? selection_policy(options, model->model->config().layers).budget : 0),
      indexer(options.indexer ? options.indexer->impl()->identity : ""),
      state(model->model, sequence_options(*model, options)) {
  if (state.selector()) groups = state.selector()->groups();
}

const TextCodec& Session::Impl::text() const {
  if (!model->text) std::rethrow_exception(model->text_error);
  return *model->text;
}

SessionHeader Session::Impl::header() const {
  SessionHeader header = describe_cache(state.cache());
  header.model = model->model->sequence_identity();
  header.indexer = indexer;
  header.positions = tokens.size();
  return header;
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
  // The prompt's end must be seen again for its logits, unless it is where the sequence stands.
  const bool stands = prompt.size() == tokens.size() && !state.last_logits().empty();
  const size_t limit = std::min(tokens.size(), stands ? prompt.size() : prompt.size() - 1);
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
  const auto cancelled = [cancel] { return is_cancelled(cancel); };
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
  all.memory = {model->info.weights_bytes, bytes.hot, bytes.cold, bytes.moved, bytes.index, bytes.maps,
                peak_resident_bytes()};
  return all;
}

}  // namespace keysieve
