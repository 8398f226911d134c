#include "indexer/indexer_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>

#include "core/half.h"
#include "indexer/fixtures.h"
#include "indexer/indexer_weights.h"

// The same seed indexer stored in every way a training script might: read back, it must be the same numbers.

namespace keysieve {
namespace {

using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

constexpr size_t kLayers = 3;
constexpr size_t kHidden = 16;
constexpr size_t kHeads = 3;
constexpr size_t kDim = 6;

ModelShape shape_of_model() {
  return {.layers = kLayers,
          .hidden = kHidden,
          .heads = 4,
          .kv_heads = 2,
          .head_dim = 8,
          .rope_theta = 1e4,
          .rms_norm_eps = 1e-6f,
          .fingerprint = {}};
}

IndexerLayerWeights weights_of(size_t layer, bool bias, bool norm) {
  uint32_t seed = static_cast<uint32_t>(100 * layer + 1);
  IndexerLayerWeights weights;
  weights.q = testing::random_floats(kHeads * kDim * kHidden, seed++);
  weights.k = testing::random_floats(kDim * kHidden, seed++);
  weights.head_weight = testing::random_floats(kHeads * kHidden, seed++);
  if (bias) weights.q_bias = testing::random_floats(kHeads * kDim, seed++);
  if (bias) weights.k_bias = testing::random_floats(kDim, seed++);
  if (norm) weights.q_norm = testing::random_floats(kHeads * kDim, seed++);
  if (norm) weights.k_norm = testing::random_floats(kDim, seed++);
  return weights;
}

// Tensors of one file.
class TensorList {
 public:
  void add(const std::string& name, std::vector<uint64_t> shape, std::vector<float> values) {
    values_.push_back(std::move(values));
    tensors_.push_back({name, DType::f32, std::move(shape), std::as_bytes(std::span(values_.back()))});
  }
  void write(const std::filesystem::path& path) const {
    std::filesystem::create_directories(path.parent_path());
    write_safetensors(path, tensors_);
  }

 private:
  std::deque<std::vector<float>> values_;
  std::vector<TensorToWrite> tensors_;
};

std::vector<float> joined(std::initializer_list<std::vector<float>> pieces) {
  std::vector<float> all;
  for (const std::vector<float>& piece : pieces) all.insert(all.end(), piece.begin(), piece.end());
  return all;
}
std::vector<float> slice(const std::vector<float>& values, size_t first, size_t count) {
  const auto begin = values.begin() + static_cast<ptrdiff_t>(first);
  return {begin, begin + static_cast<ptrdiff_t>(count)};
}
std::vector<float> transposed(const std::vector<float>& values, size_t rows) {
  const size_t columns = values.size() / rows;
  std::vector<float> turned;
  for (size_t c = 0; c < columns; ++c) {
    for (size_t r = 0; r < rows; ++r) turned.push_back(values[r * columns + c]);
  }
  return turned;
}

void write_config(const std::filesystem::path& folder) {
  testing::write_text(folder / "run_config.json",
                      R"({"hidden_size": 16, "proj_dim": 6, "indexer_heads": 3, "rope_dim": 4, "top_k": 8})");
}

void add_plain(TensorList& list, const std::string& prefix, const IndexerLayerWeights& w) {
  list.add(prefix + "wq.weight", {kHeads * kDim, kHidden}, w.q);
  list.add(prefix + "wk.weight", {kDim, kHidden}, w.k);
  list.add(prefix + "weights_proj.weight", {kHeads, kHidden}, w.head_weight);
  if (!w.q_bias.empty()) list.add(prefix + "wq.bias", {kHeads * kDim}, w.q_bias);
  if (!w.k_bias.empty()) list.add(prefix + "wk.bias", {kDim}, w.k_bias);
  if (!w.q_norm.empty()) list.add(prefix + "q_norm.weight", {kHeads * kDim}, w.q_norm);
  if (!w.k_norm.empty()) list.add(prefix + "k_norm.weight", {kDim}, w.k_norm);
}

void add_all_fused(TensorList& list, const std::string& prefix, const IndexerLayerWeights& w) {
  list.add(prefix + "proj.weight", {kHeads * kDim + kDim + kHeads, kHidden},
           joined({w.q, w.k, w.head_weight}));
  if (!w.q_bias.empty()) list.add(prefix + "proj.bias", {kHeads * kDim + kDim}, joined({w.q_bias, w.k_bias}));
}
void add_qk_fused(TensorList& list, const std::string& prefix, const IndexerLayerWeights& w) {
  list.add(prefix + "qk_proj.weight", {kHeads * kDim + kDim, kHidden}, joined({w.q, w.k}));
  list.add(prefix + "head_gate.weight", {kHeads, kHidden}, w.head_weight);
  if (!w.q_norm.empty())
    list.add(prefix + "qk_norm.weight", {kHeads * kDim + kDim}, joined({w.q_norm, w.k_norm}));
}
void add_kw_fused(TensorList& list, const std::string& prefix, const IndexerLayerWeights& w) {
  list.add(prefix + "q_proj.weight", {kHeads, kDim, kHidden}, w.q);
  list.add(prefix + "kw.weight", {kDim + kHeads, kHidden}, joined({w.k, w.head_weight}));
  if (!w.q_bias.empty()) list.add(prefix + "q_proj.bias", {kHeads, kDim}, w.q_bias);
  if (!w.q_bias.empty()) list.add(prefix + "k_proj.bias", {kDim}, w.k_bias);
}
void add_heads_apart(TensorList& list, const std::string& prefix, const IndexerLayerWeights& w) {
  for (const size_t h : {size_t{2}, size_t{0}, size_t{1}}) {
    const std::string head = prefix + "heads." + std::to_string(h) + ".";
    list.add(head + "q.weight", {kDim, kHidden}, slice(w.q, h * kDim * kHidden, kDim * kHidden));
    list.add(head + "gate.weight", {1, kHidden}, slice(w.head_weight, h * kHidden, kHidden));
    if (!w.q_bias.empty()) list.add(head + "q.bias", {kDim}, slice(w.q_bias, h * kDim, kDim));
  }
  list.add(prefix + "key.weight", {kDim, kHidden}, w.k);
  if (!w.q_bias.empty()) list.add(prefix + "key.bias", {kDim}, w.k_bias);
}
void add_transposed(TensorList& list, const std::string& prefix, const IndexerLayerWeights& w) {
  list.add(prefix + "wq", {kHidden, kHeads * kDim}, transposed(w.q, kHeads * kDim));
  list.add(prefix + "wk", {kHidden, kDim}, transposed(w.k, kDim));
  list.add(prefix + "ww", {kHidden, kHeads}, transposed(w.head_weight, kHeads));
  list.add(prefix + "rotary_emb.inv_freq", {2}, {1, 0.1f});
}

void expect_same(const IndexerFile& file, bool bias, bool norm) {
  for (size_t i = 0; i < kLayers; ++i) {
    if (!file.has_layer(i)) continue;
    const IndexerLayerWeights expected = weights_of(i, bias, norm);
    const IndexerLayerWeights found = file.layer(i);
    EXPECT_EQ(found.q, expected.q) << i;
    EXPECT_EQ(found.k, expected.k) << i;
    EXPECT_EQ(found.head_weight, expected.head_weight) << i;
    EXPECT_EQ(found.q_bias, expected.q_bias) << i;
    EXPECT_EQ(found.k_bias, expected.k_bias) << i;
    EXPECT_EQ(found.q_norm, expected.q_norm) << i;
    EXPECT_EQ(found.k_norm, expected.k_norm) << i;
  }
}

struct Way {
  std::string name;
  void (*add)(TensorList&, const std::string&, const IndexerLayerWeights&);
  bool bias;
  bool norm;
};

class IndexerLayouts : public ::testing::TestWithParam<Way> {};

TEST_P(IndexerLayouts, OneFileUnderAnyPrefix) {
  for (const std::string prefix : {"layers.{}.indexer.", "model.layers.{}.self_attn.indexer.", "indexers.{}.",
                                   "student.layer_{}.", "{}.", "module.blocks.{}.lightning."}) {
    const TemporaryFolder folder;
    TensorList list;
    for (size_t i = 0; i < kLayers; ++i) {
      std::string place = prefix;
      place.replace(place.find("{}"), 2, std::to_string(i));
      GetParam().add(list, place, weights_of(i, GetParam().bias, GetParam().norm));
    }
    list.write(folder.path() / "lightning_indexer_best_assembled.safetensors");
    write_config(folder.path());
    const IndexerFile file(folder.path(), shape_of_model());
    expect_same(file, GetParam().bias, GetParam().norm);
    EXPECT_TRUE(file.missing_layers().empty());
  }
}

TEST_P(IndexerLayouts, AFileForEachLayer) {
  for (const std::string name :
       {"layer_{}.safetensors", "indexer-{}.safetensors", "layer_{}/indexer.safetensors"}) {
    for (const std::string prefix : {"", "indexer."}) {
      const TemporaryFolder folder;
      for (size_t i = 0; i < kLayers; ++i) {
        TensorList list;
        GetParam().add(list, prefix, weights_of(i, GetParam().bias, GetParam().norm));
        std::string path = name;
        path.replace(path.find("{}"), 2, std::to_string(i));
        list.write(folder.path() / path);
      }
      write_config(folder.path());
      expect_same(IndexerFile(folder.path(), shape_of_model()), GetParam().bias, GetParam().norm);
    }
  }
}

TEST_P(IndexerLayouts, LayersThatAreNotThereAreDense) {
  const TemporaryFolder folder;
  TensorList list;
  GetParam().add(list, "layers.1.", weights_of(1, GetParam().bias, GetParam().norm));
  list.write(folder.path() / "indexer.safetensors");
  write_config(folder.path());
  const IndexerFile file(folder.path(), shape_of_model());
  EXPECT_THAT(file.missing_layers(), ElementsAre(0, 2));
  EXPECT_THAT(file.config().budgets, ElementsAre(0, 8, 0));
  expect_same(file, GetParam().bias, GetParam().norm);
  EXPECT_THAT(error_of([&] { file.layer(2); }).second, HasSubstr("nothing of layer 2"));
}

const Way kWays[] = {
    {"Plain", add_plain, true, true},
    {"AllFused", add_all_fused, true, false},
    {"QueryKeyFused", add_qk_fused, false, true},
    {"KeyWeightFused", add_kw_fused, true, false},
    {"HeadsApart", add_heads_apart, true, false},
    {"Transposed", add_transposed, false, false},
};
INSTANTIATE_TEST_SUITE_P(All, IndexerLayouts, ::testing::ValuesIn(kWays),
                         [](const auto& info) { return info.param.name; });

TEST(IndexerLayout, ShardsKeepTheLayersOfTheirNames) {
  const TemporaryFolder folder;
  for (size_t i = 0; i < kLayers; ++i) {
    TensorList list;
    add_plain(list, "layers." + std::to_string(i) + ".", weights_of(i, true, false));
    list.write(folder.path() / ("indexer-0000" + std::to_string(i + 1) + "-of-00003.safetensors"));
  }
  write_config(folder.path());
  expect_same(IndexerFile(folder.path(), shape_of_model()), true, false);
}

TEST(IndexerLayout, HalvesAndDoublesAreRefused) {
  const auto refused = [](const std::string& part, void (*damage)(TensorList&, const IndexerLayerWeights&)) {
    const TemporaryFolder folder;
    TensorList list;
    const IndexerLayerWeights w = weights_of(0, false, false);
    damage(list, w);
    list.write(folder.path() / "indexer.safetensors");
    write_config(folder.path());
    const auto [kind, message] = error_of([&] { IndexerFile(folder.path(), shape_of_model()); });
    EXPECT_THAT(message, HasSubstr(part));
  };
  refused("12 of 18 rows of layer 0's query projection", [](TensorList& list, const IndexerLayerWeights& w) {
    for (const size_t h : {size_t{0}, size_t{2}})
      list.add("layers.0.heads." + std::to_string(h) + ".q.weight", {kDim, kHidden},
               slice(w.q, h * kDim * kHidden, kDim * kHidden));
    list.add("layers.0.wk.weight", {kDim, kHidden}, w.k);
    list.add("layers.0.ww.weight", {kHeads, kHidden}, w.head_weight);
  });
  refused("a second query projection", [](TensorList& list, const IndexerLayerWeights& w) {
    add_all_fused(list, "layers.0.", w);
    list.add("layers.0.wq.weight", {kHeads * kDim, kHidden}, w.q);
  });
  refused("head 3, expected heads 0 to 2", [](TensorList& list, const IndexerLayerWeights& w) {
    add_plain(list, "layers.0.", w);
    list.add("layers.0.heads.3.q.weight", {kDim, kHidden}, slice(w.q, 0, kDim * kHidden));
  });
}

TEST(IndexerLayout, CollectsWhatItDoesNotUnderstand) {
  const TemporaryFolder folder;
  TensorList list;
  add_all_fused(list, "layers.0.", weights_of(0, false, false));
  add_transposed(list, "layers.2.", weights_of(2, false, false));
  list.add("layers.0.extra.weight", {5, 7}, std::vector<float>(35));
  list.add("loss_ema", {1}, {0.5f});
  list.write(folder.path() / "indexer.safetensors");
  write_config(folder.path());
  std::vector<SafetensorsFile> files;
  files.emplace_back(folder.path() / "indexer.safetensors");
  IndexerConfig config = read_indexer_config(folder.path() / "run_config.json");
  std::vector<std::string> problems;
  const IndexerLayout layout =
      read_layout(files, config, [&](const Error& error) { problems.emplace_back(error.what()); });
  EXPECT_EQ(config.layers, 3u);
  EXPECT_THAT(layout.missing, ElementsAre(1));
  EXPECT_THAT(layout.ignored, ElementsAre("layers.2.rotary_emb.inv_freq"));
  EXPECT_THAT(problems, ElementsAre(HasSubstr("layers.0.extra.weight"), HasSubstr("loss_ema")));
  EXPECT_THAT(layout.assumed,
              ::testing::Contains(HasSubstr("27 rows hold query projection, key projection, head-weight")));
  EXPECT_THAT(layout.assumed, ::testing::Contains(HasSubstr("[inputs, outputs]")));
}

TEST(IndexerLayout, RangesOfLayers) {
  EXPECT_EQ(layer_ranges(std::vector<size_t>{}), "");
  EXPECT_EQ(layer_ranges(std::vector<size_t>{3}), "3");
  EXPECT_EQ(layer_ranges(std::vector<size_t>{0, 1, 2, 5, 7, 8}), "0-2, 5, 7-8");
}

}  // namespace
}  // namespace keysieve
