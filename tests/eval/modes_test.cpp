#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "cache/fixed_cache.h"
#include "cache/full_cache.h"
#include "eval/costs.h"
#include "eval/perplexity.h"
#include "eval/token_windows.h"
#include "fixture.h"
#include "generate/handles.h"
#include "indexer/quest.h"
#include "indexer/selection_recorder.h"
#include "model/forward.h"

namespace keysieve {
namespace {

using testing::EvalTest;
using testing::expect_error;
using testing::prose;

class Modes : public EvalTest {};

// q and k of all tokens that pass through a model, by layer.
struct TappedRows {
  explicit TappedRows(const ModelConfig& c) : q(c.layers), k(c.layers) {
    taps.projections = [this, &c](const TapPlace& place, const float* q_rows, const float* k_rows,
                                  const float*) {
      q[place.layer].insert(q[place.layer].end(), q_rows, q_rows + place.tokens * c.q_width());
      k[place.layer].insert(k[place.layer].end(), k_rows, k_rows + place.tokens * c.kv_width());
    };
  }
  TappedRows(const TappedRows&) = delete;  // the tap points here
  TappedRows& operator=(const TappedRows&) = delete;

  std::vector<std::vector<float>> q;  // [layers][tokens, heads, head_dim]
  std::vector<std::vector<float>> k;  // [layers][tokens, kv_heads, head_dim]
  ForwardTaps taps;
};

// The attention probability of every candidate of one query, summed over the heads of a group, worked out
// from q and k alone; infinite where the policy keeps a position whatever its score.
std::vector<double> attention_mass(const ModelConfig& c, const std::vector<float>& q,
                                   const std::vector<float>& k, size_t t, size_t group,
                                   const SelectionPolicy& policy) {
  std::vector<double> mass(t + 1, 0.0);
  const size_t per_group = c.heads / c.kv_heads;
  for (size_t h = group * per_group; h < (group + 1) * per_group; ++h) {
    std::vector<double> weights(t + 1);
    double sum = 0;
    for (size_t s = 0; s <= t; ++s) {
      double dot = 0;
      for (size_t d = 0; d < c.head_dim; ++d) {
        dot += static_cast<double>(q[(t * c.heads + h) * c.head_dim + d]) *
               static_cast<double>(k[(s * c.kv_heads + group) * c.head_dim + d]);
      }
      sum += weights[s] = std::exp(dot / std::sqrt(static_cast<double>(c.head_dim)));
    }
    for (size_t s = 0; s <= t; ++s) mass[s] += weights[s] / sum;
  }
  for (size_t s = 0; s <= t; ++s) {
    if (s < policy.sinks || s + policy.recent > t) mass[s] = std::numeric_limits<double>::infinity();
  }
  return mass;
}

// `chosen` are the best by `mass`, up to ties within the error of the kernels' exponential.
void expect_best(const std::vector<int32_t>& chosen, const std::vector<double>& mass, size_t budget) {
  ASSERT_EQ(chosen.size(), std::min(budget, mass.size()));
  std::vector<double> sorted = mass;
  std::ranges::sort(sorted, std::greater<>());
  const double threshold = sorted[chosen.size() - 1];
  size_t above = 0;
  for (const double value : mass) above += value > threshold * (1 + 5e-5) ? 1 : 0;
  for (const int32_t position : chosen) {
    EXPECT_GE(mass[static_cast<size_t>(position)], threshold * (1 - 5e-5));
    above -= mass[static_cast<size_t>(position)] > threshold * (1 + 5e-5) ? 1 : 0;
  }
  EXPECT_EQ(above, 0u);  // nothing clearly better was left out
}

TEST_F(Modes, TheOracleReadsTheMostProbablePositions) {
  const EvalSetting setting(model_, sparse(24));
  const ModelConfig& c = setting.model()->config();
  TappedRows rows(c);
  SelectionRecorder recorder;
  SequenceState state = setting.sequence(AttentionMode::oracle, 128);
  prefill(state, bytes(prose(120)), {.recorder = &recorder, .taps = &rows.taps});
  ASSERT_EQ(recorder.layers().size(), c.layers);
  for (size_t layer = 0; layer < c.layers; ++layer) {
    for (size_t t = 24; t < 120; ++t) {
      for (size_t g = 0; g < c.kv_heads; ++g) {
        SCOPED_TRACE(::testing::Message() << "layer " << layer << ", query " << t << ", group " << g);
        expect_best(recorder.layers()[layer][t].groups[g],
                    attention_mass(c, rows.q[layer], rows.k[layer], t, g, setting.policy()), 24);
      }
    }
  }
}

// The sum over the heads of a group of the bound on the page's scores, in double, for every candidate.
std::vector<double> page_bounds(const ModelConfig& c, const std::vector<float>& q,
                                const std::vector<float>& k, size_t t, size_t group,
                                const SelectionPolicy& policy) {
  std::vector<double> bounds(t + 1, 0.0);
  const size_t per_group = c.heads / c.kv_heads;
  for (size_t s = 0; s <= t; ++s) {
    const size_t page = s / QuestSelector::kPage * QuestSelector::kPage;
    for (size_t h = group * per_group; h < (group + 1) * per_group; ++h) {
      for (size_t d = 0; d < c.head_dim; ++d) {
        double greatest = -std::numeric_limits<double>::infinity();
        for (size_t key = page; key < page + QuestSelector::kPage && key <= t; ++key) {
          greatest =
              std::max(greatest, static_cast<double>(q[(t * c.heads + h) * c.head_dim + d]) *
                                     static_cast<double>(k[(key * c.kv_heads + group) * c.head_dim + d]));
        }
        bounds[s] += greatest;
      }
    }
    const bool own_page = t - page < QuestSelector::kPage;
    if (own_page || s < policy.sinks || s + policy.recent > t)
      bounds[s] = std::numeric_limits<double>::infinity();
  }
  return bounds;
}

// The prompt comes in two chunks, the second of which starts within a page, and then token by token.
TEST_F(Modes, QuestReadsThePagesOfTheHighestBounds) {
  const EvalSetting setting(model_, sparse(40));
  const ModelConfig& c = setting.model()->config();
  TappedRows rows(c);
  SelectionRecorder recorder;
  SequenceState state = setting.sequence(AttentionMode::quest, 256);
  const ForwardOptions options{.recorder = &recorder, .taps = &rows.taps};
  prefill(state, bytes(prose(50, 9)));
  state.clear();  // what an earlier sequence left must not count
  const std::vector<int32_t> ids = bytes(prose(140));
  prefill(state, std::span(ids).first(101), options);
  prefill(state, std::span(ids).subspan(101, 30), options);
  for (size_t i = 131; i < ids.size(); ++i) forward(state, std::span(ids).subspan(i, 1), options);
  for (size_t layer = 0; layer < c.layers; ++layer) {
    for (size_t t = 40; t < ids.size(); ++t) {
      for (size_t g = 0; g < recorder.layers()[layer][t].groups.size(); ++g) {
        SCOPED_TRACE(::testing::Message() << "layer " << layer << ", query " << t << ", group " << g);
        expect_best(recorder.layers()[layer][t].groups[g],
                    page_bounds(c, rows.q[layer], rows.k[layer], t, g, setting.policy()), 40);
      }
    }
  }
}

TEST_F(Modes, NamesGoBothWays) {
  for (const char* name :
       {"dense", "sparse", "oracle", "recent", "random", "snap-kv", "h2o", "streaming", "quest"})
    EXPECT_EQ(to_string(parse_attention_mode(name)), name);
  expect_error(ErrorKind::usage, {"mode", "\"best\"", "oracle"}, [] { parse_attention_mode("best"); });
}

TEST_F(Modes, BaselinesNeedOnlyABudget) {
  SessionOptions options;
  options.budget = 80;
  const EvalSetting setting(model_, options);
  EXPECT_TRUE(setting.can(AttentionMode::oracle));
  EXPECT_TRUE(setting.can(AttentionMode::random));
  EXPECT_FALSE(setting.can(AttentionMode::sparse));
  EXPECT_EQ(setting.policy().sinks, 4u);
  EXPECT_EQ(setting.policy().recent, 64u);
  options.budget = 60;
  expect_error(ErrorKind::usage, {"budget", "60"}, [&] { EvalSetting(model_, options); });
}

TEST_F(Modes, CacheRulesKeepTheBudget) {
  for (const AttentionMode mode :
       {AttentionMode::snap_kv, AttentionMode::heavy_hitters, AttentionMode::streaming}) {
    const EvalSetting setting(model_, sparse(48));
    SequenceState state = setting.sequence(mode, 320);
    prefill(state, bytes(prose(200)));
    for (int step = 0; step < 3; ++step) {
      for (size_t layer = 0; layer < state.cache().shape().layers; ++layer) {
        for (size_t set = 0; set < state.cache().sets(); ++set) {
          const std::vector<int32_t> kept = state.cache().positions(layer, set);
          EXPECT_EQ(kept.size(), 48u);
          EXPECT_EQ(kept.back(), static_cast<int32_t>(state.position()) - 1);
          if (mode == AttentionMode::streaming && step == 0) EXPECT_EQ(kept[2], 154);  // after 2 sinks
        }
      }
      forward(state, std::vector<int32_t>{65});
    }
  }
}

class Perplexity : public EvalTest {
 protected:
  std::vector<std::vector<int32_t>> windows() const { return {bytes(prose(200, 1)), bytes(prose(160, 2))}; }
  // NLL, summed, of every window's tokens from first_of(window) on, read densely.
  template <class First>
  double dense_loss(const First& first_of) {
    double sum = 0;
    for (const std::vector<int32_t>& window : windows()) {
      Session session(model_);
      session.logits(window, [&](size_t position, std::span<const float> row) {
        if (position + 1 < first_of(window) || position + 1 == window.size()) return;
        double total = 0;
        for (const float value : row) total += std::exp(static_cast<double>(value));
        sum += std::log(total) - static_cast<double>(row[static_cast<size_t>(window[position + 1])]);
      });
    }
    return sum;
  }
};

TEST_F(Perplexity, IsThatOfTheLastQuarter) {
  const EvalSetting setting(model_, sparse(48));
  const auto result = run_perplexity(setting, windows(), {.modes = {AttentionMode::sparse}});
  ASSERT_TRUE(result);
  EXPECT_EQ(result->tokens, 90u);  // 50 and 40
  EXPECT_NEAR(result->perplexity_dense,
              std::exp(dense_loss([](const auto& window) { return window.size() - window.size() / 4; }) / 90),
              1e-3 * result->perplexity_dense);
  ASSERT_EQ(result->rows.size(), 1u);
  EXPECT_NEAR(result->rows[0].delta_percent,
              100 * (result->rows[0].perplexity / result->perplexity_dense - 1), 1e-6);
  EXPECT_NE(result->rows[0].delta_percent, 0);
  EXPECT_LE(result->rows[0].delta_ci95_percent[0], result->rows[0].delta_percent);
  EXPECT_GE(result->rows[0].delta_ci95_percent[1], result->rows[0].delta_percent);
}

TEST_F(Perplexity, WholeWindowsCountEveryPrediction) {
  const EvalSetting setting(model_, {});
  PerplexityOptions options;
  options.counted = CountedTokens::whole;
  const auto result = run_perplexity(setting, windows(), options);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->tokens, 358u);  // 199 and 159
  EXPECT_NEAR(result->perplexity_dense, std::exp(dense_loss([](const auto&) { return size_t{1}; }) / 358),
              1e-3 * result->perplexity_dense);
}

TEST_F(Perplexity, NothingIsLostWithinTheBudget) {
  const EvalSetting setting(model_, sparse(200));
  const auto result = run_perplexity(setting, windows(),
                                     {.modes = {AttentionMode::sparse, AttentionMode::oracle,
                                                AttentionMode::recent, AttentionMode::random}});
  ASSERT_TRUE(result);
  for (const PerplexityRow& row : result->rows) {
    EXPECT_EQ(row.perplexity, result->perplexity_dense);
    EXPECT_EQ(row.delta_ci95_percent, (std::array<double, 2>{0, 0}));
  }
  // Rules for a cache get the tokens one by one, whose sums have other last bits.
  const std::vector<AttentionMode> rules{AttentionMode::snap_kv, AttentionMode::heavy_hitters,
                                         AttentionMode::streaming};
  const auto ample = run_perplexity(setting, windows(), {.modes = rules});
  ASSERT_TRUE(ample);
  for (const PerplexityRow& row : ample->rows) {
    EXPECT_NEAR(row.delta_percent, 0, 1e-3) << to_string(row.mode);
  }
  const EvalSetting tight(model_, sparse(48));
  const auto short_of = run_perplexity(tight, windows(), {.modes = rules});
  ASSERT_TRUE(short_of);
  for (const PerplexityRow& row : short_of->rows) {
    EXPECT_GT(std::abs(row.delta_percent), 1e-2) << to_string(row.mode);
  }
  const auto agreement = run_agreement(setting, AttentionMode::sparse, windows(), {});
  ASSERT_TRUE(agreement);
  EXPECT_EQ(agreement->top1_agreement, 1.0);
  EXPECT_EQ(agreement->kl_mean, 0.0);
  EXPECT_EQ(agreement->tokens, 90u);
}

TEST_F(Perplexity, AgreementFallsWithTheBudget) {
  const auto at = [&](size_t budget) {
    const EvalSetting setting(model_, sparse(budget));
    return run_agreement(setting, AttentionMode::sparse, windows(), {})->kl_mean;
  };
  EXPECT_GT(at(12), at(100));
  EXPECT_GT(at(100), 0);
}

TEST_F(Perplexity, WindowsAreSharedOutAndRefusedWhenShort) {
  const std::vector<std::string> texts{prose(1000, 1), prose(1000, 2)};
  const auto found = token_windows(model_.text(), texts, 300, 5);
  ASSERT_EQ(found.size(), 5u);
  for (const auto& window : found) EXPECT_EQ(window.size(), 300u);
  EXPECT_EQ(found[0], bytes(texts[0].substr(0, 300)));
  EXPECT_EQ(found[1], bytes(texts[0].substr(500, 300)));
  expect_error(ErrorKind::mismatch, {"text 1", "250 tokens", "300"},
               [&] { token_windows(model_.text(), texts, 300, 8); });
  expect_error(ErrorKind::usage, {"0 windows"}, [&] { token_windows(model_.text(), texts, 300, 0); });
}

class Costs : public EvalTest {};

TEST_F(Costs, TheCardsTable) {
  const std::vector<size_t> contexts{4096, 32768};
  const auto rows = memory_table(qwen3_8b_shape(), 2048, contexts);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].dense_kv_bytes, 603'979'776u);  // 147,456 B a token
  EXPECT_EQ(rows[0].sparse_kv_bytes, 301'989'888u);
  EXPECT_DOUBLE_EQ(rows[0].saved_percent, 50);
  EXPECT_EQ(rows[1].dense_kv_bytes, 4'831'838'208u);
  EXPECT_DOUBLE_EQ(rows[1].saved_percent, 93.75);
}

TEST_F(Costs, BytesAreThoseOfRealCaches) {
  const EvalSetting setting(model_, sparse(48));
  const CacheShape shape = cache_shape(setting);
  EXPECT_EQ(shape.index_heads, testing::TinyModel::kKvHeads);
  const std::vector<size_t> contexts{320};
  const MemoryRow row = memory_table(shape, 48, contexts).front();
  SequenceState dense = setting.sequence(AttentionMode::dense, 320);
  prefill(dense, bytes(prose(320)));
  EXPECT_EQ(dense.memory().hot, row.dense_kv_bytes);
  SessionOptions options = sparse(48);
  options.cache = CacheKind::fixed;
  SequenceState fixed = EvalSetting(model_, options).sequence(AttentionMode::sparse, 320);
  prefill(fixed, bytes(prose(320)));
  // A fixed cache has room for the row it is about to drop: some slots more than the budget.
  EXPECT_GE(fixed.memory().hot, row.sparse_kv_bytes);
  EXPECT_LE(fixed.memory().hot, row.sparse_kv_bytes * 4 / 3);
}

TEST_F(Costs, LatencyTimesBothPhases) {
  const EvalSetting setting(model_, sparse(48));
  LatencyOptions options;
  options.contexts = {100, 200};
  options.modes = {AttentionMode::dense, AttentionMode::sparse};
  options.decode_tokens = 8;
  const auto rows = run_latency(setting, bytes(prose(200)), options);
  ASSERT_TRUE(rows);
  ASSERT_EQ(rows->size(), 4u);
  for (const LatencyRow& row : *rows) {
    EXPECT_GT(row.prefill_tokens_per_second, 0);
    EXPECT_GT(row.decode_tokens_per_second, 0);
  }
  EXPECT_NEAR((*rows)[2].decode_positions_read, 196.5, 0.01);
  EXPECT_NEAR((*rows)[3].decode_positions_read, 48, 0.01);
  options.contexts = {600};
  expect_error(ErrorKind::mismatch, {"600 tokens", "512"},
               [&] { run_latency(setting, bytes(prose(600)), options); });
  options.contexts = {400};
  expect_error(ErrorKind::mismatch, {"200 tokens", "392"},
               [&] { run_latency(setting, bytes(prose(200)), options); });
}

}  // namespace
}  // namespace keysieve
