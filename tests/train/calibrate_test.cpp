#include "train/calibrate.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>

#include "core/file_io.h"
#include "core/json.h"
#include "indexer/indexer.h"
#include "indexer/selectors.h"
#include "model/forward.h"
#include "prose.h"
#include "support/files.h"
#include "support/golden.h"
#include "support/tiny_model.h"
#include "text/model_text.h"

namespace keysieve {
namespace {

using testing::expect_error;
using testing::TempFolder;
using testing::TinyModel;

std::vector<int32_t> random_tokens(size_t count, size_t vocabulary, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocabulary);
  return tokens;
}

// A context long enough for all windows of these tests.
std::shared_ptr<const Model> load(const std::filesystem::path& path) {
  return Model::load(path, {.kernels = "reference", .threads = 1, .context = 512});
}

// What the first query of each head and the keys of each group are after RoPE, on tokens not calibrated on.
struct Projections {
  std::vector<std::vector<float>> q;  // [layers][tokens, heads, head_dim]
  std::vector<std::vector<float>> k;  // [layers][tokens, kv_heads, head_dim]
};
Projections projections(const std::shared_ptr<const Model>& model, std::span<const int32_t> tokens) {
  const ModelConfig& config = model->config();
  Projections seen{std::vector<std::vector<float>>(config.layers),
                   std::vector<std::vector<float>>(config.layers)};
  ForwardTaps taps;
  taps.projections = [&](const TapPlace& place, const float* q, const float* k, const float*) {
    seen.q[place.layer].insert(seen.q[place.layer].end(), q, q + place.tokens * config.q_width());
    seen.k[place.layer].insert(seen.k[place.layer].end(), k, k + place.tokens * config.kv_width());
  };
  SequenceState state(model);
  prefill(state, tokens, {.logits = Logits::none, .taps = &taps});
  return seen;
}

double dot(const float* a, const float* b, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

// The largest difference between (Q q) . (K k) and sharpness * q . k / sqrt(head_dim) over all pairs,
// relative to the largest of the latter.
double worst_score(const Model& model, const Calibration& calibration, const Projections& seen,
                   double sharpness = 1) {
  const ModelConfig& c = model.config();
  const size_t rank = calibration.config.dim;
  const size_t tokens = seen.q[0].size() / c.q_width();
  double worst = 0;
  double largest = 0;
  for (size_t layer = 0; layer < c.layers; ++layer) {
    for (size_t h = 0; h < c.heads; ++h) {
      const size_t g = h / (c.heads / c.kv_heads);
      const float* q_map = calibration.layers[layer].q.data() + g * rank * c.head_dim;
      const float* k_map = calibration.layers[layer].k.data() + g * rank * c.head_dim;
      for (size_t t = 0; t < tokens; ++t) {
        const float* q = seen.q[layer].data() + (t * c.heads + h) * c.head_dim;
        for (size_t s = 0; s < tokens; s += 7) {
          const float* k = seen.k[layer].data() + (s * c.kv_heads + g) * c.head_dim;
          double score = 0;
          for (size_t r = 0; r < rank; ++r)
            score += dot(q_map + r * c.head_dim, q, c.head_dim) * dot(k_map + r * c.head_dim, k, c.head_dim);
          const double logit = sharpness * dot(q, k, c.head_dim) / std::sqrt(static_cast<double>(c.head_dim));
          worst = std::max(worst, std::abs(score - logit));
          largest = std::max(largest, std::abs(logit));
        }
      }
    }
  }
  return worst / largest;
}

void expect_full_rank_is_attention(const std::shared_ptr<const Model>& model) {
  const size_t vocabulary = model->config().vocabulary;
  std::vector<std::vector<int32_t>> windows;
  for (uint64_t seed = 0; seed < 4; ++seed) windows.push_back(random_tokens(300, vocabulary, seed));
  const Projections seen = projections(model, random_tokens(64, vocabulary, 99));
  const auto full = calibrate(model, windows, {.rank = model->config().head_dim});
  ASSERT_TRUE(full);
  EXPECT_EQ(full->tokens, 1200u);
  EXPECT_LT(worst_score(*model, *full, seen), 1e-4);
  const auto sharp = calibrate(model, windows, {.rank = model->config().head_dim, .sharpness = 1.5f});
  ASSERT_TRUE(sharp);
  EXPECT_LT(worst_score(*model, *sharp, seen, 1.5), 1e-4);
  const auto reduced = calibrate(model, windows, {.rank = model->config().head_dim / 2});
  ASSERT_TRUE(reduced);
  EXPECT_GT(worst_score(*model, *reduced, seen), 1e-3);
  for (size_t i = 0; i < full->kept_energy.size(); ++i) {
    EXPECT_DOUBLE_EQ(full->kept_energy[i], 1.0);
    EXPECT_LT(reduced->kept_energy[i], 1.0);
    EXPECT_GT(reduced->kept_energy[i], 0.4);
  }
}

TEST(Calibrate, FullRankScoresAreAttentionLogits) {
  const TempFolder folder;
  expect_full_rank_is_attention(load(testing::write_tiny_model(folder.path() / "tiny")));
}

TEST(Calibrate, FullRankScoresAreAttentionLogitsOnGoldenModels) {
  const auto golden = testing::golden_dir();
  if (!golden) GTEST_SKIP() << "no golden data";
  for (const char* name : {"llama-bf16", "qwen2-bf16", "qwen3-bf16"}) {
    SCOPED_TRACE(name);
    expect_full_rank_is_attention(load(*golden / "models" / name));
  }
}

class CalibrateFiles : public ::testing::Test {
 protected:
  CalibrateFiles() {
    job_.model = testing::write_tiny_model(folder_.path() / "tiny").string();
    job_.model_options = {.kernels = "reference", .threads = 1, .context = 0};
    job_.texts = {folder_.write("a.txt", prose(4000)),
                  folder_.write("b.jsonl", R"({"text": ")" + std::string(500, 'x') + "\"}\n\n{\"text\": \"" +
                                               std::string(900, 'y') + "\", \"source\": \"web\"}\n")};
    job_.windows = 3;
    job_.window = 200;
    job_.options.rank = 4;
    job_.options.budget = 100;
    job_.out = folder_.path() / "out";
    job_.command = "keysieve calibrate";
  }
  std::string out(const std::string& name) const { return read_text_file(job_.out / name); }

  TempFolder folder_;
  CalibrationJob job_;
};

TEST_F(CalibrateFiles, WritesAnIndexerThatLoadsAndSaysWhatItIs) {
  const auto report = calibrate_files(job_);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->tokens, 600u);
  EXPECT_EQ(report->parameters, TinyModel::kLayers * TinyModel::kKvHeads * 2 * 4 * TinyModel::kHeadDim);
  const auto model = Model::load(job_.model, job_.model_options);
  const Indexer indexer = Indexer::load(job_.out, model->shape(), model->shared_kernels(), model->threads());
  EXPECT_EQ(indexer.config().shape, IndexerShape::native);
  EXPECT_EQ(indexer.config().combine, IndexCombine::softmax_sum);
  EXPECT_EQ(indexer.config().key_type(), IndexKeyType::i4);
  EXPECT_EQ(indexer.config().scope, SelectionScope::per_group);
  EXPECT_EQ(indexer.config().model, model->fingerprint_text());
  EXPECT_EQ(indexer.config().sinks, 4u);
  EXPECT_EQ(indexer.config().recent, 16u);
  EXPECT_EQ(indexer.config().budget, 100u);
  EXPECT_FALSE(indexer.config().map_per_head);
  const Json calibration = parse_json(out("run_config.json"), "run_config.json").at("calibration");
  EXPECT_EQ(calibration.at("command"), "keysieve calibrate");
  EXPECT_EQ(calibration.at("tokens"), 600);
  ASSERT_EQ(calibration.at("texts").size(), 2u);
  EXPECT_EQ(calibration.at("texts")[0].at("name"), "a.txt");
  EXPECT_EQ(calibration.at("texts")[0].at("bytes"), 4000);
  EXPECT_EQ(calibration.at("texts")[0].at("windows"), 1);
  EXPECT_EQ(calibration.at("texts")[1].at("windows"), 2);
}

TEST_F(CalibrateFiles, TheSameInputsGiveTheSameFiles) {
  ASSERT_TRUE(calibrate_files(job_));
  const std::string weights = out("indexer.safetensors");
  const std::string config = out("run_config.json");
  job_.model_options.threads = 2;
  ASSERT_TRUE(calibrate_files(job_));
  EXPECT_EQ(out("indexer.safetensors"), weights);
  EXPECT_EQ(out("run_config.json"), config);
}

// The published indexer's shape, of which nothing but the sizes is the model's.
TEST_F(CalibrateFiles, MakesAnIndexerOfThePublishedShape) {
  job_.options.shape = IndexerShape::seed;
  job_.options.lightning = {.heads = 3, .dim = 11, .rope = 8};
  size_t last = 0, of = 0;
  job_.options.on_progress = [&](size_t done, size_t total) {
    EXPECT_GT(done, last);
    last = done;
    of = total;
  };
  const auto report = calibrate_files(job_);
  ASSERT_TRUE(report);
  EXPECT_EQ(last, of);
  EXPECT_EQ(report->parameters, TinyModel::kLayers * (3 * 11 + 11 + 3) * TinyModel::kHidden);
  EXPECT_GT(report->kept_energy_least, 0.5);
  EXPECT_LE(report->kept_energy_mean, 1.0);
  const auto model = Model::load(job_.model, job_.model_options);
  const Indexer indexer = Indexer::load(job_.out, model->shape(), model->shared_kernels(), model->threads());
  EXPECT_EQ(indexer.config().shape, IndexerShape::seed);
  EXPECT_EQ(indexer.config().key_type(), IndexKeyType::f32);
  EXPECT_EQ(indexer.config().scope, SelectionScope::shared);
  EXPECT_EQ(indexer.config().heads, 3u);
  EXPECT_EQ(indexer.config().dim, 11u);
  EXPECT_EQ(indexer.config().rope_dim, 8u);
  EXPECT_EQ(indexer.config().query_block, 4u);
  EXPECT_EQ(indexer.config().sinks, 4u);
  EXPECT_EQ(indexer.config().budget, 100u);
  EXPECT_EQ(indexer.config().model, model->fingerprint_text());

  const std::string weights = out("indexer.safetensors");
  job_.options.on_progress = {};
  job_.model_options.threads = 2;
  ASSERT_TRUE(calibrate_files(job_));
  EXPECT_EQ(out("indexer.safetensors"), weights);
}

TEST_F(CalibrateFiles, RefusesSizesThePublishedShapeCannotHave) {
  job_.options.shape = IndexerShape::seed;
  job_.options.rank = 99;  // the native shape's, not looked at
  for (const LightningSizes& sizes :
       {LightningSizes{0, 11, 8}, {3, 0, 0}, {3, 11, 12}, {3, 11, 7}, {3, 100000, 8}}) {
    job_.options.lightning = sizes;
    expect_error(ErrorKind::usage, {"lightning indexer", "rotated"}, [&] { calibrate_files(job_); });
    EXPECT_FALSE(std::filesystem::exists(job_.out));
  }
}

TEST_F(CalibrateFiles, CancelledAtAnyWindowThePublishedShapeLeavesNothing) {
  job_.options.shape = IndexerShape::seed;
  for (const size_t at : {200, 600, 800, 1400}) {  // of 600 tokens to learn from and twice 400 to aim at
    std::atomic<bool> cancel = false;
    job_.options.cancel = &cancel;
    job_.options.on_progress = [&](size_t done, size_t) { cancel = done >= at; };
    EXPECT_FALSE(calibrate_files(job_)) << at;
    EXPECT_FALSE(std::filesystem::exists(job_.out));
  }
}

TEST_F(CalibrateFiles, ReachIsWhatTheMapsAreMadeFor) {
  const auto keys_of = [this](size_t reach) {
    CalibrationJob job = job_;
    job.options.reach = reach;
    job.out = folder_.path() / ("reach-" + std::to_string(reach));
    const std::optional<CalibrationReport> report = calibrate_files(job);
    EXPECT_EQ(report->reach, reach == 0 ? 512 : reach);
    return read_text_file(job.out / "indexer.safetensors");
  };
  // Less than two windows leave one start, and the context holds two.
  EXPECT_EQ(keys_of(job_.window), keys_of(2 * job_.window - 1));
  EXPECT_NE(keys_of(job_.window), keys_of(2 * job_.window));
  EXPECT_EQ(keys_of(0), keys_of(512));
}

TEST_F(CalibrateFiles, CancelledLeavesNothing) {
  std::atomic<bool> cancel = false;
  job_.options.cancel = &cancel;
  job_.options.on_progress = [&](size_t, size_t) { cancel = true; };
  EXPECT_FALSE(calibrate_files(job_));
  EXPECT_FALSE(std::filesystem::exists(job_.out));
}

TEST_F(CalibrateFiles, RefusesWhatCannotWork) {
  const auto refuse = [&](ErrorKind kind, const std::vector<std::string>& parts, auto change) {
    CalibrationJob job = job_;
    change(job);
    expect_error(kind, parts, [&] { calibrate_files(job); });
    EXPECT_FALSE(std::filesystem::exists(job.out));
  };
  refuse(ErrorKind::mismatch, {"a.txt", "200 tokens", "20 windows of 400 tokens", "8000 in all", "--windows"},
         [](CalibrationJob& job) {
           job.texts.resize(1);
           job.windows = 20;
           job.window = 400;
         });
  refuse(ErrorKind::usage, {"rank", "9", "1 to 8"}, [](CalibrationJob& job) { job.options.rank = 9; });
  refuse(ErrorKind::usage, {"sharpness", "11"}, [](CalibrationJob& job) { job.options.sharpness = 11; });
  refuse(ErrorKind::usage, {"sharpness", "nan"}, [](CalibrationJob& job) { job.options.sharpness = NAN; });
  refuse(ErrorKind::usage, {"reach", "513 positions", "at most 512", "--reach"},
         [](CalibrationJob& job) { job.options.reach = 513; });
  refuse(ErrorKind::usage, {"rank", "0"}, [](CalibrationJob& job) { job.options.rank = 0; });
  refuse(ErrorKind::usage, {"budget", "19", "sinks 4 + recent 16"},
         [](CalibrationJob& job) { job.options.budget = 19; });
  refuse(ErrorKind::mismatch, {"64 tokens at most", "--window"},
         [](CalibrationJob& job) { job.window = 64; });
  refuse(ErrorKind::mismatch, {"513 tokens", "at most 512"}, [](CalibrationJob& job) {
    job.texts.resize(1);
    job.window = 513;
  });
  refuse(ErrorKind::usage, {"0 files"}, [](CalibrationJob& job) { job.texts.clear(); });
  refuse(ErrorKind::usage, {"0 windows"}, [](CalibrationJob& job) { job.windows = 0; });
  refuse(ErrorKind::format, {"bad.jsonl, line 2", "text"}, [this](CalibrationJob& job) {
    job.texts = {folder_.write("bad.jsonl", "{\"text\": \"fine\"}\n{\"body\": \"none\"}\n")};
  });
  refuse(ErrorKind::file, {"missing.txt"},
         [this](CalibrationJob& job) { job.texts = {folder_.path() / "missing.txt"}; });
}

TEST(TextWindows, AreSpreadWithoutOverlapAndNeverCutACharacter) {
  const TempFolder folder;
  const auto model = testing::write_tiny_model(folder.path() / "tiny");
  const Tokenizer tokenizer = load_tokenizer(model);
  std::string text;
  for (size_t line = 0; line < 200; ++line) text += "line " + std::to_string(line) + " \xc3\xa9\xc3\xa9\n";
  const std::vector<std::filesystem::path> files{folder.write("lines.txt", text)};
  const TextWindows found = read_text_windows(files, tokenizer, 4, 300);
  ASSERT_EQ(found.windows.size(), 4u);
  size_t end = 0;
  for (const std::vector<int32_t>& window : found.windows) {
    ASSERT_EQ(window.size(), 300u);
    std::string bytes;
    for (const int32_t id : window) bytes += static_cast<char>(id);  // the tiny model's tokens are bytes
    const size_t at = text.find(bytes);
    ASSERT_NE(at, std::string::npos);
    EXPECT_GE(at, end);
    EXPECT_TRUE(bytes.starts_with("line "));
    end = at + bytes.size();
  }
  EXPECT_GT(end, text.size() / 2);
}

}  // namespace
}  // namespace keysieve
