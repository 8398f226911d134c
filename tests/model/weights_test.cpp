#include "model/weights.h"

#include <gmock/gmock.h>

#include "keysieve/error.h"
#include "model_support.h"
#include "support/files.h"
#include "tiny_folder.h"

namespace keysieve {
namespace {

using ::testing::ElementsAre;
using testing::expect_error;
using testing::TinyFolder;

TEST(Weights, HalfSplitOrderUndoesInterleaving) {
  EXPECT_THAT(half_split_row_order(2, 6, 6), ElementsAre(0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11));
  EXPECT_THAT(half_split_row_order(1, 6, 4), ElementsAre(0, 2, 1, 3, 4, 5));  // what is not rotated stays
  EXPECT_THAT(half_split_row_order(2, 2, 2), ElementsAre(0, 1, 2, 3));
}

TEST(Weights, MissingTensorsAreNamed) {
  TinyFolder folder;
  for (const auto& [name, shape] : TinyFolder().shapes_) {
    folder.shapes_.erase(name);
    expect_error(ErrorKind::format, {name}, [&] { (void)folder.load(); });
    folder.shapes_[name] = shape;
  }
  EXPECT_NO_THROW((void)folder.load());
}

TEST(Weights, WrongShapesNameFileTensorFoundAndExpected) {
  TinyFolder folder;
  for (const auto& [name, shape] : TinyFolder().shapes_) {
    std::vector<uint64_t> wrong = shape;
    wrong[0] += 2;
    folder.shapes_[name] = wrong;
    expect_error(ErrorKind::mismatch, {"model.safetensors", name, shape_text(wrong), shape_text(shape)},
                 [&] { (void)folder.load(); });
    folder.shapes_[name] = shape;
  }
}

TEST(Weights, BiasesAreRequiredWhereTheConfigSaysSo) {
  TinyFolder folder(Json{{"attention_bias", true}});
  expect_error(ErrorKind::format, {"self_attn.q_proj.bias"}, [&] { (void)folder.load(); });
  folder.shapes_[TinyFolder::layer("self_attn.q_proj.bias")] = {32};
  folder.shapes_[TinyFolder::layer("self_attn.k_proj.bias")] = {16};
  folder.shapes_[TinyFolder::layer("self_attn.v_proj.bias")] = {16};
  folder.shapes_[TinyFolder::layer("self_attn.o_proj.bias")] = {32};
  const auto model = folder.load();
  EXPECT_EQ(model->weights().layers[0].output_bias.size(), 32u);
  EXPECT_EQ(model->weights().layers[0].k_bias.size(), 16u);
}

TEST(Weights, TensorsNobodyNeedsAreIgnored) {
  TinyFolder folder;
  folder.shapes_["model.layers.0.self_attn.rotary_emb.inv_freq"] = {4};
  EXPECT_NO_THROW((void)folder.load());
}

TEST(Weights, FingerprintFollowsTheWeights) {
  const TinyFolder folder;
  const uint64_t fingerprint = folder.load()->fingerprint();
  for (const std::string_view kernels : available_kernels()) {
    EXPECT_EQ(folder.load({.kernels = std::string(kernels), .threads = 1, .context = 16})->fingerprint(),
              fingerprint);
  }
  EXPECT_NE(folder.load({.kernels = "reference"}, 2)->fingerprint(), fingerprint);
  EXPECT_EQ(folder.load()->fingerprint_text().size(), 16u);
}

TEST(Models, OptionsAreChecked) {
  const TinyFolder folder;
  expect_error(ErrorKind::usage, {"nonsense"}, [&] { (void)folder.load({.kernels = "nonsense"}); });
  EXPECT_EQ(folder.load({.kernels = "reference", .context = 16})->config().context, 16u);
}

TEST(Forward, RefusesWhatItCannotTakeAndStaysWhole) {
  const auto model = TinyFolder().load();
  expect_error(ErrorKind::usage, {"context", "65", "64"}, [&] { SequenceState(model, {.context = 65}); });
  expect_error(ErrorKind::usage, {"chunk"}, [&] { SequenceState(model, {.max_chunk = 0}); });

  SequenceState state(model, {.context = 10, .max_chunk = 8});
  EXPECT_TRUE(state.last_logits().empty());
  const std::vector<int32_t> tokens{1, 2, 3, 4, 5, 6, 7, 8, 9};
  const auto first = std::span(tokens).first(3);
  forward(state, first);
  const std::vector<float> logits(state.last_logits().begin(), state.last_logits().end());
  expect_error(ErrorKind::usage, {"tokens"}, [&] { forward(state, {}); });
  expect_error(ErrorKind::usage, {"chunk", "9", "8"}, [&] { forward(state, tokens); });
  expect_error(ErrorKind::usage, {"token id", "20", "19"},
               [&] { forward(state, std::vector<int32_t>{1, 20}); });
  expect_error(ErrorKind::usage, {"token id", "-1"}, [&] { forward(state, std::vector<int32_t>{-1}); });
  expect_error(ErrorKind::mismatch, {"context", "8", "3", "10"},
               [&] { forward(state, std::span(tokens).first(8)); });
  expect_error(ErrorKind::mismatch, {"context"}, [&] { prefill(state, tokens); });
  EXPECT_EQ(state.position(), 3u);
  EXPECT_THAT(state.last_logits(), ::testing::ElementsAreArray(logits));

  forward(state, std::span(tokens).first(7));
  EXPECT_EQ(state.position(), 10u);
  expect_error(ErrorKind::mismatch, {"context"}, [&] { forward(state, std::span(tokens).first(1)); });
  state.clear();
  forward(state, first);
  EXPECT_THAT(state.last_logits(), ::testing::ElementsAreArray(logits));
}

TEST(Forward, PrefillCanBeStoppedBetweenChunks) {
  const auto model = TinyFolder().load();
  SequenceState state(model, {.max_chunk = 4});
  const std::vector<int32_t> tokens(10, 1);
  std::vector<size_t> seen;
  const size_t done = prefill(state, tokens, {}, [&](size_t count) {
    seen.push_back(count);
    return count < 8;
  });
  EXPECT_EQ(done, 8u);
  EXPECT_THAT(seen, ElementsAre(4, 8));
  EXPECT_EQ(state.position(), 8u);
  EXPECT_TRUE(state.last_logits().empty());
}

}  // namespace
}  // namespace keysieve
