#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/pulling.h"

namespace keysieve::cli {
namespace {

constexpr const char* kInspectExamples = R"(Examples:
  keysieve inspect smollm2-135m
  keysieve inspect model.gguf --json
  keysieve inspect indexers/smollm2-135m --tensors)";

std::string shape_text(const std::vector<uint64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

class InspectCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kInspectExamples);
    app.add_option("what", what_, "a file, a model or an indexer: a path, a Hub id or a short name")
        ->required()
        ->type_name("FILE|MODEL|INDEXER");
    app.add_flag("--tensors", tensors_, "list every tensor (the JSON always does)");
    output_.add(app, false);
  }

  int run() override {
    // A repository that is here as either is not asked for again.
    if (needs_pull(what_, PullKind::indexer)) fetch_missing(what_, PullKind::model);
    const Description description = inspect(what_);
    if (output_.json) {
      print_json(as_json(description));
    } else {
      print(as_text(description));
    }
    return kExitFine;
  }

 private:
  static Json as_json(const Description& description) {
    Json tensors = Json::array();
    for (const TensorDescription& tensor : description.tensors) {
      Json entry = {
          {"name", tensor.name}, {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"bytes", tensor.bytes}};
      if (!tensor.file.empty()) entry["file"] = tensor.file;
      tensors.push_back(std::move(entry));
    }
    Json document = {{"kind", description.kind},
                     {"path", description.path},
                     {"architecture", description.architecture},
                     {"file_bytes", description.file_bytes},
                     {"parameters", description.parameters},
                     {"metadata", parse_json(description.metadata, description.path)},
                     {"tensors", std::move(tensors)}};
    if (const auto& read = description.understanding) {
      document["understanding"] = {{"found", read->found},
                                   {"assumed", read->assumed},
                                   {"ignored", read->ignored},
                                   {"not_understood", read->not_understood}};
    }
    return document;
  }

  static std::string as_text(const Description::Understanding& read) {
    std::string text;
    const auto add = [&](std::string_view label, const std::vector<std::string>& sentences) {
      for (const std::string& sentence : sentences) text += fmt::format("  {:14}{}\n", label, sentence);
    };
    add("found", read.found);
    add("assumed", read.assumed);
    add("ignored", read.ignored);
    add("not clear", read.not_understood);
    return text;
  }

  std::string as_text(const Description& description) const {
    const bool terminal = is_terminal(stdout);
    std::string text = fmt::format("{}\n  kind          {}\n", description.path, description.kind);
    if (!description.architecture.empty())
      text += fmt::format("  architecture  {}\n", description.architecture);
    text += fmt::format("  size          {}\n  parameters    {}\n  tensors       {}\n",
                        human_bytes(description.file_bytes), human_count(description.parameters),
                        description.tensors.size());
    struct Sum {
      size_t tensors = 0;
      uint64_t bytes = 0;
    };
    std::map<std::string, Sum> types;
    size_t longest = 0;
    for (const TensorDescription& tensor : description.tensors) {
      Sum& sum = types[tensor.dtype];
      ++sum.tensors;
      sum.bytes += tensor.bytes;
      longest = std::max(longest, tensor.name.size());
    }
    for (const auto& [name, sum] : types) {
      text += fmt::format("    {:8} {:5} tensors  {}\n", name, sum.tensors, human_bytes(sum.bytes));
    }
    if (description.understanding) text += as_text(*description.understanding);
    text += "  metadata\n";
    const Json metadata = parse_json(description.metadata, description.path);
    for (const auto& [key, value] : metadata.items()) {
      std::string shown = value.dump(-1, ' ', false, Json::error_handler_t::replace);
      // One line per key: a chat template runs to thousands of characters.
      if (shown.size() > 100) shown = shown.substr(0, 97) + "...";
      text += fmt::format("    {} = {}\n", key, shown);
    }
    if (tensors_) {
      text += "  tensors\n";
      for (const TensorDescription& tensor : description.tensors) {
        text += fmt::format("    {:{}}  {:5} {:18} {}\n", tensor.name, std::min<size_t>(longest, 80),
                            tensor.dtype, shape_text(tensor.shape), human_bytes(tensor.bytes));
      }
    }
    return safe_for_terminal(text, terminal);
  }

  std::string what_;
  bool tensors_ = false;
  OutputArguments output_;
};

}  // namespace

std::unique_ptr<Command> make_inspect_command() { return std::make_unique<InspectCommand>(); }

}  // namespace keysieve::cli
