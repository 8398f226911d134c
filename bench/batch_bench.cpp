// Batched decode: tokens a second of 1 to 16 sequences that share each pass.
//   batch_bench [--model=NAME] [--context=TOKENS] [--budget=POSITIONS] [--threads=N] [benchmark's own
//   options]
// `context` is what each sequence holds when decoding begins; a budget of 0 (the default) is dense attention.
#include <benchmark/benchmark.h>

#include <charconv>
#include <cstdlib>
#include <iostream>
#include <list>
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

// Prefilled once; each measurement goes on from where they are.
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
    for (Session& session : sessions_) pointers_.push_back(&session);
  }
  void step() {
    tokens_.assign(sessions_.size(), static_cast<int32_t>(++steps_ % 1000));
    decoder_.step(pointers_, tokens_);
  }
  size_t size() const { return sessions_.size(); }

 private:
  BatchedDecoder decoder_;
  std::vector<Session> sessions_;
  std::vector<Session*> pointers_;
  std::vector<int32_t> tokens_;
  size_t steps_ = 0;
};

void decode(benchmark::State& state, Sequences& sequences) {
  for (auto _ : state) sequences.step();
  state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(sequences.size()),
                                                  benchmark::Counter::kIsIterationInvariantRate);
}

void run(const Settings& settings) {
  constexpr size_t kSteps = 48;
  constexpr int kRepetitions = 5;
  const LanguageModel model =
      LanguageModel::load(settings.model, {.threads = static_cast<int>(settings.threads)});
  SessionOptions options;
  // Repetitions go on in the same sequences.
  options.context = settings.context + (kRepetitions + 1) * (kSteps + 1);
  if (settings.budget > 0) {
    options.indexer = LightningIndexer::load("auto", model);
    options.budget = settings.budget;
  }
  std::list<Sequences> sequences;  // of each size its own, so that all see the same lengths
  for (const size_t count : {size_t{1}, size_t{2}, size_t{4}, size_t{8}, size_t{16}}) {
    Sequences& these = sequences.emplace_back(model, options, count, settings.context);
    benchmark::RegisterBenchmark(("decode/sequences:" + std::to_string(count)).c_str(),
                                 [&these](benchmark::State& state) { decode(state, these); })
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
