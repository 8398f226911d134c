#include "model/config.h"

#include <gmock/gmock.h>

#include "keysieve/error.h"
#include "support/files.h"

namespace keysieve {
namespace {

using ::testing::ElementsAre;
using testing::expect_error;
using testing::GgufBuilder;
using testing::TempFolder;

// A folder whose config.json is a small Llama's with `changes` merged in (null removes a key).
class HubConfig {
 public:
  explicit HubConfig(const Json& changes = Json::object(), const std::string& generation = {}) {
    Json config = {{"model_type", "llama"},           {"num_hidden_layers", 2},   {"hidden_size", 64},
                   {"num_attention_heads", 4},        {"num_key_value_heads", 2}, {"intermediate_size", 96},
                   {"max_position_embeddings", 4096}, {"vocab_size", 100},        {"rms_norm_eps", 1e-5}};
    config.merge_patch(changes);
    folder_.write("config.json", config.dump());
    folder_.write("model.safetensors", testing::safetensors_bytes("{}", ""));
    if (!generation.empty()) folder_.write("generation_config.json", generation);
  }
  ModelConfig read() const { return read_config(HubFolder(folder_.path())); }

 private:
  TempFolder folder_;
};

void expect_frequencies(const ModelConfig& config, const std::vector<double>& expected, double scale = 1.0) {
  const RopeTable table = make_rope_table(config.rope);
  ASSERT_EQ(table.frequency.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(table.frequency[i] / expected[i], 1.0, 1e-6) << "pair " << i;
  }
  EXPECT_NEAR(table.scale, scale, 1e-6);
}

TEST(HubConfigs, SizesAndDefaults) {
  const ModelConfig config = HubConfig().read();
  EXPECT_EQ(config.architecture, Architecture::llama);
  EXPECT_EQ(config.layers, 2u);
  EXPECT_EQ(config.hidden, 64u);
  EXPECT_EQ(config.heads, 4u);
  EXPECT_EQ(config.kv_heads, 2u);
  EXPECT_EQ(config.head_dim, 16u);  // hidden / heads
  EXPECT_EQ(config.mlp, 96u);
  EXPECT_EQ(config.vocabulary, 100u);
  EXPECT_EQ(config.context, 4096u);
  EXPECT_FLOAT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_EQ(config.rope.rotary_dim, 16u);
  EXPECT_FALSE(config.qk_norm || config.qkv_bias || config.output_bias);
  EXPECT_TRUE(config.tied_head);  // no lm_head.weight in the file and nothing said
  EXPECT_TRUE(config.eos.empty());
}

TEST(HubConfigs, Families) {
  const ModelConfig qwen2 = HubConfig({{"model_type", "qwen2"}, {"tie_word_embeddings", false}}).read();
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.output_bias || qwen2.qk_norm || qwen2.tied_head);
  const ModelConfig qwen3 = HubConfig({{"model_type", "qwen3"}, {"head_dim", 32}}).read();
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias);
  EXPECT_EQ(qwen3.q_width(), 128u);
  EXPECT_EQ(qwen3.kv_width(), 64u);
  const ModelConfig biased = HubConfig({{"attention_bias", true}}).read();
  EXPECT_TRUE(biased.qkv_bias && biased.output_bias);
  EXPECT_EQ(HubConfig({{"num_key_value_heads", nullptr}}).read().kv_heads, 4u);
}

TEST(HubConfigs, EndTokens) {
  EXPECT_THAT(HubConfig({{"eos_token_id", 7}, {"bos_token_id", 3}}).read().eos, ElementsAre(7));
  EXPECT_EQ(HubConfig({{"bos_token_id", 3}}).read().bos, 3);
  EXPECT_THAT(HubConfig({{"eos_token_id", {7, 9}}}, R"({"eos_token_id": [9, 11]})").read().eos,
              ElementsAre(7, 9, 11));
  EXPECT_THAT(HubConfig(Json::object(), R"({"eos_token_id": 5})").read().eos, ElementsAre(5));
  expect_error(ErrorKind::format, {"eos_token_id"}, [] { (void)HubConfig({{"eos_token_id", "x"}}).read(); });
  expect_error(ErrorKind::format, {"eos_token_id"},
               [] { (void)HubConfig({{"eos_token_id", {1, -1}}}).read(); });
}

// The expected frequencies come from a Python transcription of Hugging Face's modeling_rope_utils.py.
TEST(RopeTables, Plain) {
  const std::vector<double> plain{1,    0.316227766,   0.1,   0.0316227766,
                                  0.01, 0.00316227766, 0.001, 0.000316227766};
  expect_frequencies(HubConfig().read(), plain);
  expect_frequencies(HubConfig({{"rope_scaling", {{"rope_type", "default"}}}}).read(), plain);
  expect_frequencies(
      HubConfig({{"rope_theta", 1e6}, {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e4}}}})
          .read(),
      plain);
}

TEST(RopeTables, Partial) {
  const std::vector<double> half{1, 0.1, 0.01, 0.001};
  expect_frequencies(HubConfig({{"partial_rotary_factor", 0.5}}).read(), half);
  expect_frequencies(
      HubConfig({{"rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}}}}).read(),
      half);
}

TEST(RopeTables, Linear) {
  expect_frequencies(
      HubConfig({{"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}}}).read(),
      {0.25, 0.0790569415, 0.025, 0.00790569415, 0.0025, 0.000790569415, 0.00025, 7.90569415e-05});
}

TEST(RopeTables, Llama3) {
  const Json scaling = {{"rope_type", "llama3"},
                        {"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 8192}};
  expect_frequencies(HubConfig({{"head_dim", 32}, {"rope_theta", 5e5}, {"rope_scaling", scaling}}).read(),
                     {1, 0.440366603, 0.193922745, 0.0853971003, 0.0376060309, 0.0165604401, 0.00729266474,
                      0.00321144599, 0.000524846161, 7.78465527e-05, 3.4281022e-05, 1.50962172e-05,
                      6.64786987e-06, 2.92749987e-06, 1.28917317e-06, 5.6770881e-07});
}

const std::vector<double> kYarn{1,
                                0.421696503,
                                0.177827941,
                                0.0749894209,
                                0.0316227766,
                                0.0133352143,
                                0.00477990126,
                                0.00165996159,
                                0.00055,
                                0.000168678601,
                                4.44569853e-05,
                                1.87473552e-05,
                                7.90569415e-06,
                                3.33380358e-06,
                                1.40585331e-06,
                                5.92843426e-07};

TEST(RopeTables, Yarn) {
  const auto config = [](Json scaling) {
    scaling.update({{"rope_type", "yarn"}, {"original_max_position_embeddings", 32768}});
    return HubConfig({{"head_dim", 32},
                      {"rope_theta", 1e6},
                      {"max_position_embeddings", 131072},
                      {"rope_scaling", scaling}})
        .read();
  };
  expect_frequencies(config({{"factor", 4.0}}), kYarn, 1.138629436);  // 0.1 ln 4 + 1
  expect_frequencies(config(Json::object()), kYarn, 1.138629436);     // factor = 131072 / 32768
  expect_frequencies(config({{"factor", 4.0}, {"attention_factor", 1.0}}), kYarn, 1.0);
}

// The option says what a config.json would.
TEST(RopeTables, YarnByOption) {
  const auto plain = [](size_t context) {
    return HubConfig({{"head_dim", 32}, {"rope_theta", 1e6}, {"max_position_embeddings", context}}).read();
  };
  ModelConfig claimed = plain(32768);
  stretch_with_yarn(claimed, 4.0, 0, "m");
  expect_frequencies(claimed, kYarn, 1.138629436);
  EXPECT_EQ(claimed.context, 131072u);
  ModelConfig stated = plain(40960);  // as Qwen3-8B claims, which was trained for 32768
  stretch_with_yarn(stated, 4.0, 32768, "m");
  expect_frequencies(stated, kYarn, 1.138629436);
  EXPECT_EQ(stated.context, 131072u);

  for (const double factor : {0.0, 0.5, -4.0, 1025.0, std::nan("")}) {
    ModelConfig config = plain(32768);
    expect_error(ErrorKind::usage, {"factor", "1 to 1024"},
                 [&] { stretch_with_yarn(config, factor, 0, "m"); });
    EXPECT_EQ(config.context, 32768u);
  }
  ModelConfig config = plain(32768);
  expect_error(ErrorKind::usage, {"none", "32768", "give --yarn"},
               [&] { stretch_with_yarn(config, 0.0, 32768, "m"); });
  expect_error(ErrorKind::usage, {"original", "16777216"},
               [&] { stretch_with_yarn(config, 2.0, (size_t{1} << 24) + 1, "m"); });
  expect_error(ErrorKind::usage, {"1024 times 131072"},
               [&] { stretch_with_yarn(config, 1024.0, 131072, "m"); });
  expect_error(ErrorKind::mismatch, {"model.gguf", "yarn", "leave YaRN out"},
               [&] { stretch_with_yarn(claimed, 4.0, 0, "model.gguf"); });
  config.rope.pair_divisors.assign(16, 1.0f);
  expect_error(ErrorKind::mismatch, {"model.gguf", "rope_freqs.weight"},
               [&] { stretch_with_yarn(config, 4.0, 0, "model.gguf"); });
}

// Rotations of positions far past a model's training, plain and by YaRN, against long double.
TEST(RopeTables, AnglesStayExactAtLargePositions) {
  const std::vector<int32_t> positions = {1, 32767, 40960, 131071, 1000000};
  for (const bool yarn : {false, true}) {
    Json settings = {{"head_dim", 128}, {"rope_theta", 1e6}, {"max_position_embeddings", 131072}};
    if (yarn) {
      settings["rope_scaling"] = {
          {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}};
    }
    const RopeTable table = make_rope_table(HubConfig(settings).read().rope);
    RopeAngles angles;
    angles.compute(table, positions);
    for (size_t i = 0; i < 64; ++i) {
      const long double plain = std::pow(1e6L, -static_cast<long double>(i) / 64);
      // Before pair 23 YaRN changes nothing, from pair 40 on it divides by the factor (a ramp lies between).
      if (yarn && i >= 23 && i < 40) continue;
      const long double frequency = yarn && i >= 40 ? plain / 4 : plain;
      for (size_t t = 0; t < positions.size(); ++t) {
        const long double angle = frequency * positions[t];
        EXPECT_NEAR(angles.cosine[t * 64 + i] / table.scale, std::cos(angle), 3e-7L)
            << positions[t] << " " << i;
        EXPECT_NEAR(angles.sine[t * 64 + i] / table.scale, std::sin(angle), 3e-7L)
            << positions[t] << " " << i;
      }
    }
  }
}

TEST(RopeTables, YarnWithItsOwnRamp) {
  const Json scaling = {{"type", "yarn"},    {"factor", 8.0},    {"original_max_position_embeddings", 2048},
                        {"beta_fast", 16.0}, {"beta_slow", 2.0}, {"truncate", false}};
  expect_frequencies(
      HubConfig({{"rope_scaling", scaling}}).read(),
      {1, 0.316227766, 0.1, 0.025771617, 0.0033052224, 0.000395284708, 0.000125, 3.95284708e-05},
      1.207944154);
  Json deepseek = scaling;
  deepseek.update({{"factor", 40.0}, {"mscale", 0.707}, {"mscale_all_dim", 1.0}});
  EXPECT_NEAR(HubConfig({{"rope_scaling", deepseek}}).read().rope.magnitude_factor, 0.921042355, 1e-9);
}

TEST(HubConfigs, MistralWithoutAWindowIsALlama) {
  EXPECT_EQ(HubConfig({{"model_type", "mistral"}}).read().architecture, Architecture::llama);
  EXPECT_EQ(HubConfig({{"model_type", "mistral"}, {"sliding_window", nullptr}}).read().architecture,
            Architecture::llama);
}

TEST(HubConfigs, SaysWhatIsNotSupported) {
  const auto unsupported = [](const Json& changes, const std::string& part) {
    expect_error(ErrorKind::unsupported, {"config.json", part}, [&] { (void)HubConfig(changes).read(); });
  };
  unsupported({{"model_type", "mamba"}}, "llama, qwen2 or qwen3");
  unsupported({{"model_type", "mixtral"}}, "llama, qwen2 or qwen3");
  unsupported({{"num_experts", 8}}, "mixture of experts");
  unsupported({{"use_sliding_window", true}}, "sliding-window");
  unsupported({{"model_type", "mistral"}, {"sliding_window", 4096}}, "sliding-window");
  unsupported({{"layer_types", {"full_attention", "sliding_attention"}}}, "sliding-window");
  unsupported({{"hidden_act", "gelu"}}, "silu");
  unsupported({{"mlp_bias", true}}, "MLP");
  unsupported({{"rope_scaling", {{"rope_type", "longrope"}}}}, "default, linear, llama3 or yarn");
}

TEST(HubConfigs, RefusesNonsense) {
  const auto damaged = [](const Json& changes, const std::string& part) {
    SCOPED_TRACE(changes.dump());
    expect_error(ErrorKind::format, {"config.json", part}, [&] { (void)HubConfig(changes).read(); });
  };
  damaged({{"num_hidden_layers", nullptr}}, "num_hidden_layers");
  damaged({{"num_hidden_layers", 0}}, "layers");
  damaged({{"num_hidden_layers", -1}}, "num_hidden_layers");
  damaged({{"hidden_size", uint64_t{1} << 62}}, "hidden size");
  damaged({{"num_attention_heads", 0}}, "heads");
  damaged({{"num_key_value_heads", 3}}, "a multiple");
  damaged({{"num_key_value_heads", 0}}, "KV heads");
  damaged({{"head_dim", uint64_t{1} << 63}}, "head dimension");
  damaged({{"head_dim", 15}}, "even");
  damaged({{"intermediate_size", "many"}}, "intermediate_size");
  damaged({{"vocab_size", 0}}, "vocabulary");
  damaged({{"max_position_embeddings", 0}}, "context");
  damaged({{"rms_norm_eps", 0.0}}, "epsilon");
  damaged({{"rms_norm_eps", 1e9}}, "epsilon");
  damaged({{"rope_theta", 0.0}}, "theta");
  damaged({{"rope_theta", -1e4}}, "theta");
  damaged({{"rope_scaling", 4}}, "rope_scaling");
  damaged({{"partial_rotary_factor", 0.0}}, "partial_rotary_factor");
  damaged({{"partial_rotary_factor", 1.5}}, "partial_rotary_factor");
  damaged({{"rope_scaling", {{"type", "linear"}}}}, "factor");
  damaged({{"rope_scaling", {{"type", "linear"}, {"factor", 0.0}}}}, "factor");
  damaged({{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 0}}}},
          "context");
  damaged({{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}, {"beta_fast", 0.5}}}}, "beta_fast");
  damaged({{"rope_scaling",
            {{"type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 4.0}, {"high_freq_factor", 4.0}}}},
          "high_freq_factor");
}

// The metadata of a small model; a test adds to it or replaces `skip`.
GgufBuilder gguf(const std::string& architecture, const std::string& skip = {}) {
  GgufBuilder builder;
  builder.text("general.architecture", architecture);
  const auto number = [&](const std::string& key, uint32_t value) {
    if (key != skip) builder.scalar<uint32_t>(architecture + "." + key, 4, value);
  };
  number("block_count", 2);
  number("embedding_length", 64);
  number("attention.head_count", 4);
  number("attention.head_count_kv", 2);
  number("feed_forward_length", 96);
  number("context_length", 4096);
  builder.scalar<float>(architecture + ".attention.layer_norm_rms_epsilon", 6, 1e-5f);
  return builder;
}

ModelConfig read_gguf(GgufBuilder& builder) {
  builder.tensor("token_embd.weight", {64, 10}, 0, std::string(64 * 10 * 4, '\0'));
  const std::string bytes = builder.build();
  return read_config(GgufFile::from_bytes(testing::as_bytes(bytes), "test.gguf"));
}

TEST(GgufConfigs, SizesAndDefaults) {
  GgufBuilder builder = gguf("llama");
  builder.scalar<uint32_t>("tokenizer.ggml.bos_token_id", 4, 1);
  builder.scalar<uint32_t>("tokenizer.ggml.eos_token_id", 4, 2);
  builder.scalar<uint32_t>("tokenizer.ggml.eot_token_id", 4, 5);
  const ModelConfig config = read_gguf(builder);
  EXPECT_EQ(config.architecture, Architecture::llama);
  EXPECT_EQ(config.layers, 2u);
  EXPECT_EQ(config.head_dim, 16u);
  EXPECT_EQ(config.vocabulary, 10u);  // from the embedding
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_TRUE(config.tied_head);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_EQ(config.bos, 1);
  EXPECT_THAT(config.eos, ElementsAre(2, 5));
  GgufBuilder qwen2 = gguf("qwen2");
  EXPECT_TRUE(read_gguf(qwen2).qkv_bias);
  GgufBuilder qwen3 = gguf("qwen3");
  qwen3.scalar<uint32_t>("qwen3.attention.key_length", 4, 32);
  qwen3.scalar<uint32_t>("qwen3.attention.value_length", 4, 32);
  const ModelConfig wide = read_gguf(qwen3);
  EXPECT_TRUE(wide.qk_norm);
  EXPECT_EQ(wide.q_width(), 128u);
  EXPECT_EQ(wide.rope.rotary_dim, 32u);
}

TEST(GgufConfigs, RopeScalings) {
  GgufBuilder yarn = gguf("qwen3", "context_length");
  yarn.scalar<uint32_t>("qwen3.context_length", 4, 131072);
  yarn.scalar<uint32_t>("qwen3.attention.key_length", 4, 32);
  yarn.scalar<uint32_t>("qwen3.attention.value_length", 4, 32);
  yarn.scalar<float>("qwen3.rope.freq_base", 6, 1e6f);
  yarn.text("qwen3.rope.scaling.type", "yarn");
  yarn.scalar<float>("qwen3.rope.scaling.factor", 6, 4.0f);
  yarn.scalar<uint32_t>("qwen3.rope.scaling.original_context_length", 4, 32768);
  expect_frequencies(read_gguf(yarn), kYarn, 1.138629436);

  GgufBuilder linear = gguf("llama");
  linear.text("llama.rope.scaling.type", "linear");
  linear.scalar<float>("llama.rope.scaling.factor", 6, 4.0f);
  EXPECT_NEAR(make_rope_table(read_gguf(linear).rope).frequency[1], 0.0790569415, 1e-8);
  GgufBuilder old_linear = gguf("llama");
  old_linear.scalar<float>("llama.rope.scale_linear", 6, 4.0f);
  EXPECT_NEAR(make_rope_table(read_gguf(old_linear).rope).frequency[1], 0.0790569415, 1e-8);
  GgufBuilder longrope = gguf("llama");
  longrope.text("llama.rope.scaling.type", "longrope");
  expect_error(ErrorKind::unsupported, {"test.gguf", "longrope"}, [&] { (void)read_gguf(longrope); });
}

TEST(GgufConfigs, FrequencyDivisors) {
  const std::vector<float> divisors{1, 1, 1, 2, 4, 8, 8, 8};
  GgufBuilder builder = gguf("llama");
  builder.tensor("rope_freqs.weight", {8}, 0,
                 {reinterpret_cast<const char*>(divisors.data()), divisors.size() * sizeof(float)});
  expect_frequencies(read_gguf(builder), {1, 0.316227766, 0.1, 0.0316227766 / 2, 0.01 / 4, 0.00316227766 / 8,
                                          0.001 / 8, 0.000316227766 / 8});
  GgufBuilder short_one = gguf("llama");
  short_one.tensor("rope_freqs.weight", {4}, 0, std::string(16, '\x3f'));
  expect_error(ErrorKind::mismatch, {"rope_freqs.weight", "8"}, [&] { (void)read_gguf(short_one); });
  GgufBuilder zeros = gguf("llama");
  zeros.tensor("rope_freqs.weight", {8}, 0, std::string(32, '\0'));
  expect_error(ErrorKind::format, {"rope_freqs.weight"}, [&] { (void)read_gguf(zeros); });
}

TEST(GgufConfigs, RefusesNonsense) {
  const auto refuse = [](ErrorKind kind, const std::string& key, uint32_t value, const std::string& part) {
    SCOPED_TRACE(key);
    GgufBuilder builder = gguf("llama", key);
    builder.scalar<uint32_t>("llama." + key, 4, value);
    expect_error(kind, {"test.gguf", part}, [&] { (void)read_gguf(builder); });
  };
  refuse(ErrorKind::format, "block_count", 0, "layers");
  refuse(ErrorKind::format, "block_count", 4000000000u, "layers");
  refuse(ErrorKind::format, "attention.head_count", 0, "heads");
  refuse(ErrorKind::format, "attention.head_count_kv", 3, "a multiple");
  refuse(ErrorKind::format, "rope.dimension_count", 7, "even");
  refuse(ErrorKind::format, "rope.dimension_count", 18, "rotary");
  refuse(ErrorKind::format, "context_length", 0, "context");
  refuse(ErrorKind::unsupported, "expert_count", 8, "mixture of experts");
  refuse(ErrorKind::unsupported, "attention.sliding_window", 4096, "sliding-window");
  refuse(ErrorKind::unsupported, "attention.value_length", 8, "value heads");
  GgufBuilder missing = gguf("llama", "block_count");
  expect_error(ErrorKind::format, {"test.gguf", "llama.block_count"}, [&] { (void)read_gguf(missing); });
  GgufBuilder other = gguf("gemma3");
  expect_error(ErrorKind::unsupported, {"gemma3", "llama, qwen2 or qwen3"}, [&] { (void)read_gguf(other); });
}

}  // namespace
}  // namespace keysieve
