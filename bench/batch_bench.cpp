// Batched decode: tokens a second of 1, 2, 4 and 8 sequences that share each pass.
//   batch_bench [--model=NAME] [--context=TOKENS] [--budget=POSITIONS] [--threads=N] [benchmark's own
//   options]
// `context` is what each sequence holds when decoding begins; a budget of 0 (the default) is dense attention.
#include <benchmark/benchmark.h>

#include <charconv>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "keysieve/keysieve.h"

namespace {

using namespace keysieve;

struct Settings {
  std::string model = "smollm2-135m";
  size_t context = 16;
  size_t budget = 0;
  size_t threads = 0;
};

// --name=value into `out`; false where `argument` is another option.
bool read_option(std::string_view argument, std::string_view name, size_t& out) {
  if (!argument.starts_with(name)) return false;
  argument.remove_prefix(name.size());
  const auto [end, error] = std::from_chars(argument.data(), argument.data() + argument.size(), out);
  return error == std::errc() && end == argument.data() + argument.size();
}

// Sequences prefilled once; each measurement of a size goes on from where they are.
class Sequences {
 public:
  Sequences(const LanguageModel& model, const SessionOptions& options, size_t count, size_t context)
      : decoder_(model, count) {
    std::vector<int32_t> prompt(context);
    for (size_t i = 0; i < count; ++i) {
      for (size_t t = 0; t < context; ++t) {
        prompt[t] = static_cast<int32_t>((t * t + 31 * t + 97 * i) % (model.info().vocabulary - 1));
      }
      sessions_.emplace_back(model, options).prefill(prompt);
    }
  }
  void step(size_t count) {
    pointers_.clear();
    for (size_t i = 0; i < count; ++i) pointers_.push_back(&sessions_[i]);
    tokens_.assign(count, static_cast<int32_t>(++steps_ % 1000));
    decoder_.step(pointers_, tokens_);
  }

 private:
  BatchedDecoder decoder_;
  std::vector<Session> sessions_;
  std::vector<Session*> pointers_;
  std::vector<int32_t> tokens_;
  size_t steps_ = 0;
};

void decode(benchmark::State& state, Sequences& sequences, size_t count) {
  for (auto _ : state) sequences.step(count);
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(count), benchmark::Counter::kIsIterationInvariantRate);
}

void run(const Settings& settings) {
  constexpr size_t kSteps = 48;
  constexpr int kRepetitions = 5;
  const LanguageModel model =
      LanguageModel::load(settings.model, {.threads = static_cast<int>(settings.threads)});
  SessionOptions options;
  // Every size's repetitions and warm-up steps go on in the same sequences.
  options.context = settings.context + 4 * (kRepetitions + 1) * (kSteps + 1);
  if (settings.budget > 0) {
    options.indexer = LightningIndexer::load("auto", model);
    options.budget = settings.budget;
  }
  Sequences sequences(model, options, 8, settings.context);
  for (const size_t count : {size_t{1}, size_t{2}, size_t{4}, size_t{8}}) {
    benchmark::RegisterBenchmark(("decode/sequences:" + std::to_string(count)).c_str(),
                                 [&, count](benchmark::State& state) { decode(state, sequences, count); })
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond)
        ->Iterations(kSteps)
        ->Repetitions(kRepetitions)
        ->ReportAggregatesOnly();
  }
  benchmark::RunSpecifiedBenchmarks();
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument.starts_with("--model=")) {
      settings.model = argument.substr(8);
    } else if (!read_option(argument, "--context=", settings.context) &&
               !read_option(argument, "--budget=", settings.budget) &&
               !read_option(argument, "--threads=", settings.threads)) {
      std::cerr << "unknown option " << argument << "\n";
      return 1;
    }
  }
  try {
    run(settings);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
