// Real and recorded files: the tiny models of the golden data and the downloaded models, against values that
// another implementation (gguf-py) dequantised. Skipped where those files are not on the machine.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <map>
#include <optional>

#include "core/json.h"
#include "formats/gguf.h"
#include "formats/hub_folder.h"
#include "formats/matrix.h"
#include "formats/npy.h"
#include "support/golden.h"

namespace keysieve {
namespace {

namespace fs = std::filesystem;
using testing::golden_dir;
using testing::models_dir;

// Where this machine keeps the file that the records call `name`.
std::optional<fs::path> real_model(const std::string& name) {
  static const std::map<std::string, std::string> kPlaces = {
      {"SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"},
      {"qwen2.5-coder-0.5b-q4_k_m.gguf", "qwen2.5-coder-0.5b/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"}};
  const auto models = models_dir();
  if (!models || !fs::exists(*models / kPlaces.at(name))) return std::nullopt;
  return *models / kPlaces.at(name);
}

// A tensor of any rank as rows of values.
class Rows {
 public:
  explicit Rows(const TensorInfo& tensor) {
    if (tensor.shape.size() == 2) {
      matrix_ = make_matrix(tensor);
    } else {
      vector_ = read_vector(tensor);
    }
  }
  size_t count() const { return matrix_ ? matrix_->rows() : 1; }
  std::vector<float> row(size_t r) const {
    if (!matrix_) return vector_;
    std::vector<float> values(matrix_->columns());
    matrix_->read_values(r, values);
    return values;
  }

 private:
  std::unique_ptr<MatrixSource> matrix_;
  std::vector<float> vector_;
};

void expect_close(float value, double recorded, const std::string& what) {
  EXPECT_NEAR(value, recorded, 1e-6 * std::abs(recorded) + 1e-12) << what;
}

void check_rows(const Rows& rows, const Json& record, const std::string& name) {
  for (const Json& expected : record.at("rows")) {
    const auto r = expected.at("row").get<size_t>();
    const auto values = rows.row(r);
    const auto& first = expected.at("first64");
    const auto& last = expected.at("last64");
    ASSERT_LE(first.size(), values.size());
    for (size_t i = 0; i < first.size(); ++i) {
      expect_close(values[i], first[i].get<double>(), name + " row " + std::to_string(r));
      expect_close(values[values.size() - last.size() + i], last[i].get<double>(), name + " row end");
    }
  }
}

void check_sums(const Rows& rows, const Json& record, const std::string& name) {
  double sum = 0;
  double abs_sum = 0;
  double sq_sum = 0;
  float least = INFINITY;
  float most = -INFINITY;
  for (size_t r = 0; r < rows.count(); ++r) {
    for (const float value : rows.row(r)) {
      sum += value;
      abs_sum += std::abs(value);
      sq_sum += static_cast<double>(value) * value;
      least = std::min(least, value);
      most = std::max(most, value);
    }
  }
  const double scale = record.at("abs_sum").get<double>();
  EXPECT_NEAR(sum, record.at("sum").get<double>(), 1e-6 * scale) << name;
  EXPECT_NEAR(abs_sum, scale, 1e-6 * scale) << name;
  EXPECT_NEAR(sq_sum, record.at("sq_sum").get<double>(), 1e-6 * record.at("sq_sum").get<double>()) << name;
  expect_close(least, record.at("min").get<double>(), name + " min");
  expect_close(most, record.at("max").get<double>(), name + " max");
}

TEST(Golden, RealTensorsDequantiseAsRecorded) {
  const auto golden = golden_dir();
  if (!golden) GTEST_SKIP() << "no golden data";
  std::ifstream lines(*golden / "gguf_dequant" / "dequant.jsonl");
  ASSERT_TRUE(lines.is_open());
  std::map<std::string, GgufFile> files;
  size_t checked = 0;
  for (std::string line; std::getline(lines, line);) {
    const Json record = parse_json(line, "dequant.jsonl");
    const auto file_name = record.at("file").get<std::string>();
    const auto path = real_model(file_name);
    if (!path) continue;
    const GgufFile& file = files.try_emplace(file_name, *path).first->second;
    const auto name = record.at("tensor").get<std::string>();
    const TensorInfo& tensor = file.require_tensor(name);
    std::string type = record.at("type").get<std::string>();
    std::ranges::transform(type, type.begin(), [](char c) { return static_cast<char>(std::tolower(c)); });
    EXPECT_EQ(tensor.type_name(), type);
    EXPECT_EQ(tensor.shape, record.at("shape").get<std::vector<uint64_t>>());
    const Rows rows(tensor);
    check_rows(rows, record, name);
    check_sums(rows, record, name);
    ++checked;
  }
  if (checked == 0) GTEST_SKIP() << "no real models";
}

TEST(Golden, RealVocabulariesOpenFast) {
  const auto path = real_model("qwen2.5-coder-0.5b-q4_k_m.gguf");
  if (!path) GTEST_SKIP() << "no qwen2.5-coder-0.5b";
  const auto start = std::chrono::steady_clock::now();
  const GgufFile file(*path);
  const auto tokens = file.require<std::vector<std::string_view>>("tokenizer.ggml.tokens");
  const auto merges = file.require<std::vector<std::string_view>>("tokenizer.ggml.merges");
  const std::chrono::duration<double, std::milli> milliseconds = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(tokens.size(), 151'936u);
  EXPECT_GT(merges.size(), 100'000u);
  RecordProperty("milliseconds", std::to_string(milliseconds.count()));
  EXPECT_LT(milliseconds.count(), 1000);  // about 10 ms; the limit leaves room for sanitizers and a cold disk
}

TEST(Golden, TinyGgufModelsOpen) {
  const auto golden = golden_dir();
  if (!golden) GTEST_SKIP() << "no golden data";
  size_t opened = 0;
  for (const auto& entry : fs::recursive_directory_iterator(*golden / "models")) {
    if (entry.path().extension() != ".gguf") continue;
    const GgufFile file(entry.path());
    EXPECT_FALSE(file.require<std::string_view>("general.architecture").empty());
    for (const TensorInfo& tensor : file.tensors()) {
      const Rows rows(tensor);
      for (const float value : rows.row(rows.count() - 1))
        ASSERT_TRUE(std::isfinite(value)) << tensor.subject();
    }
    ++opened;
  }
  EXPECT_EQ(opened, 19u);  // 6 types of 3 architectures, and the K types
}

// Any quantisation of a weight is close to its bf16 source, by relative RMS: a random normal weight loses
// 0.09 to 4 bits and about half with each further bit. Catches codes that are permuted or scales of the wrong
// group.
TEST(Golden, QuantisedTwinsStayNearTheirSource) {
  const auto golden = golden_dir();
  if (!golden) GTEST_SKIP() << "no golden data";
  const HubFolder source(*golden / "models" / "qwen3-bf16");
  const auto reference = make_matrix(source, "model.layers.0.mlp.up_proj");
  const auto compare = [&](const MatrixSource& twin, double most, const std::string& name) {
    ASSERT_EQ(twin.rows(), reference->rows()) << name;
    ASSERT_EQ(twin.columns(), reference->columns()) << name;
    std::vector<float> a(twin.columns());
    std::vector<float> b(twin.columns());
    double difference = 0;
    double energy = 0;
    for (size_t r = 0; r < twin.rows(); ++r) {
      reference->read_values(r, a);
      twin.read_values(r, b);
      for (size_t i = 0; i < a.size(); ++i) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        energy += a[i] * a[i];
      }
    }
    EXPECT_LT(std::sqrt(difference / energy), most) << name;
  };
  for (const auto& [name, most] : std::map<std::string, double>{
           {"F16", 0.001}, {"Q8_0", 0.01}, {"Q5_0", 0.06}, {"Q5_1", 0.06}, {"Q4_0", 0.12}, {"Q4_1", 0.12}}) {
    const GgufFile file(*golden / "models" / "qwen3-gguf" / ("qwen3-" + name + ".gguf"));
    compare(*make_matrix(file.require_tensor("blk.0.ffn_up.weight")), most, name);
  }
  const HubFolder mlx4(*golden / "models" / "qwen3-mlx-4bit-g64");
  compare(*make_matrix(mlx4, "model.layers.0.mlp.up_proj"), 0.15, "MLX 4 bits");
  const HubFolder mlx8(*golden / "models" / "qwen3-mlx-8bit-g32");
  compare(*make_matrix(mlx8, "model.layers.0.mlp.up_proj"), 0.01, "MLX 8 bits");
}

TEST(Golden, HubFoldersOpen) {
  const auto golden = golden_dir();
  if (!golden) GTEST_SKIP() << "no golden data";
  size_t opened = 0;
  for (const auto& entry : fs::directory_iterator(*golden / "models")) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    const HubFolder folder(entry.path());
    EXPECT_TRUE(folder.file("tokenizer.json"));
    EXPECT_GT(folder.tensors().size(), 10u);
    EXPECT_EQ(make_matrix(folder, "model.embed_tokens")->rows(), 288u);
    const NpyFile ids(entry.path() / "input_ids.npy");
    EXPECT_EQ(ids.integers().size(), 48u);
    const NpyFile logits(entry.path() / "logits.npy");
    EXPECT_EQ(logits.shape(), (std::vector<uint64_t>{48, 288}));
    ++opened;
  }
  EXPECT_EQ(opened, 5u);
}

}  // namespace
}  // namespace keysieve
