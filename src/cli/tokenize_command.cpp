#include <fmt/format.h>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/pulling.h"

namespace keysieve::cli {
namespace {

constexpr const char* kTokenizeExamples = R"(Examples:
  printf 'Hello world' | keysieve tokenize --model smollm2-135m --json
  keysieve tokenize --parse-special < prompt.txt > ids.txt
  echo '[19556, 905]' | keysieve tokenize --decode
With --decode the text comes out byte for byte, or with --json as one JSON string.)";

class TokenizeCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kTokenizeExamples);
    model_.add_model(app);
    app.add_flag("--parse-special", parse_special_,
                 "control tokens spelled in the text (<|im_end|>) become those tokens");
    app.add_flag("--decode", decode_, "ids on standard input (JSON list or white space), text out");
    output_.add(app, false);
  }

  int run() override {
    const std::string input = read_stdin();
    fetch_missing(model_.model, PullKind::model);
    const TextCodec text = TextCodec::load(model_.model);
    if (decode_) {
      const std::string decoded = text.decode(parse_token_ids(input, "standard input"));
      if (output_.json) {
        print_json(decoded);
      } else {
        print(decoded);
      }
      return kExitFine;
    }
    const std::vector<int32_t> ids = text.encode(input, parse_special_);
    if (output_.json) {
      print_json(ids);
    } else {
      print(fmt::format("{}\n", fmt::join(ids, " ")));
    }
    return kExitFine;
  }

 private:
  ModelArguments model_;
  OutputArguments output_;
  bool parse_special_ = false;
  bool decode_ = false;
};

}  // namespace

std::unique_ptr<Command> make_tokenize_command() { return std::make_unique<TokenizeCommand>(); }

}  // namespace keysieve::cli
