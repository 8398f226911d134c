#include <gtest/gtest.h>

#include "core/json.h"
#include "model_support.h"

// Two real models against a float64 forward on their dequantised weights: 20 best logits and logsumexp of
// every prompt token, 24 greedy tokens, and the NLL of 1,000 tokens of a book.

namespace keysieve {
namespace {

using testing::golden_dir;
using testing::models_dir;

struct RealModel {
  const char* name;
  const char* file;    // under models/
  const char* golden;  // under golden/real/
};
const RealModel kSmolLm2{"smollm2", "smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf",
                         "smollm2-135m-instruct-q4_1"};
const RealModel kQwen25{"qwen25", "qwen2.5-coder-0.5b/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
                        "qwen2.5-coder-0.5b-instruct-q4_k_m"};

constexpr size_t kTop = 20;
constexpr size_t kGreedySteps = 24;

// What is recorded of a prompt.
struct Prompt {
  explicit Prompt(const std::filesystem::path& folder)
      : ids(testing::read_ids(folder / "input_ids.npy")),
        top_ids(testing::read_ids(folder / "top20_ids.npy")),
        top_logits(NpyFile(folder / "top20_logits.npy").floats()),
        log_sum(NpyFile(folder / "logsumexp.npy").floats()),
        greedy(read_json_file(folder / "greedy.json")) {}
  std::vector<int32_t> ids;       // [T]
  std::vector<int32_t> top_ids;   // [T, 20], best first
  std::vector<float> top_logits;  // [T, 20]
  std::vector<float> log_sum;     // [T]
  Json greedy;
};

struct PromptAgreement {
  double mean_kl = 0;
  double top1 = 0;
  double max_logit_difference = 0;  // over the recorded 20
};

// The recorded distribution is known for 20 tokens and for all others together. Merging outcomes never raises
// a divergence (data processing inequality), so the KL over these 21 outcomes is a lower bound of the true
// one; the 20 hold 79% to 97% of the mass, so it is a near one.
PromptAgreement compare(const Prompt& prompt, SequenceState& state) {
  PromptAgreement result;
  const size_t vocabulary = state.model().config().vocabulary;
  const auto tokens = static_cast<double>(prompt.ids.size());
  ForwardOptions options;
  options.logits = Logits::all;
  options.on_logits = [&](size_t first, size_t count, std::span<const float> rows) {
    for (size_t t = first; t < first + count; ++t) {
      const auto row = rows.subspan((t - first) * vocabulary, vocabulary);
      const double found_sum = testing::log_sum_exp(row);
      double kl = 0;
      double rest_expected = 1;
      double rest_found = 1;
      for (size_t i = 0; i < kTop; ++i) {
        const float logit = row[static_cast<size_t>(prompt.top_ids[t * kTop + i])];
        const double log_p =
            static_cast<double>(prompt.top_logits[t * kTop + i]) - static_cast<double>(prompt.log_sum[t]);
        const double log_q = static_cast<double>(logit) - found_sum;
        kl += std::exp(log_p) * (log_p - log_q);
        rest_expected -= std::exp(log_p);
        rest_found -= std::exp(log_q);
        result.max_logit_difference =
            std::max(result.max_logit_difference,
                     std::abs(static_cast<double>(logit - prompt.top_logits[t * kTop + i])));
      }
      if (rest_expected > 1e-9 && rest_found > 1e-12)
        kl += rest_expected * std::log(rest_expected / rest_found);
      result.mean_kl += kl / tokens;
      result.top1 +=
          (testing::argmax(row) == static_cast<size_t>(prompt.top_ids[t * kTop]) ? 1.0 : 0.0) / tokens;
    }
  };
  prefill(state, prompt.ids, options);
  return result;
}

class RealModels : public ::testing::TestWithParam<std::tuple<RealModel, std::string_view>> {
 protected:
  void SetUp() override {
    const auto& [real, kernels] = GetParam();
    if (!golden_dir()) GTEST_SKIP() << "no golden data";
    if (!models_dir() || !std::filesystem::exists(*models_dir() / real.file))
      GTEST_SKIP() << "no " << real.file;
    reference_ = kernels == "reference";
    golden_ = *golden_dir() / "real" / real.golden;
    model_ = Model::load(*models_dir() / real.file, {.kernels = std::string(kernels)});
  }
  // The scalar twins are some fifteen times slower: they get f32 keys and values, one prompt and few
  // steps.
  std::vector<std::string> prompts() const {
    if (reference_) return {"chat"};
    return {"prose", "code", "chat"};
  }
  SequenceState fresh() const {
    SequenceOptions options{.context = 2048};
    if (reference_) options.kv_type = KvType::f32;
    return SequenceState(model_, options);
  }
  bool reference_ = false;
  std::filesystem::path golden_;
  std::shared_ptr<const Model> model_;
};

TEST_P(RealModels, PromptsMatch) {
  for (const std::string& name : prompts()) {
    const Prompt prompt(golden_ / name);
    SequenceState state = fresh();
    const PromptAgreement agreement = compare(prompt, state);
    RecordProperty(name + "_mean_kl", std::to_string(agreement.mean_kl));
    RecordProperty(name + "_top1", std::to_string(agreement.top1));
    RecordProperty(name + "_max_logit_difference", std::to_string(agreement.max_logit_difference));
    if (reference_) {
      EXPECT_LE(agreement.max_logit_difference, 2e-3) << name;
    }
    EXPECT_LE(agreement.mean_kl, 0.01) << name;
    EXPECT_GE(agreement.top1, 0.93) << name;
  }
}

// Without rounded activations, keys and values, the fast kernels are as near as the reference ones.
TEST_P(RealModels, DequantizedPromptsMatchAsTheReferenceDoes) {
  if (reference_) GTEST_SKIP() << "the reference kernels round nothing anyway";
  const auto& [real, kernels] = GetParam();
  const auto dequantized =
      Model::load(*models_dir() / real.file, {.kernels = std::string(kernels), .dequantize = true});
  EXPECT_FALSE(dequantized->weights().quantized);
  EXPECT_EQ(dequantized->fingerprint(), model_->fingerprint());
  EXPECT_GT(dequantized->weights_bytes(), 3 * model_->weights_bytes());
  const Prompt prompt(golden_ / "chat");
  SequenceState state(dequantized, {.context = 2048});
  const PromptAgreement agreement = compare(prompt, state);
  EXPECT_LE(agreement.max_logit_difference, 2e-3);
  EXPECT_LE(agreement.mean_kl, 1e-6);
  EXPECT_NEAR(agreement.top1, 1, 1e-9);
}

// The recorded greedy tokens are fed whatever the model would say (teacher forcing).
TEST_P(RealModels, GreedyContinuationsMatch) {
  for (const std::string& name : prompts()) {
    const Prompt prompt(golden_ / name);
    const auto ids = prompt.greedy.at("ids").get<std::vector<int32_t>>();
    const auto margins = prompt.greedy.at("top1_minus_top2").get<std::vector<double>>();
    const auto expected = prompt.greedy.at("logprob").get<std::vector<double>>();
    ASSERT_EQ(ids.size(), kGreedySteps);
    SequenceState state = fresh();
    prefill(state, prompt.ids);
    const size_t steps = reference_ ? 8 : kGreedySteps;
    double total = 0;
    bool clear_so_far = true;
    for (size_t step = 0; step < steps; ++step) {
      const auto logits = state.last_logits();
      const double found =
          static_cast<double>(logits[static_cast<size_t>(ids[step])]) - testing::log_sum_exp(logits);
      EXPECT_NEAR(found, expected[step], reference_ ? 2e-3 : 0.5) << name << ", step " << step;
      total += std::abs(found - expected[step]);
      clear_so_far &= margins[step] >= 0.5;
      if (reference_ || clear_so_far) {
        EXPECT_EQ(testing::argmax(logits), static_cast<size_t>(ids[step])) << name << ", step " << step;
      }
      forward(state, std::span(ids).subspan(step, 1));
    }
    EXPECT_LE(total / static_cast<double>(steps), 0.1) << name;
    RecordProperty(name + "_mean_logprob_difference", std::to_string(total / static_cast<double>(steps)));
  }
}

TEST_P(RealModels, PassageNllMatches) {
  std::vector<int32_t> ids = testing::read_ids(golden_ / "passage_ids.npy");
  const std::vector<float> expected = NpyFile(golden_ / "passage_nll.npy").floats();
  if (reference_) ids.resize(64);
  const size_t vocabulary = model_->config().vocabulary;
  double difference = 0;
  double largest = 0;
  ForwardOptions options;
  options.logits = Logits::all;
  options.on_logits = [&](size_t first, size_t count, std::span<const float> rows) {
    for (size_t t = first; t < first + count && t + 1 < ids.size(); ++t) {
      const auto row = rows.subspan((t - first) * vocabulary, vocabulary);
      const double nll =
          testing::log_sum_exp(row) - static_cast<double>(row[static_cast<size_t>(ids[t + 1])]);
      difference += nll - static_cast<double>(expected[t]);
      largest = std::max(largest, std::abs(nll - static_cast<double>(expected[t])));
    }
  };
  SequenceState state = fresh();
  prefill(state, ids, options);
  const double mean = difference / static_cast<double>(ids.size() - 1);
  RecordProperty("mean_nll_difference", std::to_string(mean));
  RecordProperty("max_nll_difference", std::to_string(largest));
  EXPECT_LE(std::abs(mean), reference_ ? 1e-3 : 0.01);
}

INSTANTIATE_TEST_SUITE_P(Models, RealModels,
                         ::testing::Combine(::testing::Values(kSmolLm2, kQwen25),
                                            ::testing::ValuesIn(available_kernels())),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) + "_" +
                                  std::string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace keysieve
