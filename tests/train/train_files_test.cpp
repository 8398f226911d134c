#include "train/train_files.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <random>

#include "core/file_io.h"
#include "core/json.h"
#include "indexer/indexer.h"
#include "prose.h"
#include "support/files.h"
#include "support/golden.h"
#include "support/tiny_model.h"

namespace keysieve {
namespace {

using testing::expect_error;
using testing::TempFolder;
using testing::TinyModel;

class TrainFiles : public ::testing::Test {
 protected:
  TrainFiles() {
    job_.model = testing::write_tiny_model(folder_.path() / "tiny").string();
    job_.model_options = {.kernels = "auto", .threads = 1, .context = 0};
    job_.texts = {folder_.write("a.txt", prose(6000, 1)), folder_.write("b.txt", prose(3000, 2))};
    job_.start = "random";
    job_.rank = 4;
    job_.budget = 40;
    TrainingOptions& o = job_.options;
    o.steps = 12;
    o.packing = {.window = 300, .shortest = 100, .retrieval = 0, .seed = 1};
    o.queries = 24;
    o.loss.budget = 30;
    o.loss.recent = 6;
    o.loss.head_divergence = 0.5f;
    o.loss.cut = 0.2f;
    o.checkpoint_every = 3;
    o.evaluate_every = 4;
    job_.out = folder_.path() / "out";
    job_.command = "keysieve train";
  }
  std::string out(const std::string& name) const { return read_text_file(job_.out / name); }
  std::vector<Json> metrics() const {
    std::vector<Json> lines;
    const std::string text = out("metrics.jsonl");
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find('\n', at);
      lines.push_back(parse_json(text.substr(at, end - at), "metrics"));
      at = end + 1;
    }
    return lines;
  }

  TempFolder folder_;
  TrainingJob job_;
};

TEST_F(TrainFiles, WritesAnIndexerThatLoadsAndSaysHowItWasMade) {
  job_.development = {folder_.write("dev.txt", prose(3000, 3))};
  job_.development_windows = 2;
  uint64_t memory = 0;
  job_.on_start = [&](uint64_t bytes, uint64_t, size_t) { memory = bytes; };
  const TrainingReport report = train_files(job_);
  EXPECT_EQ(report.end, TrainingEnd::finished);
  EXPECT_EQ(report.steps, 12u);
  EXPECT_GT(report.tokens, 12u * 200);
  EXPECT_GT(memory, 100'000u);
  EXPECT_LT(memory, 20'000'000u);
  const auto model = Model::load(job_.model, job_.model_options);
  const Indexer indexer = Indexer::load(job_.out, model->shape(), model->shared_kernels(), model->threads());
  EXPECT_EQ(indexer.config().model, model->fingerprint_text());
  EXPECT_EQ(indexer.config().budget, 40u);
  EXPECT_EQ(indexer.config().recent, 6u);
  const Json training = parse_json(out("run_config.json"), "run_config.json").at("training");
  EXPECT_EQ(training.at("command"), "keysieve train");
  EXPECT_EQ(training.at("steps_done"), 12);
  EXPECT_EQ(training.at("texts").size(), 2u);
  EXPECT_EQ(training.at("development")[0].at("name"), "dev.txt");
  EXPECT_FALSE(std::filesystem::exists(job_.out / "checkpoint.safetensors"));
  const std::vector<Json> lines = metrics();
  size_t steps = 0;
  std::vector<double> development;
  for (const Json& line : lines) {
    if (line.contains("development")) {
      development.push_back(line.at("development").at("loss"));
    } else {
      EXPECT_EQ(line.at("step"), ++steps);
      EXPECT_LE(line.at("captured"), line.at("oracle"));
    }
  }
  EXPECT_EQ(steps, 12u);
  ASSERT_EQ(development.size(), 4u);  // before the first step, then after 4, 8 and 12
  EXPECT_LT(development.back(), development.front());
}

TEST_F(TrainFiles, StopsEarlyAndWritesTheBestWeights) {
  job_.development = {folder_.write("dev.txt", prose(3000, 3))};
  job_.development_windows = 1;
  job_.options.steps = 400;
  job_.options.rate = 1.0;  // far too much: it never gets better again
  job_.options.evaluate_every = 2;
  job_.options.patience = 3;
  const TrainingReport report = train_files(job_);
  EXPECT_EQ(report.end, TrainingEnd::stopped_early);
  EXPECT_LT(report.steps, 400u);
  EXPECT_EQ(report.best_step + 3 * 2, report.steps);
  if (report.best_step == 0) {
    EXPECT_EQ(read_text_file(job_.out / "indexer.safetensors"),
              read_text_file(job_.out / "start" / "indexer.safetensors"));
  }
}

// Starts the job in a process of its own that kills itself in the middle of a step's report.
void run_and_kill(TrainingJob job, size_t at_step) {
  const pid_t child = fork();
  if (child == 0) {
    job.on_step = [&](const TrainingProgress& progress) {
      if (progress.step == at_step) ::raise(SIGKILL);
    };
    try {
      train_files(job);
    } catch (const std::exception&) {
      ::_exit(2);
    }
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
}

TEST_F(TrainFiles, KilledAtRandomStepsAndResumedItGivesTheSameBits) {
  job_.development = {folder_.write("dev.txt", prose(3000, 3))};
  job_.development_windows = 1;
  job_.options.packing.retrieval = 0.5;
  job_.options.adam.weight_decay = 0.05;
  for (const IndexerShape shape : {IndexerShape::native, IndexerShape::seed}) {
    job_.shape = shape;
    job_.dtype = DType::f32;  // the whole bits
    job_.lightning.heads = 3;
    job_.lightning.dim = 6;
    job_.lightning.rope = 4;
    job_.out = folder_.path() / (shape == IndexerShape::seed ? "unbroken-card" : "unbroken");
    train_files(job_);
    const std::string unbroken = out("indexer.safetensors");
    const std::vector<Json> lines = metrics();

    job_.out += "-killed";
    std::mt19937 random(std::random_device{}());
    for (size_t at = 0; at + 1 < job_.options.steps;) {
      // Never back to where the last checkpoint is: each process gets somewhere.
      at = std::max(at + 1, at / 3 * 3 + 3) + random() % 4;
      if (at > job_.options.steps) break;
      SCOPED_TRACE(at);
      run_and_kill(job_, at);
      job_.resume = true;
    }
    train_files(job_);
    job_.resume = false;
    EXPECT_EQ(out("indexer.safetensors"), unbroken);
    const std::vector<Json> again = metrics();
    ASSERT_EQ(again.size(), lines.size());
    for (size_t i = 0; i < lines.size(); ++i) {
      Json one = lines[i];
      Json other = again[i];
      one.erase("seconds");
      other.erase("seconds");
      EXPECT_EQ(one, other);
    }
  }
}

TEST_F(TrainFiles, TheLightningShapeStartsNearerToAttentionCalibrated) {
  job_.shape = IndexerShape::seed;
  job_.lightning = {.heads = 4, .dim = 11, .rope = 8};
  job_.options.steps = 1;
  job_.options.checkpoint_every = 1;
  const auto divergence = [&](const char* start) {
    job_.start = start;
    job_.out = folder_.path() / start;
    train_files(job_);
    return metrics()
        .front()
        .at("divergence")
        .get<double>();  // of the start: a step is measured before it is taken
  };
  EXPECT_LT(divergence("calibrate"), 0.5 * divergence("random"));
}

TEST_F(TrainFiles, InterruptedItLeavesACheckpointToResume) {
  train_files(job_);
  const std::string unbroken = out("indexer.safetensors");
  std::filesystem::remove_all(job_.out);
  std::atomic<bool> cancel = false;
  job_.cancel = &cancel;
  job_.on_step = [&](const TrainingProgress& progress) { cancel = progress.step == 5; };
  const TrainingReport report = train_files(job_);
  EXPECT_EQ(report.end, TrainingEnd::cancelled);
  EXPECT_EQ(report.steps, 5u);
  EXPECT_FALSE(std::filesystem::exists(job_.out / "indexer.safetensors"));
  expect_error(ErrorKind::usage, {"unfinished run", "--resume"}, [&] { train_files(job_); });
  cancel = false;
  job_.resume = true;
  job_.options.rate = 0.02;
  expect_error(ErrorKind::mismatch, {"rate 0.01", "options the run was started with"},
               [&] { train_files(job_); });
  job_.options.rate = 0.01;
  train_files(job_);
  EXPECT_EQ(out("indexer.safetensors"), unbroken);
  expect_error(ErrorKind::usage, {"no checkpoint"}, [&] { train_files(job_); });
}

TEST_F(TrainFiles, APartOfTheLayersIsTrainedAsInTheWholeAndMerged) {
  train_files(job_);
  const auto model = Model::load(job_.model, job_.model_options);
  const IndexerFile whole(job_.out, model->shape());
  const IndexerFile start(job_.out / "start", model->shape());
  const std::filesystem::path start_folder = job_.out / "start";
  job_.start = start_folder.string();
  job_.layers = {1};
  job_.out = folder_.path() / "part";
  const TrainingReport report = train_files(job_);
  EXPECT_EQ(report.layers, 1u);
  const IndexerFile part(job_.out, model->shape());
  EXPECT_EQ(part.layer(0).q, start.layer(0).q);
  EXPECT_EQ(part.layer(1).q, whole.layer(1).q);
  EXPECT_EQ(part.layer(1).k, whole.layer(1).k);
  EXPECT_NE(part.layer(1).k, start.layer(1).k);
}

TEST_F(TrainFiles, ThreadsChangeNoBit) {
  train_files(job_);
  const std::string one = out("indexer.safetensors");
  job_.model_options.threads = 2;
  job_.out = folder_.path() / "two";
  train_files(job_);
  EXPECT_EQ(out("indexer.safetensors"), one);
}

TEST_F(TrainFiles, LearnsFromSparseStatesToo) {
  train_files(job_);
  const std::string dense = out("indexer.safetensors");
  job_.options.sparse_states = true;
  job_.out = folder_.path() / "sparse";
  EXPECT_EQ(train_files(job_).end, TrainingEnd::finished);
  EXPECT_NE(out("indexer.safetensors"), dense);
}

// At full rank a window's scores are the same wherever it stands; maps of few values made for the beginning
// are not made for what comes later.
TEST_F(TrainFiles, ReachMovesWindows) {
  job_.development = {folder_.write("dev.txt", prose(3000, 3))};
  job_.development_windows = 3;
  job_.start = "calibrate";
  TrainingOptions& o = job_.options;
  o.steps = 1;
  o.packing.window = o.packing.shortest = 100;
  o.keys = ScoreKeys::exact;
  const auto divergence = [&](const std::string& start, size_t rank, size_t reach) {
    TrainingJob job = job_;
    job.start = start;
    job.rank = rank;
    job.options.reach = reach;
    job.out = folder_.path() /
              fmt::format("{}-{}-{}", std::filesystem::path(start).filename().string(), rank, reach);
    train_files(job);
    const std::string text = read_text_file(job.out / "metrics.jsonl");
    const Json before = parse_json(text.substr(0, text.find('\n')), "metrics");
    return before.at("development").at("divergence").get<double>();
  };
  const size_t full = Model::load(job_.model, job_.model_options)->config().head_dim;
  EXPECT_LT(divergence("calibrate", full, 100), 1e-4);
  EXPECT_LT(divergence("calibrate", full, 512), 1e-4);
  const double near = divergence("calibrate", 4, 100);
  const std::string made_for_near = (folder_.path() / "calibrate-4-100" / "start").string();
  EXPECT_NEAR(divergence(made_for_near, 4, 100), near, 1e-5);
  EXPECT_GT(divergence(made_for_near, 4, 512), near + 0.01);
}

TEST_F(TrainFiles, RefusesWhatCannotWork) {
  const auto refuse = [&](ErrorKind kind, const std::vector<std::string>& parts, auto change) {
    TrainingJob job = job_;
    change(job);
    expect_error(kind, parts, [&] { train_files(job); });
    EXPECT_FALSE(std::filesystem::exists(job.out / "indexer.safetensors"));
    std::filesystem::remove_all(job.out);
  };
  refuse(ErrorKind::usage, {"learning rate", "0"}, [](TrainingJob& job) { job.options.rate = 0; });
  refuse(ErrorKind::usage, {"0 steps"}, [](TrainingJob& job) { job.options.steps = 0; });
  refuse(ErrorKind::usage, {"layers", "2", "0 to 1"}, [](TrainingJob& job) { job.layers = {2}; });
  refuse(ErrorKind::usage, {"budget", "9"}, [](TrainingJob& job) { job.options.loss.budget = 9; });
  refuse(ErrorKind::mismatch, {"600 tokens", "512"},
         [](TrainingJob& job) { job.options.packing.window = 600; });
  refuse(ErrorKind::resource, {"--window"}, [](TrainingJob& job) { job.options.memory_limit = 1000; });
  refuse(ErrorKind::usage, {"reach", "513", "512"}, [](TrainingJob& job) { job.options.reach = 513; });
  refuse(ErrorKind::usage, {"sparse states"}, [](TrainingJob& job) {
    job.options.sparse_states = true;
    job.layers = {0};
  });
  refuse(ErrorKind::file, {"missing.txt"},
         [this](TrainingJob& job) { job.texts = {folder_.path() / "missing.txt"}; });
}

// Enough steps on one window: the indexer must end where the teacher is, as far as its shape can.
void expect_overfits(TrainingJob job, size_t steps, double share_of_start, double shortfall) {
  job.options.steps = steps;
  job.options.rate = 0.05;
  job.options.checkpoint_every = 1000;
  job.options.packing.retrieval = 0;
  std::vector<double> losses;
  double captured = 0;
  double oracle = 0;
  job.on_step = [&](const TrainingProgress& progress) {
    losses.push_back(progress.loss);
    captured = progress.captured;
    oracle = progress.oracle;
  };
  train_files(job);
  ASSERT_EQ(losses.size(), steps);
  EXPECT_LT(losses.back(), share_of_start * losses.front());
  EXPECT_GT(captured, oracle - shortfall);
}

TEST_F(TrainFiles, OverfitsATinyModel) {
  job_.texts = {folder_.write("one.txt", prose(300, 8))};
  job_.rank = TinyModel::kHeadDim;
  expect_overfits(job_, 250, 0.05, 0.005);
}

TEST_F(TrainFiles, OverfitsGoldenModelsInBothShapes) {
  const auto golden = testing::golden_dir();
  if (!golden) GTEST_SKIP() << "no golden data";
  job_.texts = {folder_.write("one.txt", prose(300, 8))};
  job_.options.packing.window = 160;
  for (const char* name : {"llama-bf16", "qwen3-bf16"}) {
    SCOPED_TRACE(name);
    job_.model = (*golden / "models" / name).string();
    job_.model_options.context = 512;
    job_.shape = IndexerShape::native;
    job_.rank = 16;
    job_.out = folder_.path() / (std::string(name) + "-native");
    expect_overfits(job_, 100, 0.3, 0.12);
    job_.shape = IndexerShape::seed;
    job_.lightning.heads = 6;
    job_.lightning.dim = 24;
    job_.lightning.rope = 16;
    job_.out = folder_.path() / (std::string(name) + "-card");
    expect_overfits(job_, 100, 0.6, 0.17);
  }
}

}  // namespace
}  // namespace keysieve
