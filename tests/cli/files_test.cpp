#include <cmath>

#include "fixture.h"
#include "formats/npy.h"
#include "formats/safetensors.h"

// tokenize, logits and inspect: the verbs that scripts use.

namespace keysieve {
namespace {

using testing::golden_dir;
using ::testing::HasSubstr;
using testing::Outcome;
using testing::Program;
using testing::run;
using testing::TinyModel;

class Tokenize : public testing::CliTest {};
class LogitsVerb : public testing::CliTest {
 protected:
  static Json numbers(size_t count) {
    Json list = Json::array();
    for (size_t i = 0; i < count; ++i) list.push_back((i * 37 + 11) % 256);
    return list;
  }
};
class InspectVerb : public testing::CliTest {};

TEST_F(Tokenize, TextGoesThereAndBackByteForByte) {
  const std::string text = "H\xc3\xa9llo \xe4\xbd\xa0\xe5\xa5\xbd\r\n\t\xf0\x9f\x8e\x89 <|im_end|>";
  const Json ids = json_of(run(on_tiny("tokenize", {"--json"}), text));
  ASSERT_TRUE(ids.is_array());
  EXPECT_EQ(ids.size(), text.size());
  const Outcome back = run(on_tiny("tokenize", {"--decode"}), ids.dump());
  EXPECT_EQ(back.status, 0);
  EXPECT_EQ(back.out, text);
  EXPECT_EQ(json_of(run(on_tiny("tokenize", {"--decode", "--json"}), ids.dump())), text);
  // Without --json the ids are words; those can be decoded too.
  const Outcome plain = run(on_tiny("tokenize", {}), text);
  EXPECT_EQ(run(on_tiny("tokenize", {"--decode"}), plain.out).out, text);
}

TEST_F(Tokenize, ControlTokensAreParsedOnRequest) {
  EXPECT_EQ(json_of(run(on_tiny("tokenize", {"--json", "--parse-special"}), "a<|im_end|>")),
            Json({'a', TinyModel::kEnd}));
  EXPECT_EQ(json_of(run(on_tiny("tokenize", {"--json"}), "")), Json::array());
}

TEST_F(Tokenize, BadIdsAreNamed) {
  for (const char* bad : {"[1, -2]", "[1, \"x\"]", "[1.5]", "1 two 3", "[1", "{}", "99999999999"}) {
    expect_failure(run(on_tiny("tokenize", {"--decode"}), bad), 1, "standard input");
  }
  expect_failure(run(on_tiny("tokenize", {"--decode"}), "999"), 2, "999");
}

TEST_F(Tokenize, GoldenTokenizer) {
  if (!golden_dir()) GTEST_SKIP() << "no golden data";
  const auto tokenizer = *golden_dir() / "../tokenizer/qwen3";
  if (!std::filesystem::exists(tokenizer)) GTEST_SKIP() << "no tokenizer files";
  const std::string rows = read_text_file(*golden_dir() / "tokenizer/qwen3.jsonl");
  size_t checked = 0;
  // Every tenth row: each run loads the whole vocabulary.
  for (size_t at = 0, row = 0; at < rows.size(); ++row) {
    const size_t end = rows.find('\n', at);
    if (row % 10 == 0) {
      const Json expected = parse_json(rows.substr(at, end - at), "golden row");
      std::vector<std::string> command = {"tokenize", "--model", tokenizer.string(), "--json"};
      if (expected["parse_special"]) command.push_back("--parse-special");
      EXPECT_EQ(json_of(run(command, expected["text"])), expected["ids"]) << expected["text"];
      ++checked;
    }
    at = end == std::string::npos ? rows.size() : end + 1;
  }
  EXPECT_GT(checked, 5u);
}

TEST_F(LogitsVerb, WritesOneRowPerToken) {
  testing::detail::write_file(folder_ / "ids.json", numbers(40).dump());
  const Json json =
      json_of(run(on_tiny("logits", {"--tokens", path("ids.json"), "--out", path("o.npy"), "--json"})));
  EXPECT_EQ(json["tokens"], 40);
  EXPECT_EQ(json["vocabulary"], TinyModel::kVocabulary);
  const NpyFile written(path("o.npy"));
  EXPECT_EQ(written.dtype(), DType::f32);
  EXPECT_EQ(written.shape(), (std::vector<uint64_t>{40, TinyModel::kVocabulary}));
  // The same ids as words, by standard input.
  EXPECT_EQ(run(on_tiny("logits", {"--tokens", "-", "--out", path("p.npy")}), "11 48\n85").status, 0);
  EXPECT_EQ(NpyFile(path("p.npy")).shape()[0], 3u);
}

TEST_F(LogitsVerb, SelectionsAreWritten) {
  testing::detail::write_file(folder_ / "ids.json", numbers(40).dump());
  const auto selection = [&](std::vector<std::string> more) {
    std::vector<std::string> options = {"--tokens",    path("ids.json"), "--out",
                                        path("o.npy"), "--selection",    path("s.json")};
    options.insert(options.end(), more.begin(), more.end());
    const Outcome outcome = run(on_tiny("logits", options));
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return read_json_file(path("s.json"));
  };
  const Json dense = selection({});
  ASSERT_EQ(dense.size(), TinyModel::kLayers);
  EXPECT_EQ(dense[0].size(), 40u);
  EXPECT_EQ(dense[0][3], Json({0, 1, 2, 3}));
  const Json shared = selection({"--indexer", indexer_, "--budget", "16", "--selection", "shared"});
  EXPECT_EQ(shared[1][39].size(), 16u);
  EXPECT_EQ(shared[1][39][0], 0);  // a sink
  EXPECT_EQ(shared[1][39][15], 39);
  const Json grouped = selection({"--indexer", indexer_, "--budget", "16", "--selection", "per-group"});
  EXPECT_EQ(grouped[1][39].size(), TinyModel::kKvHeads);
  EXPECT_EQ(grouped[1][39][1].size(), 16u);
  EXPECT_EQ(grouped[0][0], Json({{0}, {0}}));
}

// Layers an indexer's files have nothing of read everything, and standard error says so.
TEST_F(LogitsVerb, MissingLayersAreDense) {
  const std::filesystem::path whole = indexer_;
  const std::filesystem::path part = folder_ / "indexers" / "part";
  std::filesystem::create_directories(part);
  Json config = read_json_file(whole / "run_config.json");
  testing::detail::write_file(part / "run_config.json", config.dump());
  const SafetensorsFile file(whole / "indexer.safetensors");
  std::vector<TensorToWrite> kept;
  for (const TensorInfo& tensor : file.tensors()) {
    if (tensor.name.starts_with("layers.0."))
      kept.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.data});
  }
  write_safetensors(part / "indexer.safetensors", kept);
  config["budgets"] = {24, 0};
  testing::detail::write_file(whole / "run_config.json", config.dump());
  testing::detail::write_file(path("long_ids.json"), numbers(100).dump());
  const auto logits = [&](const std::filesystem::path& indexer, const std::string& out) {
    const Outcome outcome = run(on_tiny("logits", {"--tokens", path("long_ids.json"), "--out", path(out),
                                                   "--indexer", indexer.string(), "--budget", "16"}));
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return outcome.err;
  };
  EXPECT_THAT(logits(part, "part.npy"), HasSubstr("has nothing for layers 1: they read everything"));
  logits(whole, "dense.npy");
  EXPECT_EQ(read_text_file(path("part.npy")), read_text_file(path("dense.npy")));
  // The layer that is there is sparse.
  EXPECT_EQ(run(on_tiny("logits", {"--tokens", path("long_ids.json"), "--out", path("all.npy")})).status, 0);
  EXPECT_NE(read_text_file(path("part.npy")), read_text_file(path("all.npy")));
  const Json read = json_of(run({"inspect", part.string(), "--json"}))["understanding"];
  EXPECT_THAT(read["found"].dump(), HasSubstr("nothing of layers 1"));
  EXPECT_TRUE(read["not_understood"].empty());
}

TEST_F(LogitsVerb, NothingIsWrittenWhereTheWorkFails) {
  testing::detail::write_file(folder_ / "long.json", numbers(600).dump());
  testing::detail::write_file(folder_ / "bad.json", "[1, 5000]");
  testing::detail::write_file(folder_ / "empty.json", "[]");
  expect_failure(run(on_tiny("logits", {"--tokens", path("long.json"), "--out", path("o.npy")})), 1, "600");
  expect_failure(run(on_tiny("logits", {"--tokens", path("bad.json"), "--out", path("o.npy")})), 2, "5000");
  expect_failure(run(on_tiny("logits", {"--tokens", path("empty.json"), "--out", path("o.npy")})), 2,
                 "no tokens");
  expect_failure(run(on_tiny("logits", {"--tokens", path("absent"), "--out", path("o.npy")})), 1, "absent");
  expect_failure(run(on_tiny("logits", {"--tokens", path("bad.json"), "--out", path("no/such/o.npy")})), 1,
                 "no/such");
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    files += entry.is_regular_file() ? 1 : 0;
  EXPECT_EQ(files, 3u) << "only the inputs";
}

TEST_F(LogitsVerb, InterruptedItLeavesNoFile) {
  testing::detail::write_file(folder_ / "ids.json", numbers(60000).dump());
  Program program(
      on_tiny("logits", {"--tokens", path("ids.json"), "--out", path("o.npy"), "--context", "60000"}));
  program.wait(std::chrono::milliseconds(1500));
  program.signal(SIGINT);
  const Outcome outcome = program.finish(std::chrono::seconds(30));
  if (outcome.status == 0) GTEST_SKIP() << "this machine was done before the signal";
  EXPECT_EQ(outcome.status, 130) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("no file was written"));
  EXPECT_FALSE(std::filesystem::exists(path("o.npy")));
}

// [rows of found] against recorded logits, as KL(softmax(recorded) || softmax(found)) in nats.
double mean_divergence(const std::vector<float>& recorded, const std::vector<float>& found,
                       size_t vocabulary) {
  double sum = 0;
  const auto log_sum = [&](const float* row) {
    double total = 0;
    for (size_t i = 0; i < vocabulary; ++i) total += std::exp(static_cast<double>(row[i]));
    return std::log(total);
  };
  for (size_t at = 0; at < recorded.size(); at += vocabulary) {
    const double p = log_sum(&recorded[at]);
    const double q = log_sum(&found[at]);
    for (size_t i = at; i < at + vocabulary; ++i)
      sum += std::exp(recorded[i] - p) * ((recorded[i] - p) - (found[i] - q));
  }
  return sum / static_cast<double>(recorded.size() / vocabulary);
}

TEST_F(LogitsVerb, GoldenModels) {
  if (!golden_dir()) GTEST_SKIP() << "no golden data";
  struct Case {
    const char* model;
    const char* logits;
    double exact;  // bound on the reference kernels' largest difference, with KV in f32
  };
  // Quantised weights become f32 exactly on the reference kernels; the other kernels round activations to 8
  // bits.
  const std::vector<Case> cases = {
      {"llama-gguf/llama-F32.gguf", "llama-gguf/llama-F32.logits.npy", 2e-4},
      {"llama-gguf/llama-Q4_1.gguf", "llama-gguf/llama-Q4_1.logits.npy", 2e-4},
      {"qwen2-gguf/qwen2-Q5_0.gguf", "qwen2-gguf/qwen2-Q5_0.logits.npy", 2e-4},
      {"kquant-gguf/qwen3-K-mix.gguf", "kquant-gguf/qwen3-K-mix.logits.npy", 2e-4},
      {"qwen3-bf16", "qwen3-bf16/logits.npy", 2e-4},
      {"qwen3-mlx-4bit-g64", "qwen3-mlx-4bit-g64/logits.npy", 2e-4}};
  const auto models = *golden_dir() / "models";
  for (const Case& one : cases) {
    SCOPED_TRACE(one.model);
    const auto folder = (models / one.logits).parent_path();
    std::string ids;
    for (const int64_t id : NpyFile(folder / "input_ids.npy").integers()) ids += std::to_string(id) + " ";
    const std::vector<float> recorded = NpyFile(models / one.logits).floats();
    const auto logits = [&](const char* kernels, const char* kv) {
      const Outcome outcome = run({"logits", "--model", (models / one.model).string(), "--tokens", "-",
                                   "--out", path("o.npy"), "--kernels", kernels, "--kv", kv},
                                  ids);
      EXPECT_EQ(outcome.status, 0) << outcome.err;
      return NpyFile(path("o.npy")).floats();
    };
    const std::vector<float> exact = logits("reference", "f32");
    ASSERT_EQ(exact.size(), recorded.size());
    double largest = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(exact[i]) - recorded[i]));
    }
    EXPECT_LT(largest, one.exact);
    EXPECT_LT(mean_divergence(recorded, logits("auto", "auto"), 288), 0.01);
  }
}

TEST_F(LogitsVerb, GoldenSelections) {
  if (!golden_dir()) GTEST_SKIP() << "no golden data";
  const auto model = *golden_dir() / "models/qwen3-bf16";
  std::string ids;
  for (const int64_t id : NpyFile(model / "input_ids.npy").integers()) ids += std::to_string(id) + " ";
  for (const char* variant : {"bias", "norm"}) {
    for (const bool kept : {false, true}) {
      SCOPED_TRACE(std::string(variant) + (kept ? ", sinks and recent" : ""));
      const auto indexer = *golden_dir() / "indexer" / variant;
      const auto recorded = indexer / (kept ? "k16_sinks4_recent8" : "k16");
      const Outcome outcome =
          run({"logits", "--model", model.string(), "--tokens", "-", "--out", path("o.npy"), "--indexer",
               indexer.string(), "--budget", "16", "--sinks", kept ? "4" : "0", "--recent", kept ? "8" : "0",
               "--selection", path("s.json")},
              ids);
      ASSERT_EQ(outcome.status, 0) << outcome.err;
      const NpyFile selected(recorded / "selected.npy");
      const std::vector<int64_t> expected = selected.integers();
      const Json found = read_json_file(path("s.json"));
      for (size_t row = 0; row < expected.size() / 16; ++row) {
        Json positions = Json::array();
        for (size_t i = 0; i < 16 && expected[row * 16 + i] >= 0; ++i)
          positions.push_back(expected[row * 16 + i]);
        EXPECT_EQ(found[row / selected.shape()[1]][row % selected.shape()[1]], positions) << "row " << row;
      }
      const std::vector<float> logits = NpyFile(path("o.npy")).floats();
      const std::vector<float> exact = NpyFile(recorded / "logits.npy").floats();
      ASSERT_EQ(logits.size(), exact.size());
      for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], exact[i], 5e-4);
    }
  }
}

TEST_F(InspectVerb, JsonHasTheContractsKeys) {
  const Json json = json_of(run({"inspect", "tiny", "--json"}));
  EXPECT_EQ(json["kind"], "hub folder");
  EXPECT_EQ(json["architecture"], "llama");
  ASSERT_EQ(json["tensors"].size(), 2 + 9 * TinyModel::kLayers);
  for (const Json& tensor : json["tensors"]) {
    uint64_t elements = 1;
    for (const Json& size : tensor["shape"]) elements *= size.get<uint64_t>();
    EXPECT_EQ(tensor["bytes"], elements * 4);
    EXPECT_EQ(tensor["dtype"], "f32");
    EXPECT_TRUE(tensor["name"].is_string());
  }
  EXPECT_EQ(json_of(run({"inspect", indexer_, "--json"}))["kind"], "indexer folder");
}

TEST_F(InspectVerb, TextSumsUp) {
  const Outcome outcome = run({"inspect", model_, "--tensors"});
  EXPECT_EQ(outcome.status, 0);
  for (const char* part :
       {"hub folder", "llama", "f32", "20 tensors", "hidden_size = 32", "model.norm.weight", "[32]"}) {
    EXPECT_THAT(outcome.out, HasSubstr(part));
  }
}

}  // namespace
}  // namespace keysieve
