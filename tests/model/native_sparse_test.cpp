#include <gmock/gmock.h>

#include <functional>

#include "cache/fixed_cache.h"
#include "indexer/indexer.h"
#include "indexer/selection_recorder.h"
#include "indexer/selectors.h"
#include "model_support.h"
#include "tiny_folder.h"

// The native indexer (the model's own post-RoPE q and k, a set per KV head) along a whole forward. With
// identity maps its scores are the sum over a group's heads of the true attention probabilities, which is
// worked out here again.

namespace keysieve {
namespace {

using testing::all_logits;
using testing::max_difference;

constexpr size_t kSparseTokens = 40;
constexpr size_t kSparseBudget = 12;
constexpr size_t kSinks = 2;
constexpr size_t kRecent = 4;

std::vector<int32_t> some_tokens() {
  std::vector<int32_t> tokens(kSparseTokens);
  for (size_t i = 0; i < kSparseTokens; ++i) tokens[i] = static_cast<int32_t>(i * i % 19);
  return tokens;
}

class NativeSparse : public ::testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override { model_ = folder_.load({.kernels = std::string(GetParam())}); }

  // chunk 0: cut once, after the prompt.
  auto fixed_cache(size_t voters, size_t chunk) const {
    return [this, voters, chunk](const CacheShape& shape, std::shared_ptr<const Kernels> kernels) {
      const FixedCacheOptions fixed{.budget = kSparseBudget,
                                    .budgets = {},
                                    .sinks = kSinks,
                                    .recent = kRecent,
                                    .sets = model_->config().kv_heads,
                                    .voters = voters,
                                    .chunk = chunk};
      return std::make_unique<FixedCache>(shape, fixed, std::move(kernels));
    };
  }
  std::shared_ptr<KeySelector> selector(size_t budget, SelectionScope scope = SelectionScope::per_group,
                                        IndexKeyChoice keys = IndexKeyChoice::f32) const {
    return selector_of(1.0f, keys, {.budget = budget, .budgets = {}, .scope = scope});
  }
  // An indexer whose scores are `sign` times those of attention.
  std::shared_ptr<KeySelector> selector_of(float sign, IndexKeyChoice keys, SelectionPolicy policy) const {
    const ModelConfig& model = model_->config();
    IndexerConfig config = IndexerConfig::native_for(model_->shape(), model.head_dim, policy.budget);
    config.map_per_head = true;
    config.key_choice = keys;
    IndexerLayerWeights layer;
    layer.q = identity(model.heads, model.head_dim, sign / std::sqrt(static_cast<float>(model.head_dim)));
    layer.k = identity(model.kv_heads, model.head_dim, 1.0f);
    const std::vector<IndexerLayerWeights> layers(model.layers, layer);
    const auto indexer = std::make_shared<const Indexer>(config, layers, model_->shape(),
                                                         model_->shared_kernels(), model_->threads());
    policy.sinks = kSinks;
    policy.recent = kRecent;
    return std::make_shared<LearnedSelector>(indexer, policy);
  }

  static std::vector<float> identity(size_t count, size_t dim, float scale) {
    std::vector<float> maps(count * dim * dim, 0.0f);
    for (size_t m = 0; m < count; ++m) {
      for (size_t i = 0; i < dim; ++i) maps[(m * dim + i) * dim + i] = scale;
    }
    return maps;
  }

  // The positions query t of KV head `group` should read, from q [T, heads, head_dim] and k [T, kv_heads,
  // head_dim].
  std::vector<int32_t> expected_selection(std::span<const float> q, std::span<const float> k, size_t t,
                                          size_t group) const;

  // Neighbouring queries that choose together.
  struct Block {
    size_t first;
    size_t last;
  };
  // What query t of a block reads: of `refine` positions that attend least (the scores of an indexer of sign
  // -1), those that attend most, by attention to them, the sinks and the end.
  std::vector<int32_t> refined_selection(std::span<const float> q, std::span<const float> k, Block block,
                                         size_t t, size_t group, size_t refine) const;
  // The sums of shares() over a block, each query's over those of `slots` that it may see.
  std::vector<double> block_shares(std::span<const float> q, std::span<const float> k, Block block,
                                   size_t group, double factor, std::span<const int32_t> slots) const;
  // A prompt in chunks, refined by a selector with that policy; `at_end(t)`: which queries are at its end.
  void expect_refined(const SelectionPolicy& policy, size_t chunk, size_t to_come,
                      const std::function<bool(size_t t)>& at_end) const;
  // Sums over the group's heads of softmaxes over `slots` of factor times the logits: [slots].
  std::vector<double> shares(std::span<const float> q, std::span<const float> k, size_t t, size_t group,
                             double factor, std::span<const int32_t> slots) const;

  testing::TinyFolder folder_;
  std::shared_ptr<const Model> model_;
  std::vector<int32_t> tokens_ = some_tokens();
};

std::vector<double> NativeSparse::shares(std::span<const float> q, std::span<const float> k, size_t t,
                                         size_t group, double factor, std::span<const int32_t> slots) const {
  const ModelConfig& c = model_->config();
  std::vector<double> scores(slots.size(), 0.0);
  const size_t per_group = c.heads / c.kv_heads;
  for (size_t h = group * per_group; h < (group + 1) * per_group; ++h) {
    std::vector<double> weights;
    double sum = 0;
    for (const int32_t s : slots) {
      double dot = 0;
      for (size_t d = 0; d < c.head_dim; ++d) {
        dot += static_cast<double>(q[(t * c.heads + h) * c.head_dim + d]) *
               static_cast<double>(k[(static_cast<size_t>(s) * c.kv_heads + group) * c.head_dim + d]);
      }
      weights.push_back(std::exp(factor * dot / std::sqrt(static_cast<double>(c.head_dim))));
      sum += weights.back();
    }
    for (size_t s = 0; s < slots.size(); ++s) scores[s] += weights[s] / sum;
  }
  return scores;
}

// The `count` of `slots` with the largest scores.
std::vector<int32_t> best_of(std::span<const int32_t> slots, std::span<const double> scores, size_t count) {
  std::vector<size_t> order(slots.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  std::vector<int32_t> best;
  for (size_t i = 0; i < std::min(count, order.size()); ++i) best.push_back(slots[order[i]]);
  return best;
}

bool always_read(size_t t, int32_t slot) {
  return static_cast<size_t>(slot) < kSinks || static_cast<size_t>(slot) + kRecent > t;
}

std::vector<int32_t> NativeSparse::expected_selection(std::span<const float> q, std::span<const float> k,
                                                      size_t t, size_t group) const {
  std::vector<int32_t> all(t + 1);
  for (size_t s = 0; s <= t; ++s) all[s] = static_cast<int32_t>(s);
  std::vector<double> scores = shares(q, k, t, group, 1.0, all);
  for (size_t s = 0; s <= t; ++s) {
    if (always_read(t, all[s])) scores[s] = 1e9;
  }
  std::vector<int32_t> best = best_of(all, scores, kSparseBudget);
  std::sort(best.begin(), best.end());
  return best;
}

std::vector<double> NativeSparse::block_shares(std::span<const float> q, std::span<const float> k,
                                               Block block, size_t group, double factor,
                                               std::span<const int32_t> slots) const {
  std::vector<double> sums(slots.size(), 0.0);
  for (size_t i = block.first; i <= block.last; ++i) {
    std::vector<int32_t> seen;
    for (const int32_t slot : slots) {
      if (static_cast<size_t>(slot) <= i) seen.push_back(slot);
    }
    const std::vector<double> of_query = shares(q, k, i, group, factor, seen);
    for (size_t s = 0, next = 0; s < slots.size(); ++s) {
      if (static_cast<size_t>(slots[s]) <= i) sums[s] += of_query[next++];
    }
  }
  return sums;
}

std::vector<int32_t> NativeSparse::refined_selection(std::span<const float> q, std::span<const float> k,
                                                     Block block, size_t t, size_t group,
                                                     size_t refine) const {
  std::vector<int32_t> all(block.last + 1);
  for (size_t s = 0; s <= block.last; ++s) all[s] = static_cast<int32_t>(s);
  if (t < kSparseBudget) return {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(t) + 1};
  const auto best = [&](std::span<const int32_t> slots, double factor, size_t count) {
    std::vector<double> scores = block_shares(q, k, block, group, factor, slots);
    for (size_t s = 0; s < slots.size(); ++s) {
      if (always_read(block.first, slots[s])) scores[s] = 1e9;
    }
    return best_of(slots, scores, count);
  };
  const std::vector<int32_t> found = best(all, -1.0, std::max(refine, kSparseBudget));
  std::vector<int32_t> chosen = best(found, 2.5, kSparseBudget);
  std::erase_if(chosen, [t](int32_t slot) { return static_cast<size_t>(slot) > t; });
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

TEST_P(NativeSparse, ABudgetNothingExceedsIsDense) {
  const std::vector<float> dense = all_logits(model_, tokens_);
  EXPECT_EQ(all_logits(model_, tokens_, {.selector = selector(kSparseTokens)}), dense);
}

TEST_P(NativeSparse, EachGroupReadsItsOwnBestPositions) {
  std::vector<float> q;
  std::vector<float> k;
  ForwardTaps taps;
  taps.projections = [&](const TapPlace& place, const float* q_rows, const float* k_rows, const float*) {
    q.insert(q.end(), q_rows, q_rows + place.tokens * model_->config().q_width());
    k.insert(k.end(), k_rows, k_rows + place.tokens * model_->config().kv_width());
  };
  for (const size_t chunk : {40, 7, 1}) {
    q.clear();
    k.clear();
    SelectionRecorder recorder;
    SequenceState state(model_, {.max_chunk = chunk, .selector = selector(kSparseBudget)});
    prefill(state, tokens_, {.recorder = &recorder, .taps = &taps});
    for (size_t t = 0; t < kSparseTokens; ++t) {
      const SelectionRecorder::Row& row = recorder.layers().at(0).at(t);
      for (size_t group = 0; group < model_->config().kv_heads; ++group) {
        const auto& found = row.groups.size() == 1 ? row.groups[0] : row.groups.at(group);
        ASSERT_EQ(found, expected_selection(q, k, t, group)) << "chunk " << chunk << ", query " << t;
      }
    }
  }
}

void NativeSparse::expect_refined(const SelectionPolicy& policy, size_t chunk, size_t to_come,
                                  const std::function<bool(size_t t)>& at_end) const {
  std::vector<float> q, k;
  ForwardTaps taps;
  taps.projections = [&](const TapPlace& place, const float* q_rows, const float* k_rows, const float*) {
    if (place.layer != 0) return;
    q.insert(q.end(), q_rows, q_rows + place.tokens * model_->config().q_width());
    k.insert(k.end(), k_rows, k_rows + place.tokens * model_->config().kv_width());
  };
  SelectionRecorder recorder;
  SequenceState state(model_,
                      {.max_chunk = chunk, .selector = selector_of(-1.0f, IndexKeyChoice::f32, policy)});
  prefill(state, tokens_, {.to_come = to_come, .recorder = &recorder, .taps = &taps});
  for (size_t t = 0; t < kSparseTokens; ++t) {
    // Blocks end where a position is a multiple of their size, and where a chunk does.
    const size_t block = t / policy.query_block * policy.query_block, begin = t / chunk * chunk;
    const Block together{.first = std::max(block, begin),
                         .last = std::min({block + policy.query_block, begin + chunk, kSparseTokens}) - 1};
    const size_t refine = at_end(t) ? policy.refine : policy.refine_prompt;
    const SelectionRecorder::Row& row = recorder.layers().at(0).at(t);
    for (size_t group = 0; group < model_->config().kv_heads; ++group) {
      const auto& found = row.groups.size() == 1 ? row.groups[0] : row.groups.at(group);
      ASSERT_EQ(found, refined_selection(q, k, together, t, group, refine))
          << "refine " << policy.refine << ", to come " << to_come << ", chunk " << chunk << ", block "
          << policy.query_block << ", query " << t;
    }
  }
}

// An indexer that scores the wrong way round, put right by attention itself among what it lets through.
TEST_P(NativeSparse, AttentionChoosesAmongTheBestScores) {
  SelectionPolicy policy{.budget = kSparseBudget, .budgets = {}, .scope = SelectionScope::per_group};
  for (const size_t refine : {0, 12, 20, 64}) {
    policy.refine = refine;
    for (const size_t to_come : {size_t{0}, size_t{50}, size_t{64}, kMoreToCome}) {
      for (const size_t chunk : {40, 7, 1}) {
        // The prompt's last 64 tokens are refined, those to come counted.
        expect_refined(policy, chunk, to_come,
                       [&](size_t t) { return to_come < 64 && kSparseTokens - t + to_come <= 64; });
      }
    }
  }
}

TEST_P(NativeSparse, AttentionChoosesInThePromptAndForNeighboursTogether) {
  SelectionPolicy policy{.budget = kSparseBudget, .budgets = {}, .scope = SelectionScope::per_group};
  for (const size_t block : {1, 4}) {
    policy.query_block = block;
    for (const size_t refine : {12, 20, 64}) {
      policy.refine = refine;
      for (const size_t in_prompt : {0, 16, 30}) {
        policy.refine_prompt = in_prompt;
        for (const size_t chunk : {40, 7, 1}) {
          expect_refined(policy, chunk, 0, [](size_t) { return true; });
          expect_refined(policy, chunk, kMoreToCome, [](size_t) { return false; });
        }
      }
    }
  }
}

TEST_P(NativeSparse, OnlyTheLayersNamedAreRefined) {
  SelectionPolicy policy{.budget = kSparseBudget, .budgets = {}, .scope = SelectionScope::per_group};
  policy.refine = 20;
  policy.refine_layers = {0, 1};
  expect_refined(policy, 40, 0, [](size_t) { return true; });
  policy.refine_layers = {1};  // layer 0 is the one that is looked at
  expect_refined(policy, 40, 0, [](size_t) { return false; });
}

TEST_P(NativeSparse, RefiningCountsTheKeysItReads) {
  const auto bytes_read = [&](size_t refine, size_t in_prompt, size_t to_come) {
    const SelectionPolicy policy{.budget = kSparseBudget,
                                 .budgets = {},
                                 .scope = SelectionScope::per_group,
                                 .refine = refine,
                                 .refine_prompt = in_prompt};
    SequenceState state(model_, {.selector = selector_of(-1.0f, IndexKeyChoice::f32, policy)});
    prefill(state, tokens_, {.to_come = to_come});
    return state.work().kv_bytes_read;
  };
  const uint64_t plain = bytes_read(0, 0, 0);
  EXPECT_GT(bytes_read(20, 0, 0), plain);
  EXPECT_EQ(bytes_read(20, 0, kMoreToCome), plain);
  EXPECT_EQ(bytes_read(0, 20, kMoreToCome), bytes_read(20, 0, 0));
}

TEST_P(NativeSparse, ChunksDoNotMatter) {
  for (const IndexKeyChoice keys : {IndexKeyChoice::f32, IndexKeyChoice::i8}) {
    for (const SelectionScope scope : {SelectionScope::per_group, SelectionScope::shared}) {
      const std::vector<float> whole =
          all_logits(model_, tokens_, {.selector = selector(kSparseBudget, scope, keys)});
      for (const size_t chunk : {1, 11, 13}) {
        const std::vector<float> pieces = all_logits(
            model_, tokens_, {.max_chunk = chunk, .selector = selector(kSparseBudget, scope, keys)});
        EXPECT_LE(max_difference(whole, pieces), 2e-4) << "chunk " << chunk;
      }
    }
  }
}

// In decode threads go on to a set's rows while others choose; with a recorder all is chosen first.
TEST_P(NativeSparse, ChoosingOnTheWayGivesTheSameBits) {
  const SequenceOptions options{.max_chunk = 1, .selector = selector(kSparseBudget)};
  SequenceState on_the_way(model_, options);
  SequenceState before(model_, options);
  SelectionRecorder recorder;
  EXPECT_EQ(all_logits(on_the_way, tokens_, {}), all_logits(before, tokens_, {.recorder = &recorder}));
  EXPECT_EQ(recorder.layers().at(0).size(), kSparseTokens);
}

TEST_P(NativeSparse, AFixedCacheKeepsASetPerHeadAndConstantBytes) {
  SequenceOptions options{.selector = selector(kSparseBudget)};
  options.make_cache = fixed_cache(8, 0);
  SequenceState state(model_, options);
  prefill(state, tokens_);
  uint64_t bytes = 0;
  for (int32_t step = 0; step < 12; ++step) {
    for (size_t set = 0; set < model_->config().kv_heads; ++set) {
      const std::vector<int32_t> positions = state.cache().positions(0, set);
      ASSERT_EQ(positions.size(), kSparseBudget);
      for (size_t s = 0; s < kSinks; ++s) EXPECT_EQ(positions[s], static_cast<int32_t>(s));
      for (size_t r = 0; r < kRecent; ++r) {
        EXPECT_EQ(positions[kSparseBudget - 1 - r], static_cast<int32_t>(state.position() - 1 - r));
      }
    }
    if (step == 1) bytes = state.memory().total();
    if (step > 1) EXPECT_EQ(state.memory().total(), bytes);
    forward(state, std::vector<int32_t>{step});
  }

  // A new turn of several tokens: selected from what is left, then cut again; the token before it was
  // position 51.
  SelectionRecorder recorder;
  prefill(state, std::vector<int32_t>{1, 2, 3, 4, 5}, {.recorder = &recorder});
  ASSERT_EQ(recorder.layers().at(0).size(), 5u);
  for (size_t i = 0; i < 5; ++i) {
    const SelectionRecorder::Row& row = recorder.layers()[0][i];
    EXPECT_EQ(row.query, static_cast<int32_t>(52 + i));
    for (const auto& positions : row.groups) {
      EXPECT_EQ(positions.size(), kSparseBudget);
      EXPECT_EQ(positions.front(), 0);
      EXPECT_EQ(positions.back(), row.query);
    }
  }
  for (size_t set = 0; set < model_->config().kv_heads; ++set) {
    EXPECT_EQ(state.cache().positions(0, set).size(), kSparseBudget);
  }
}

TEST_P(NativeSparse, AFixedCacheMayBeCutAfterEachChunk) {
  constexpr size_t kChunk = 6;
  SequenceOptions options{.max_chunk = kChunk, .selector = selector(kSparseBudget)};
  options.make_cache = fixed_cache(4, kChunk);
  SequenceState state(model_, options);
  SelectionRecorder recorder;
  prefill(state, tokens_, {.recorder = &recorder}, [&](size_t done) {
    EXPECT_EQ(state.cache().size(0), std::min(done, kSparseBudget));
    return true;
  });
  // A query reads what was kept before its chunk and what the chunk has brought, never what was dropped.
  for (const SelectionRecorder::Row& row : recorder.layers().at(0)) {
    for (const auto& positions : row.groups) {
      EXPECT_LE(positions.size(), kSparseBudget);
      EXPECT_EQ(positions.front(), 0);
      EXPECT_EQ(positions.back(), row.query);
    }
  }
  const auto row = [&](size_t query) -> const SelectionRecorder::Row& {
    return recorder.layers()[0].at(query);
  };
  for (size_t first = 24; first + kChunk <= kSparseTokens; first += kChunk) {
    for (size_t set = 0; set < row(first).groups.size(); ++set) {
      std::vector<int32_t> seen;
      for (size_t i = first; i < first + kChunk; ++i) {
        for (const int32_t position : row(i).groups[set]) {
          if (static_cast<size_t>(position) < first) seen.push_back(position);
        }
      }
      std::sort(seen.begin(), seen.end());
      seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
      EXPECT_LE(seen.size(), kSparseBudget) << "chunk at " << first << " reads more than was kept";
    }
  }
}

TEST_P(NativeSparse, LayersWithoutABudgetAreDense) {
  const std::vector<float> dense = all_logits(model_, tokens_);
  auto inner = selector(kSparseBudget);
  const auto& learned = dynamic_cast<const LearnedSelector&>(*inner);
  SelectionPolicy policy = learned.policy();
  policy.budgets.assign(model_->config().layers, 0);
  const auto indexer = std::shared_ptr<const Indexer>(inner, &learned.indexer());
  EXPECT_EQ(all_logits(model_, tokens_, {.selector = std::make_shared<LearnedSelector>(indexer, policy)}),
            dense);
}

INSTANTIATE_TEST_SUITE_P(Kernels, NativeSparse, ::testing::ValuesIn(available_kernels()),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace keysieve
