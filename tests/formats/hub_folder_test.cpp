#include "formats/hub_folder.h"

#include <gtest/gtest.h>

#include "formats/matrix.h"
#include "support/files.h"

namespace keysieve {
namespace {

using testing::expect_error;
using testing::safetensors_bytes;
using testing::TempFolder;

// A safetensors file of one-byte tensors with these names.
std::string shard(const std::vector<std::string>& names) {
  std::string header = "{";
  for (size_t i = 0; i < names.size(); ++i) {
    header += (i ? "," : "") + ("\"" + names[i]) + "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[" +
              std::to_string(i) + "," + std::to_string(i + 1) + "]}";
  }
  return safetensors_bytes(header + "}", std::string(names.size(), 'x'));
}

void expect_folder_refused(const TempFolder& folder, ErrorKind kind, const std::vector<std::string>& parts) {
  expect_error(kind, parts, [&] { HubFolder{folder.path()}; });
}

TEST(HubFolder, OpensOneFile) {
  const TempFolder folder;
  folder.write("config.json", R"({"model_type": "llama"})");
  folder.write("tokenizer.json", "{}");
  folder.write("model.safetensors", shard({"a", "b"}));
  const HubFolder hub(folder.path());
  EXPECT_EQ(hub.config().at("model_type"), "llama");
  EXPECT_EQ(hub.tensors().size(), 2u);
  EXPECT_EQ(hub.require_tensor("b").name, "b");
  EXPECT_EQ(hub.find("c"), nullptr);
  expect_error(ErrorKind::format, {"no tensor c"}, [&] { hub.require_tensor("c"); });
  EXPECT_EQ(hub.file("tokenizer.json"), folder.path() / "tokenizer.json");
  EXPECT_EQ(hub.file("chat_template.jinja"), std::nullopt);
  EXPECT_EQ(hub.quantization("a"), std::nullopt);
}

TEST(HubFolder, OpensShardsAndStaysValidWhenMoved) {
  const TempFolder folder;
  folder.write("config.json", "{}");
  folder.write("model-1.safetensors", shard({"a", "b"}));
  folder.write("model-2.safetensors", shard({"c"}));
  folder.write(
      "model.safetensors.index.json",
      R"({"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}})");
  HubFolder first(folder.path());
  const HubFolder hub = std::move(first);
  EXPECT_EQ(hub.shards().size(), 2u);
  for (const char* name : {"a", "b", "c"}) EXPECT_EQ(hub.require_tensor(name).name, name);
  EXPECT_EQ(hub.require_tensor("c").file->path(), folder.path() / "model-2.safetensors");
}

TEST(HubFolder, SaysWhatIsMissing) {
  const TempFolder folder;
  expect_error(ErrorKind::file, {"absent", "no such folder"}, [&] { HubFolder{folder.path() / "absent"}; });
  expect_folder_refused(folder, ErrorKind::file, {"no config.json", "keysieve pull"});
  folder.write("config.json", "{}");
  expect_folder_refused(folder, ErrorKind::file, {"no model.safetensors"});
  folder.write("model.safetensors.index.json", R"({"weight_map": {"a": "model-1.safetensors"}})");
  expect_folder_refused(folder, ErrorKind::file, {"no model-1.safetensors"});
}

TEST(HubFolder, RefusesBadConfigs) {
  const TempFolder folder;
  folder.write("model.safetensors", shard({"a"}));
  for (const char* config : {"", "[]", "{", "7", "{} {}"}) {
    folder.write("config.json", config);
    expect_folder_refused(folder, ErrorKind::format, {"config.json"});
  }
  folder.write("config.json", std::string(100'000, '['));
  expect_folder_refused(folder, ErrorKind::format, {"config.json", "nested"});
}

TEST(HubFolder, RefusesShardsOutsideTheFolder) {
  const TempFolder folder;
  folder.write("config.json", "{}");
  for (const char* name :
       {"../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\\\b", "a\\u0000b"}) {
    folder.write("model.safetensors.index.json", std::string(R"({"weight_map": {"t": ")") + name + "\"}}");
    expect_folder_refused(folder, ErrorKind::format, {"tensor t", "inside the folder"});
  }
}

TEST(HubFolder, RefusesBadIndexes) {
  const TempFolder folder;
  folder.write("config.json", "{}");
  folder.write("m1.safetensors", shard({"a"}));
  folder.write("m2.safetensors", shard({"a", "b"}));
  const auto with_index = [&](const char* index) { folder.write("model.safetensors.index.json", index); };
  with_index("[]");
  expect_folder_refused(folder, ErrorKind::format, {"weight_map"});
  with_index(R"({"weight_map": []})");
  expect_folder_refused(folder, ErrorKind::format, {"weight_map"});
  with_index(R"({"weight_map": {"a": 1}})");
  expect_folder_refused(folder, ErrorKind::format, {"shard of a"});
  with_index(R"({"weight_map": {"b": "m1.safetensors"}})");
  expect_folder_refused(folder, ErrorKind::format, {"m1.safetensors", "no tensor b"});
  with_index(R"({"weight_map": {"a": "m1.safetensors", "b": "m2.safetensors"}})");
  expect_folder_refused(folder, ErrorKind::format, {"tensor a", "another shard"});
}

class Quantized : public ::testing::Test {
 protected:
  std::optional<MlxQuantization> of(std::string_view module, const std::string& config) {
    folder_.write("config.json", config);
    folder_.write("model.safetensors", shard({"m.weight", "m.scales", "m.biases", "plain.weight"}));
    return HubFolder(folder_.path()).quantization(module);
  }

  TempFolder folder_;
};

TEST_F(Quantized, FollowsTheConfig) {
  const std::string four = R"({"quantization": {"group_size": 64, "bits": 4}})";
  EXPECT_EQ(of("m", four), (MlxQuantization{64, 4}));
  EXPECT_EQ(of("plain", four), std::nullopt);
  EXPECT_EQ(of("m", R"({"quantization": {"group_size": 32, "bits": 8, "mode": "affine"}})"),
            (MlxQuantization{32, 8}));
}

TEST_F(Quantized, FollowsTheModulesOwnEntry) {
  const auto with = [](const std::string& own) {
    return R"({"quantization": {"group_size": 64, "bits": 4, "m": )" + own + "}}";
  };
  EXPECT_EQ(of("m", with(R"({"group_size": 128, "bits": 8})")), (MlxQuantization{128, 8}));
  EXPECT_EQ(of("m", with(R"({"bits": 8})")), (MlxQuantization{64, 8}));
  EXPECT_EQ(of("m", with("true")), (MlxQuantization{64, 4}));
  EXPECT_EQ(of("m", with("false")), std::nullopt);
  expect_error(ErrorKind::format, {"m"}, [&] { of("m", with("[1]")); });
  EXPECT_EQ(of("m", with(R"({"bits": 3})")), (MlxQuantization{64, 3}));
  EXPECT_EQ(of("m", with(R"({"bits": 6, "group_size": 32})")), (MlxQuantization{32, 6}));
  expect_error(ErrorKind::unsupported, {"m", "7 bits"}, [&] { of("m", with(R"({"bits": 7})")); });
}

TEST_F(Quantized, RefusesWhatItCannotRun) {
  for (const char* settings :
       {R"({"group_size": 64, "bits": 1})", R"({"group_size": 16, "bits": 4})", R"({"group_size": 64})",
        R"({"bits": 4})", R"({"group_size": 32, "bits": 4, "mode": "mxfp4"})",
        R"({"group_size": 18446744073709551615, "bits": 4})", R"({"group_size": 64, "bits": 4294967300})"}) {
    expect_error(ErrorKind::unsupported, {"config.json", "m is quantised"},
                 [&] { of("m", std::string(R"({"quantization": )") + settings + "}"); });
  }
  expect_error(ErrorKind::format, {"group_size"},
               [&] { of("m", R"({"quantization": {"group_size": -64, "bits": 4}})"); });
  expect_error(ErrorKind::format, {"bits"},
               [&] { of("m", R"({"quantization": {"group_size": 64, "bits": "4"}})"); });
  expect_error(ErrorKind::format, {"no object"}, [&] { of("m", R"({"quantization": 4})"); });
  expect_error(ErrorKind::format, {"m has scales"}, [&] { of("m", "{}"); });
  expect_error(ErrorKind::unsupported, {"awq"},
               [&] { of("plain", R"({"quantization_config": {"quant_method": "awq"}})"); });
}

TEST_F(Quantized, RefusesATripleWithoutAllItsParts) {
  folder_.write("config.json", R"({"quantization": {"group_size": 64, "bits": 4}})");
  folder_.write("model.safetensors", shard({"m.weight", "m.scales"}));
  const HubFolder hub(folder_.path());
  expect_error(ErrorKind::format, {"no tensor m.biases"}, [&] { make_matrix(hub, "m"); });
  expect_error(ErrorKind::format, {"no tensor n.weight"}, [&] { make_matrix(hub, "n"); });
}

}  // namespace
}  // namespace keysieve
