#include "keysieve/inspect.h"

#include <fstream>

#include "fixture.h"

namespace keysieve {
namespace {

using testing::expect_error;
using testing::golden_dir;
using testing::TinyModel;
using testing::TinyWorld;

TEST(Inspect, HubFolder) {
  const Description found = inspect(TinyWorld::get().model.string());
  EXPECT_EQ(found.kind, "hub folder");
  EXPECT_EQ(found.architecture, "llama");
  ASSERT_EQ(found.tensors.size(), 2 + 9 * TinyModel::kLayers);
  uint64_t bytes = 0;
  for (const TensorDescription& tensor : found.tensors) {
    EXPECT_EQ(tensor.dtype, "f32");
    EXPECT_EQ(tensor.file, "model.safetensors");
    bytes += tensor.bytes;
  }
  EXPECT_EQ(bytes, found.parameters * 4);
  EXPECT_GT(found.file_bytes, bytes);
  EXPECT_EQ(parse_json(found.metadata, "metadata")["hidden_size"], TinyModel::kHidden);
}

TEST(Inspect, ShortNamesOfModelsAndIndexers) {
  const std::vector<std::filesystem::path> models = {TinyWorld::get().folder / "models"};
  EXPECT_EQ(inspect("tiny", models).kind, "hub folder");
  const std::vector<std::filesystem::path> indexers = {TinyWorld::get().folder / "indexers"};
  const Description found = inspect("tiny", indexers);
  EXPECT_EQ(found.kind, "indexer folder");
  EXPECT_EQ(parse_json(found.metadata, "metadata")["shape"], "native");
  EXPECT_EQ(found.tensors.size(), 2 * TinyModel::kLayers);
}

TEST(Inspect, SafetensorsFile) {
  const Description found = inspect((TinyWorld::get().model / "model.safetensors").string());
  EXPECT_EQ(found.kind, "safetensors");
  EXPECT_EQ(found.tensors.size(), 2 + 9 * TinyModel::kLayers);
}

TEST(Inspect, Gguf) {
  if (!golden_dir()) GTEST_SKIP() << "no golden data";
  const Description found = inspect((*golden_dir() / "models/llama-gguf/llama-Q4_0.gguf").string());
  EXPECT_EQ(found.kind, "gguf");
  EXPECT_EQ(found.architecture, "llama");
  EXPECT_TRUE(std::ranges::any_of(found.tensors, [](const auto& tensor) { return tensor.dtype == "q4_0"; }));
  // Long arrays are cut to their first elements.
  const Json tokens = parse_json(found.metadata, "metadata")["tokenizer.ggml.tokens"];
  EXPECT_EQ(tokens["count"], 288);
  EXPECT_EQ(tokens["first"].size(), 8u);
}

TEST(Inspect, WhatCannotBeReadIsAnError) {
  const std::filesystem::path file = TinyWorld::get().folder / "noise.bin";
  std::ofstream(file) << "neither this nor that";
  EXPECT_THROW((void)inspect(file.string()), Error);
  expect_error(ErrorKind::file, {"no-such-model"}, [] { (void)inspect("no-such-model"); });
  std::ofstream(TinyWorld::get().folder / "short.gguf") << "GGUF\3";
  expect_error(ErrorKind::format, {"short.gguf"},
               [] { (void)inspect((TinyWorld::get().folder / "short.gguf").string()); });
}

}  // namespace
}  // namespace keysieve
