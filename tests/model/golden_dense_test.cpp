#include <gmock/gmock.h>

#include "model_support.h"

// Tiny models with random weights in every file type, against a float64 forward on the dequantised weights.

namespace keysieve {
namespace {

using testing::all_logits;
using testing::golden_dir;
using testing::max_difference;

struct GoldenModel {
  const char* path;    // under models/
  const char* logits;  // likewise
  const char* ids;
  bool quantized;

  // Without it GoogleTest names a test after the struct's bytes: addresses that change from build to build.
  friend void PrintTo(const GoldenModel& model, std::ostream* out) { *out << model.path; }
};

// clang-format off
const GoldenModel kGoldenModels[] = {
    {"llama-bf16", "llama-bf16/logits.npy", "llama-bf16/input_ids.npy", false},
    {"qwen2-bf16", "qwen2-bf16/logits.npy", "qwen2-bf16/input_ids.npy", false},
    {"qwen3-bf16", "qwen3-bf16/logits.npy", "qwen3-bf16/input_ids.npy", false},
    {"qwen3-mlx-4bit-g64", "qwen3-mlx-4bit-g64/logits.npy", "qwen3-mlx-4bit-g64/input_ids.npy", true},
    {"qwen3-mlx-8bit-g32", "qwen3-mlx-8bit-g32/logits.npy", "qwen3-mlx-8bit-g32/input_ids.npy", true},
    {"kquant-gguf/qwen3-K-mix.gguf", "kquant-gguf/qwen3-K-mix.logits.npy", "kquant-gguf/input_ids.npy", true},
    {"llama-gguf/llama-F32.gguf", "llama-gguf/llama-F32.logits.npy", "llama-gguf/input_ids.npy", false},
    {"llama-gguf/llama-Q4_0.gguf", "llama-gguf/llama-Q4_0.logits.npy", "llama-gguf/input_ids.npy", true},
    {"llama-gguf/llama-Q4_1.gguf", "llama-gguf/llama-Q4_1.logits.npy", "llama-gguf/input_ids.npy", true},
    {"llama-gguf/llama-Q5_0.gguf", "llama-gguf/llama-Q5_0.logits.npy", "llama-gguf/input_ids.npy", true},
    {"llama-gguf/llama-Q5_1.gguf", "llama-gguf/llama-Q5_1.logits.npy", "llama-gguf/input_ids.npy", true},
    {"llama-gguf/llama-Q8_0.gguf", "llama-gguf/llama-Q8_0.logits.npy", "llama-gguf/input_ids.npy", true},
    {"qwen2-gguf/qwen2-F16.gguf", "qwen2-gguf/qwen2-F16.logits.npy", "qwen2-gguf/input_ids.npy", false},
    {"qwen2-gguf/qwen2-Q4_0.gguf", "qwen2-gguf/qwen2-Q4_0.logits.npy", "qwen2-gguf/input_ids.npy", true},
    {"qwen2-gguf/qwen2-Q4_1.gguf", "qwen2-gguf/qwen2-Q4_1.logits.npy", "qwen2-gguf/input_ids.npy", true},
    {"qwen2-gguf/qwen2-Q5_0.gguf", "qwen2-gguf/qwen2-Q5_0.logits.npy", "qwen2-gguf/input_ids.npy", true},
    {"qwen2-gguf/qwen2-Q5_1.gguf", "qwen2-gguf/qwen2-Q5_1.logits.npy", "qwen2-gguf/input_ids.npy", true},
    {"qwen2-gguf/qwen2-Q8_0.gguf", "qwen2-gguf/qwen2-Q8_0.logits.npy", "qwen2-gguf/input_ids.npy", true},
    {"qwen3-gguf/qwen3-F16.gguf", "qwen3-gguf/qwen3-F16.logits.npy", "qwen3-gguf/input_ids.npy", false},
    {"qwen3-gguf/qwen3-Q4_0.gguf", "qwen3-gguf/qwen3-Q4_0.logits.npy", "qwen3-gguf/input_ids.npy", true},
    {"qwen3-gguf/qwen3-Q4_1.gguf", "qwen3-gguf/qwen3-Q4_1.logits.npy", "qwen3-gguf/input_ids.npy", true},
    {"qwen3-gguf/qwen3-Q5_0.gguf", "qwen3-gguf/qwen3-Q5_0.logits.npy", "qwen3-gguf/input_ids.npy", true},
    {"qwen3-gguf/qwen3-Q5_1.gguf", "qwen3-gguf/qwen3-Q5_1.logits.npy", "qwen3-gguf/input_ids.npy", true},
    {"qwen3-gguf/qwen3-Q8_0.gguf", "qwen3-gguf/qwen3-Q8_0.logits.npy", "qwen3-gguf/input_ids.npy", true},
};
// clang-format on

// The bounds: float32 implementations differ from the float64 reference by up to 3e-5, so 2e-4 is fair for a
// float32 path; 8-bit activations give a mean KL of 0.001 to 0.0045 and 0.033 at most per token in llama.cpp.
constexpr double kFloatBound = 2e-4;

class GoldenDense : public ::testing::TestWithParam<std::tuple<GoldenModel, std::string_view>> {
 protected:
  void SetUp() override {
    if (!golden_dir()) GTEST_SKIP() << "no golden data";
    golden_ = std::get<0>(GetParam());
    folder_ = *golden_dir() / "models";
    model_ = Model::load(folder_ / golden_.path, {.kernels = std::string(std::get<1>(GetParam()))});
    tokens_ = testing::read_ids(folder_ / golden_.ids);
  }
  GoldenModel golden_;
  std::filesystem::path folder_;
  std::shared_ptr<const Model> model_;
  std::vector<int32_t> tokens_;
};

TEST_P(GoldenDense, LogitsMatchTheReference) {
  ASSERT_EQ(model_->kernels().name(), std::get<1>(GetParam()));
  EXPECT_EQ(model_->weights().quantized, golden_.quantized);
  EXPECT_EQ(model_->default_kv_type(), golden_.quantized ? KvType::f16 : KvType::f32);
  const std::vector<float> expected = NpyFile(folder_ / golden_.logits).floats();
  const std::vector<float> found = all_logits(model_, tokens_, {.kv_type = KvType::f32});
  ASSERT_EQ(found.size(), expected.size());
  const testing::Agreement agreement = testing::compare_rows(expected, found, model_->config().vocabulary);
  const double difference = max_difference(expected, found);
  RecordProperty("max_difference", std::to_string(difference));
  RecordProperty("mean_kl", std::to_string(agreement.mean_kl));
  RecordProperty("max_kl", std::to_string(agreement.max_kl));
  RecordProperty("top1", std::to_string(agreement.top1));
  if (!golden_.quantized || model_->kernels().name() == "reference") {
    EXPECT_LE(difference, kFloatBound);
    return;
  }
  EXPECT_LE(agreement.mean_kl, 0.01);
  EXPECT_LE(agreement.max_kl, 0.1);
  EXPECT_GE(agreement.top1, 0.85);
}

// f16 keys and values, the default beside quantised weights, cost less than 8-bit activations do.
TEST_P(GoldenDense, DefaultKvTypeKeepsTheDistribution) {
  const std::vector<float> expected = NpyFile(folder_ / golden_.logits).floats();
  const std::vector<float> found = all_logits(model_, tokens_);
  const testing::Agreement agreement = testing::compare_rows(expected, found, model_->config().vocabulary);
  EXPECT_LE(agreement.mean_kl, 0.01);
  EXPECT_LE(agreement.max_kl, 0.1);
  EXPECT_GE(agreement.top1, 0.85);
}

// However a prompt is cut, the numbers are those of the whole: chunk sizes below, at and above a kernel's
// tile, and one token at a time (decode).
TEST_P(GoldenDense, ChunksAndDecodeMatchTheWhole) {
  const std::vector<float> whole = all_logits(model_, tokens_);
  for (const size_t chunk : {1, 5, 16, 47}) {
    const std::vector<float> pieces = all_logits(model_, tokens_, {.max_chunk = chunk});
    const testing::Agreement agreement = testing::compare_rows(whole, pieces, model_->config().vocabulary);
    if (golden_.quantized && model_->kernels().name() != "reference") {
      // Prompts' attention in bfloat16 moves what is rounded to int8 next, which costs what that rounding
      // costs.
      const bool rounds = model_->kernels().name() == "avx512bf16";
      EXPECT_LE(agreement.mean_kl, rounds ? 5e-3 : 1e-3) << "chunk " << chunk;
    } else {
      EXPECT_LE(max_difference(whole, pieces), kFloatBound) << "chunk " << chunk;
    }
  }
}

TEST_P(GoldenDense, RepeatsAndThreadsAreBitwiseEqual) {
  const std::vector<float> first = all_logits(model_, tokens_);
  SequenceState state(model_);
  EXPECT_EQ(testing::all_logits(state, tokens_), first);
  state.clear();
  EXPECT_EQ(testing::all_logits(state, tokens_), first);
  const auto single =
      Model::load(folder_ / golden_.path, {.kernels = std::string(model_->kernels().name()), .threads = 1});
  EXPECT_EQ(all_logits(single, tokens_), first);
  EXPECT_EQ(single->fingerprint(), model_->fingerprint());
}

std::string parameter_name(const ::testing::TestParamInfo<GoldenDense::ParamType>& info) {
  std::string name = std::filesystem::path(std::get<0>(info.param).path).stem().string() + "_" +
                     std::string(std::get<1>(info.param));
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenDense,
                         ::testing::Combine(::testing::ValuesIn(kGoldenModels),
                                            ::testing::ValuesIn(available_kernels())),
                         parameter_name);

class GoldenQwen3 : public ::testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override {
    if (!golden_dir()) GTEST_SKIP() << "no golden data";
    folder_ = *golden_dir() / "models/qwen3-bf16";
    model_ = Model::load(folder_, {.kernels = std::string(GetParam())});
    tokens_ = testing::read_ids(folder_ / "input_ids.npy");
  }
  std::filesystem::path folder_;
  std::shared_ptr<const Model> model_;
  std::vector<int32_t> tokens_;
};

// The residual stream after every layer, and the final norm.
TEST_P(GoldenQwen3, HiddenStatesMatch) {
  const std::vector<float> expected = NpyFile(folder_ / "hidden_states.npy").floats();
  const std::vector<float> expected_norm = NpyFile(folder_ / "final_norm.npy").floats();
  const size_t size = tokens_.size() * model_->config().hidden;
  std::vector<float> found;
  std::vector<float> found_norm;
  ForwardTaps taps;
  taps.embedding = [&](const TapPlace&, const float* x) { found.assign(x, x + size); };
  taps.residual = [&](const TapPlace& place, const float* x) {
    EXPECT_EQ(found.size(), (place.layer + 1) * size);
    found.insert(found.end(), x, x + size);
  };
  taps.final_norm = [&](size_t, size_t count, const float* x) {
    found_norm.insert(found_norm.end(), x, x + count * model_->config().hidden);
  };
  SequenceState state(model_);
  forward(state, tokens_, {.logits = Logits::all, .taps = &taps});
  EXPECT_LE(max_difference(expected, found), kFloatBound);
  EXPECT_LE(max_difference(expected_norm, found_norm), kFloatBound);
}

TEST_P(GoldenQwen3, FirstLayerMatchesStepByStep) {
  auto expected = testing::read_npz(folder_ / "layer0.npz");
  const ModelConfig& config = model_->config();
  std::map<std::string, std::vector<float>> found;
  const auto keep = [&](const char* name, const float* values, size_t width) {
    found[name].assign(values, values + tokens_.size() * width);
  };
  ForwardTaps taps;
  taps.normed_input = [&](const TapPlace& place, const float* x) {
    if (place.layer == 0) keep("attn_input", x, config.hidden);
  };
  taps.projections = [&](const TapPlace& place, const float* q, const float* k, const float* v) {
    if (place.layer != 0) return;
    keep("q", q, config.q_width());
    keep("k", k, config.kv_width());
    keep("v", v, config.kv_width());
  };
  taps.attention = [&](const TapPlace& place, const float* out) {
    if (place.layer == 0) keep("attn_out", out, config.q_width());
  };
  SequenceState state(model_);
  forward(state, tokens_, {.taps = &taps});
  ASSERT_EQ(found.size(), 5u);
  for (const auto& [name, values] : found) {
    ASSERT_TRUE(expected.contains(name)) << name;
    EXPECT_LE(max_difference(expected[name], values), kFloatBound) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, GoldenQwen3, ::testing::ValuesIn(available_kernels()),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace keysieve
