#include <fmt/format.h>

#include <vector>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/output.h"
#include "core/file_io.h"
#include "report/page.h"

namespace keysieve::cli {
namespace {

constexpr const char* kReportExamples = R"(Examples:
  keysieve eval ppl --text book.txt --budgets 128,512 --baselines oracle,recent --json > ppl.json
  keysieve eval reading --text book.txt --budget 256 --json > reading.json
  keysieve report ppl.json reading.json indexers/mine --out report.html
A RUN is what a part of eval printed with --json, or the folder of a train run (its metrics.jsonl). The page is one
file, loads nothing, and prints on paper.)";

class ReportCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kReportExamples);
    app.add_option("runs", runs_, "results of eval, folders of train")->required()->type_name("RUN...");
    app.add_option("--out,-o", out_, "the page to write")->required()->type_name("FILE.html")->take_last();
    app.add_option("--title", title_, "its heading")->type_name("TEXT")->capture_default_str()->take_last();
    output_.add(app, false);
  }

  int run() override {
    std::vector<report::ReportInput> inputs;
    inputs.reserve(runs_.size());
    for (const std::string& run : runs_) inputs.push_back(report::read_report_input(run));
    const std::string page = report::make_page(title_, inputs);
    AtomicFileWriter writer(out_);
    writer.write(page);
    writer.commit();
    if (output_.json) {
      print_json({{"out", out_}, {"runs", inputs.size()}, {"bytes", page.size()}});
    } else {
      print(fmt::format("{}: {} runs, {}\n", out_, inputs.size(), human_bytes(page.size())));
    }
    return kExitFine;
  }

 private:
  std::vector<std::string> runs_;
  std::string out_;
  std::string title_ = "keysieve report";
  OutputArguments output_;
};

}  // namespace

std::unique_ptr<Command> make_report_command() { return std::make_unique<ReportCommand>(); }

}  // namespace keysieve::cli
