#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/pulling.h"

namespace keysieve::cli {
namespace {

constexpr const char* kPullExamples = R"(Examples:
  keysieve pull mlx-community/Qwen3-8B-4bit
  keysieve pull rp440/Qwen3-8b-DSA-index --revision main
  keysieve pull org/model-GGUF --include '*Q4_K_M.gguf'
  keysieve pull data gsm8k wikitext2
Models and indexers go to the Hub cache of the Python client (HF_HUB_CACHE, HF_HOME), which finds them
there; verbs that get a Hub id fetch it by themselves. HF_TOKEN or `hf auth login` opens private
repositories, HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 forbids all of it.
A pull that is stopped goes on where it stopped.)";

Json to_json(const PullResult& result, double seconds) {
  Json files = Json::array();
  for (const PulledFile& file : result.files) {
    files.push_back({{"name", file.name},
                     {"path", file.path.string()},
                     {"bytes", file.bytes},
                     {"fetched", file.fetched}});
  }
  return {{"id", result.id},           {"commit", result.commit}, {"folder", result.folder.string()},
          {"files", std::move(files)}, {"bytes", result.bytes},   {"bytes_fetched", result.bytes_fetched},
          {"seconds", seconds}};
}

class PullCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kPullExamples);
    app.add_option("what", what_, "Hub ids (org/name), or `data` and the names of texts: gsm8k, wikitext2")
        ->required()
        ->type_name("ID...|data NAME...");
    app.add_option("--revision", options_.revision, "a branch, a tag or a commit")
        ->type_name("NAME")
        ->capture_default_str();
    app.add_option("--include", options_.include, "files by name, with * and ?; default: what a model needs")
        ->type_name("PATTERN")
        ->allow_extra_args(false);  // one each time: what follows is an id
    app.add_option("-o,--out", out_, "another Hub cache, or another folder for texts")->type_name("DIR");
    output_.add(app, false);
  }

  int run() override {
    const bool data = what_.front() == "data";
    if (data) what_.erase(what_.begin());
    if (what_.empty()) {
      throw Error(ErrorKind::usage, "pull data", "no name", "gsm8k or wikitext2");
    }
    const InterruptGuard interrupt;
    options_.cancel = InterruptGuard::flag();
    Json documents = Json::array();
    for (const std::string& name : what_) {
      try {
        documents.push_back(pull_one(name, data));
      } catch (const Error&) {
        if (!InterruptGuard::requested()) throw;
        print_note("stopped; the same command goes on where it stopped");
        return kExitInterrupted;
      }
    }
    if (output_.json) print_json(documents.size() == 1 ? documents.front() : documents);
    return kExitFine;
  }

 private:
  Json pull_one(const std::string& name, bool data) {
    Progress progress("fetching " + name, Progress::Unit::bytes);
    PullOptions options = options_;
    options.progress = [&](const PullProgress& at) { progress.update(at.done, at.total); };
    if (!data) options.cache = out_;
    const double start = now_seconds();
    const PullResult result = data ? pull_data(name, out_, options) : pull(name, options);
    progress.update(1, 1);
    const double seconds = now_seconds() - start;
    if (!output_.json)
      print(fmt::format("{}\n  {}\n", pull_summary(result, seconds), result.folder.string()));
    return to_json(result, seconds);
  }

  std::vector<std::string> what_;
  std::filesystem::path out_;
  PullOptions options_;
  OutputArguments output_;
};

}  // namespace

std::unique_ptr<Command> make_pull_command() { return std::make_unique<PullCommand>(); }

}  // namespace keysieve::cli
