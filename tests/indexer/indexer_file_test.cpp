#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "core/half.h"
#include "indexer/fixtures.h"
#include "indexer/indexer_weights.h"
#include "indexer/tensor_role.h"
#include "support/golden.h"

namespace keysieve {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

constexpr ModelShape kModel() {
  return {.layers = 2,
          .hidden = 16,
          .heads = 4,
          .kv_heads = 2,
          .head_dim = 8,
          .rope_theta = 1e4,
          .rms_norm_eps = 1e-6f,
          .fingerprint = {}};
}

// A seed indexer's files for kModel(), 3 heads of 6, to be damaged one way at a time.
struct SeedFiles {
  std::map<std::string, std::vector<uint64_t>> shapes;
  std::string config =
      R"({"hidden_size": 16, "proj_dim": 6, "indexer_heads": 3, "rope_dim": 4, "top_k": 8, "lr": 0.1})";
  DType dtype = DType::f32;
  std::map<std::string, float> fill;  // instead of random values

  explicit SeedFiles(const std::string& prefix = "model.layers.", bool bias = false, bool norm = false) {
    for (const std::string layer : {"0", "1"}) {
      const std::string base = prefix + layer + ".indexer.";
      shapes[base + "wq.weight"] = {18, 16};
      shapes[base + "wk.weight"] = {6, 16};
      shapes[base + "weights_proj.weight"] = {3, 16};
      if (bias) shapes[base + "wq.bias"] = {18};
      if (bias) shapes[base + "wk.bias"] = {6};
      if (norm) shapes[base + "q_norm.weight"] = {18};
      if (norm) shapes[base + "k_norm.weight"] = {6};
    }
  }
  void rename(const std::string& from, const std::string& to) {
    shapes[to] = shapes.at(from);
    shapes.erase(from);
  }
  void write(const std::filesystem::path& folder) const {
    std::vector<std::vector<std::byte>> data;
    std::vector<TensorToWrite> tensors;
    uint32_t seed = 1;
    for (const auto& [name, shape] : shapes) {
      size_t count = 1;
      for (const uint64_t extent : shape) count *= extent;
      std::vector<float> values = testing::random_floats(count, seed++);
      if (fill.contains(name)) std::fill(values.begin(), values.end(), fill.at(name));
      std::vector<std::byte> bytes(count * traits(dtype).block_bytes);
      for (size_t i = 0; i < count; ++i) {
        const BFloat16 rounded = to_bfloat16(values[i]);
        if (dtype == DType::f32) std::memcpy(bytes.data() + 4 * i, &values[i], 4);
        if (dtype == DType::bf16) std::memcpy(bytes.data() + 2 * i, &rounded, 2);
      }
      data.push_back(std::move(bytes));
      tensors.push_back({name, dtype, shape, data.back()});
    }
    write_safetensors(folder / "lightning_indexer_best_assembled.safetensors", tensors);
    testing::write_text(folder / "run_config.json", config);
  }
};

std::pair<ErrorKind, std::string> load_error(const SeedFiles& files, const ModelShape& model = kModel()) {
  const TemporaryFolder folder;
  files.write(folder.path());
  return error_of([&] {
    const IndexerFile file(folder.path(), model);
    for (size_t i = 0; i < file.config().layers; ++i) file.layer(i);
  });
}

std::optional<size_t> place_layer(std::string_view name) { return place_in_name(name).layer; }

TEST(TensorRole, FindsTheLayerInTheName) {
  EXPECT_EQ(place_layer("layers.7.indexer.wq.weight"), 7u);
  EXPECT_EQ(place_layer("model.0.layers.12.wk"), 12u);
  EXPECT_EQ(place_layer("indexers.3.q.weight"), 3u);
  EXPECT_EQ(place_layer("layer_31.k_proj"), 31u);
  EXPECT_EQ(place_layer("5.wq.weight"), 5u);
  EXPECT_EQ(place_layer("wq2.weight"), std::nullopt);
  EXPECT_EQ(place_layer("layers.99999999999999999999.wq"), std::nullopt);
  EXPECT_EQ(place_layer(""), std::nullopt);
}

TEST(IndexerFile, AcceptsAnyPrefixAndTellsPartsByShape) {
  for (const std::string prefix : {"layers.", "model.layers.", "student.indexers.", ""}) {
    const TemporaryFolder folder;
    SeedFiles files(prefix, true, false);
    files.rename(prefix + "0.indexer.wq.weight", prefix + "0.indexer.linear_a.weight");
    files.write(folder.path());
    const IndexerFile file(folder.path(), kModel());
    EXPECT_EQ(file.config().layers, 2u);
    EXPECT_TRUE(file.config().has_bias);
    EXPECT_FALSE(file.config().has_norm);
    EXPECT_EQ(file.config().budget, 8u);
    EXPECT_EQ(file.config().sinks + file.config().recent, 0u);
    EXPECT_EQ(file.config().key_type(), IndexKeyType::f32);
    EXPECT_DOUBLE_EQ(file.config().rope_theta, 1e4);
    EXPECT_EQ(file.layer(0).q.size(), 18u * 16);
    EXPECT_EQ(file.layer(1).q_bias.size(), 18u);
  }
}

TEST(IndexerFile, KeepsTheStoredTypeForPacking) {
  const TemporaryFolder folder;
  SeedFiles files("layers.", false, true);
  files.dtype = DType::bf16;
  files.write(folder.path());
  const IndexerFile file(folder.path() / "lightning_indexer_best_assembled.safetensors", kModel());
  EXPECT_TRUE(file.config().has_norm);
  EXPECT_EQ(file.layer(0).dtype, DType::bf16);
}

TEST(IndexerFile, TellsEqualShapesByName) {
  SeedFiles files("layers.");
  files.config = R"({"hidden_size": 16, "proj_dim": 6, "indexer_heads": 1, "rope_dim": 4, "top_k": 8})";
  for (const std::string layer : {"0", "1"}) {
    files.shapes["layers." + layer + ".indexer.wq.weight"] = {6, 16};
    files.shapes["layers." + layer + ".indexer.weights_proj.weight"] = {1, 16};
  }
  EXPECT_EQ(load_error(files).second, "nothing was thrown");
  files.rename("layers.0.indexer.wq.weight", "layers.0.indexer.linear_a.weight");
  const auto [kind, message] = load_error(files);
  EXPECT_EQ(kind, ErrorKind::format);
  EXPECT_THAT(message, HasSubstr("linear_a"));
}

TEST(IndexerFile, ReadsTheConfigUnderMetadata) {
  SeedFiles files;
  files.config =
      R"({"metadata": {"hidden_size": 16, "proj_dim": 6, "indexer_heads": 3, "rope_dim": 4}, "top_k": 8})";
  EXPECT_EQ(load_error(files).second, "nothing was thrown");
}

struct BadFiles {
  std::string name;
  void (*damage)(SeedFiles&);
  ErrorKind kind;
  std::string says;
};

class IndexerFileErrors : public ::testing::TestWithParam<BadFiles> {};

TEST_P(IndexerFileErrors, NamesWhatItRefuses) {
  SeedFiles files("layers.", true, false);
  GetParam().damage(files);
  const auto [kind, message] = load_error(files);
  EXPECT_EQ(kind, GetParam().kind) << message;
  EXPECT_THAT(message, HasSubstr(GetParam().says));
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 0);
}

const BadFiles kBadFiles[] = {
    {"WrongHidden", [](SeedFiles& f) { f.shapes["layers.1.indexer.wq.weight"] = {18, 24}; },
     ErrorKind::mismatch, "layers.1.indexer.wq.weight: [18, 24], expected [18, 16]"},
    {"ConfigOfAnotherModel",
     [](SeedFiles& f) { f.config = R"({"hidden_size": 32, "proj_dim": 6, "indexer_heads": 3, "top_k": 8})"; },
     ErrorKind::mismatch, "hidden size 32"},
    {"NoLayers", [](SeedFiles& f) { f.shapes = {{"layers.0.rotary_emb.inv_freq", {2}}}; }, ErrorKind::format,
     "no layer of an indexer"},
    {"HalfALayer", [](SeedFiles& f) { f.shapes.erase("layers.1.indexer.wq.weight"); }, ErrorKind::format,
     "no query projection for layer 1"},
    {"MissingBias", [](SeedFiles& f) { f.shapes.erase("layers.1.indexer.wk.bias"); }, ErrorKind::format,
     "no key bias for layer 1"},
    {"MissingHeadWeights", [](SeedFiles& f) { f.shapes.erase("layers.0.indexer.weights_proj.weight"); },
     ErrorKind::format, "no head-weight projection for layer 0"},
    {"LayerPastTheModel",
     [](SeedFiles& f) { f.rename("layers.1.indexer.wk.weight", "layers.2.indexer.wk.weight"); },
     ErrorKind::mismatch, "layer 2, expected layers 0 to 1"},
    {"UnknownTensor", [](SeedFiles& f) { f.shapes["layers.0.indexer.extra"] = {5, 7}; }, ErrorKind::format,
     "layers.0.indexer.extra: [5, 7], which is no part of this indexer"},
    {"HeadWeightBias", [](SeedFiles& f) { f.shapes["layers.0.indexer.weights_proj.bias"] = {3}; },
     ErrorKind::format, "weights_proj.bias"},
    {"LayerNormBias", [](SeedFiles& f) { f.shapes["layers.0.indexer.k_norm.bias"] = {6}; },
     ErrorKind::unsupported, "k_norm.bias"},
    {"NoLayerNumber", [](SeedFiles& f) { f.shapes["wq.weight"] = {18, 16}; }, ErrorKind::format,
     "without a layer number"},
    {"Duplicate", [](SeedFiles& f) { f.shapes["layers.0.copy.wq.weight"] = {18, 16}; }, ErrorKind::format,
     "a second query projection"},
    {"NotFinite", [](SeedFiles& f) { f.fill["layers.1.indexer.wk.weight"] = INFINITY; }, ErrorKind::format,
     "not finite"},
    {"BadJson", [](SeedFiles& f) { f.config = "{\"proj_dim\": "; }, ErrorKind::format, "run_config.json"},
    {"NotAnObject", [](SeedFiles& f) { f.config = "[1]"; }, ErrorKind::format, "run_config.json"},
    {"MissingKey", [](SeedFiles& f) { f.config = R"({"hidden_size": 16, "indexer_heads": 3})"; },
     ErrorKind::format, "proj_dim"},
    {"AbsurdHeads",
     [](SeedFiles& f) {
       f.config = R"({"hidden_size": 16, "proj_dim": 6, "indexer_heads": 18446744073709551615})";
     },
     ErrorKind::format, "indexer_heads"},
    {"ZeroDim", [](SeedFiles& f) { f.config = R"({"hidden_size": 16, "proj_dim": 0, "indexer_heads": 3})"; },
     ErrorKind::format, "proj_dim: 0"},
    {"RopeWiderThanHead",
     [](SeedFiles& f) {
       f.config = R"({"hidden_size": 16, "proj_dim": 6, "indexer_heads": 3, "rope_dim": 8})";
     },
     ErrorKind::format, "rope_dim: 8"},
    {"BudgetTooSmall",
     [](SeedFiles& f) {
       f.config =
           R"({"hidden_size": 16, "proj_dim": 6, "indexer_heads": 3, "top_k": 8, "sinks": 4, "recent": 5})";
     },
     ErrorKind::format, "top_k: 8, expected at least sinks 4 + recent 5"},
    {"PerGroupWithOneKey",
     [](SeedFiles& f) {
       f.config = R"({"hidden_size": 16, "proj_dim": 6, "indexer_heads": 3, "selection": "per-group"})";
     },
     ErrorKind::format, "selection"},
    {"UnknownShape", [](SeedFiles& f) { f.config = R"({"shape": "octopus"})"; }, ErrorKind::format,
     "\"octopus\""},
    {"BudgetsOfAnotherDepth",
     [](SeedFiles& f) {
       f.config = R"({"hidden_size": 16, "proj_dim": 6, "indexer_heads": 3, "budgets": [8, 8, 8]})";
     },
     ErrorKind::mismatch, "budgets"},
    {"RefinedLayerOfAnotherDepth",
     [](SeedFiles& f) {
       f.config = R"({"hidden_size": 16, "proj_dim": 6, "indexer_heads": 3, "refine_layers": [2, 0]})";
     },
     ErrorKind::mismatch, "layer 2 in `refine_layers`, expected layers 0 to 1"},
    {"MistypedBudget",
     [](SeedFiles& f) {
       f.config = R"({"hidden_size": 16, "proj_dim": 6, "indexer_heads": 3, "budgets": [8, -1]})";
     },
     ErrorKind::format, "budget"},
    {"LayersOfAnotherModel",
     [](SeedFiles& f) {
       f.config = R"({"hidden_size": 16, "proj_dim": 6, "indexer_heads": 3, "layers": 3})";
     },
     ErrorKind::mismatch, "layers 3"},
};
INSTANTIATE_TEST_SUITE_P(All, IndexerFileErrors, ::testing::ValuesIn(kBadFiles),
                         [](const auto& info) { return info.param.name; });

TEST(IndexerFile, RefusesEveryTruncation) {
  const TemporaryFolder folder;
  SeedFiles("layers.").write(folder.path());
  const std::filesystem::path weights = folder.path() / "lightning_indexer_best_assembled.safetensors";
  const std::string whole = read_text_file(weights);
  for (const size_t length :
       {size_t{0}, size_t{4}, size_t{8}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    testing::write_text(weights, std::string_view(whole).substr(0, length));
    const auto [kind, message] = error_of([&] { IndexerFile(folder.path(), kModel()); });
    EXPECT_EQ(kind, ErrorKind::format) << length << ": " << message;
  }
}

TEST(IndexerFile, SaysWhatIsMissing) {
  const TemporaryFolder folder;
  EXPECT_EQ(error_of([&] { IndexerFile(folder.path() / "nowhere", kModel()); }).first, ErrorKind::file);
  EXPECT_THAT(error_of([&] { IndexerFile(folder.path(), kModel()); }).second, HasSubstr("no .safetensors"));
  SeedFiles("layers.").write(folder.path());
  std::filesystem::remove(folder.path() / "run_config.json");
  EXPECT_THAT(error_of([&] { IndexerFile(folder.path(), kModel()); }).second,
              HasSubstr("no run_config.json"));
  std::filesystem::rename(folder.path() / "lightning_indexer_best_assembled.safetensors",
                          folder.path() / "a.safetensors");
  testing::write_text(folder.path() / "b.safetensors", "");
  EXPECT_THAT(error_of([&] { IndexerFile(folder.path(), kModel()); }).second,
              HasSubstr("2 .safetensors files"));
}

std::vector<IndexerLayerWeights> random_native(const IndexerConfig& config) {
  std::vector<IndexerLayerWeights> layers(config.layers);
  uint32_t seed = 100;
  for (IndexerLayerWeights& layer : layers) {
    const size_t maps = config.map_per_head ? config.heads : config.key_heads;
    layer.q = testing::random_floats(maps * config.dim * config.head_dim, seed++);
    layer.k = testing::random_floats(config.key_heads * config.dim * config.head_dim, seed++);
  }
  return layers;
}

TEST(SaveIndexer, NativeRoundTrip) {
  for (const bool map_per_head : {false, true}) {
    const TemporaryFolder folder;
    ModelShape model = kModel();
    model.fingerprint = "abc";
    IndexerConfig config = IndexerConfig::native_for(model, 4, 80);
    config.map_per_head = map_per_head;
    config.budgets = {0, 96};
    config.refine = 300;
    config.refine_prompt = 200;
    config.refine_layers = {1};
    const auto layers = random_native(config);
    save_indexer(folder.path() / "deep" / "er", config, layers);
    const IndexerFile file(folder.path() / "deep" / "er", model);
    EXPECT_EQ(to_json(file.config()), to_json(config));
    EXPECT_EQ(SelectionPolicy::from(file.config()).refine, 300u);
    EXPECT_EQ(SelectionPolicy::from(file.config()).refine_prompt, 200u);
    EXPECT_EQ(SelectionPolicy::from(file.config()).refine_layers, std::vector<size_t>{1});
    EXPECT_EQ(file.config().scope, SelectionScope::per_group);
    EXPECT_EQ(file.config().key_type(), IndexKeyType::i8);
    for (size_t i = 0; i < layers.size(); ++i) {
      EXPECT_EQ(file.layer(i).q, layers[i].q);
      EXPECT_EQ(file.layer(i).k, layers[i].k);
    }
    model.fingerprint = "xyz";
    const auto [kind, message] = error_of([&] { IndexerFile(folder.path() / "deep" / "er", model); });
    EXPECT_EQ(kind, ErrorKind::mismatch);
    EXPECT_THAT(message, HasSubstr("abc, expected xyz"));
    model.fingerprint.clear();
    model.kv_heads = 4;
    EXPECT_EQ(error_of([&] { IndexerFile(folder.path() / "deep" / "er", model); }).first,
              ErrorKind::mismatch);
  }
}

TEST(SaveIndexer, SeedRoundTrip) {
  const TemporaryFolder first;
  const TemporaryFolder second;
  SeedFiles("layers.", true, true).write(first.path());
  const IndexerFile file(first.path(), kModel());
  const std::vector layers{file.layer(0), file.layer(1)};
  save_indexer(second.path(), file.config(), layers);
  const IndexerFile again(second.path(), kModel());
  EXPECT_EQ(to_json(again.config()), to_json(file.config()));
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(again.layer(i).q, layers[i].q);
    EXPECT_EQ(again.layer(i).head_weight, layers[i].head_weight);
    EXPECT_EQ(again.layer(i).k_bias, layers[i].k_bias);
    EXPECT_EQ(again.layer(i).q_norm, layers[i].q_norm);
  }
  std::vector<IndexerLayerWeights> short_one = layers;
  short_one[1].k.pop_back();
  EXPECT_EQ(error_of([&] { save_indexer(second.path(), file.config(), short_one); }).first, ErrorKind::usage);
  EXPECT_EQ(error_of([&] { save_indexer(second.path(), file.config(), {}); }).first, ErrorKind::usage);
}

TEST(SaveIndexer, MatricesInTwoBytes) {
  const TemporaryFolder first;
  const TemporaryFolder second;
  SeedFiles("layers.", true, true).write(first.path());
  const IndexerFile file(first.path(), kModel());
  std::vector<IndexerLayerWeights> layers{file.layer(0), file.layer(1)};
  layers[1].q[3] = 1.0f / 3;
  layers[1].q[4] = 1e30f;
  layers[1].k_bias[0] = 1.0f / 3;
  save_indexer(second.path(), file.config(), layers, DType::bf16);
  const IndexerLayerWeights narrow = IndexerFile(second.path(), kModel()).layer(1);
  EXPECT_EQ(narrow.dtype, DType::bf16);
  EXPECT_EQ(narrow.q[3], to_float(to_bfloat16(1.0f / 3)));
  EXPECT_NEAR(narrow.q[4] / 1e30f, 1, 0.004);
  EXPECT_EQ(narrow.k_bias, layers[1].k_bias);
  const auto [kind, message] =
      error_of([&] { save_indexer(second.path(), file.config(), layers, DType::f16); });
  EXPECT_EQ(kind, ErrorKind::usage);
  EXPECT_THAT(message, HasSubstr("layers.1.indexer.wq.weight"));
  EXPECT_EQ(IndexerFile(second.path(), kModel()).layer(1).dtype, DType::bf16) << "the old file stays";
  layers[1].q[4] = 1;
  save_indexer(second.path(), file.config(), layers, DType::f16);
  EXPECT_EQ(IndexerFile(second.path(), kModel()).layer(1).q[3], to_float(to_half(1.0f / 3)));
  EXPECT_EQ(error_of([&] { save_indexer(second.path(), file.config(), layers, DType::i8); }).first,
            ErrorKind::usage);
}

TEST(IndexerFile, ReadsTheRecordedCheckpoints) {
  const auto golden = testing::golden_dir();
  if (!golden) GTEST_SKIP() << "no golden data";
  ModelShape model = testing::golden_model();
  for (const std::string variant : {"bias", "norm"}) {
    const IndexerFile file(*golden / "indexer" / variant, model);
    EXPECT_EQ(file.config().has_bias, variant == "bias");
    EXPECT_EQ(file.config().has_norm, variant == "norm");
    EXPECT_EQ(file.config().heads * file.config().dim, 414u);
    EXPECT_EQ(file.layer(1).dtype, variant == "bias" ? DType::f32 : DType::bf16);
  }
  model.hidden = 4096;
  const auto [kind, message] = error_of([&] { IndexerFile(*golden / "indexer" / "bias", model); });
  EXPECT_EQ(kind, ErrorKind::mismatch);
  EXPECT_THAT(message, HasSubstr("hidden size 128, expected 4096"));
}

}  // namespace
}  // namespace keysieve
