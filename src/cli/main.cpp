#include <fmt/format.h>
#include <langinfo.h>

#include <algorithm>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string_view>
#include <vector>

#include "cli/command.h"
#include "cli/output.h"

namespace keysieve::cli {
namespace {

constexpr const char* kMainExamples = R"(Examples:
  keysieve demo
  keysieve generate --prompt "Why is the sky blue?"
  keysieve generate --indexer auto --budget 512 --prompt-file question.txt
  keysieve chat --model qwen2.5-coder-0.5b
Each command has its own --help with examples.
Exit status: 0 fine, 1 the work failed, 2 usage, 130 stopped by Ctrl-C.)";

// One line, whatever CLI11 or a hostile argument put into the message.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = c == '\n' ? ' ' : '?';
  }
  while (text.ends_with(' ') || text.ends_with('.')) text.pop_back();
  return text;
}

int report(std::string_view kind, const std::string& message, int status, bool json) {
  print_note(message);
  if (json) print_json({{"error", {{"kind", kind}, {"message", message}}}});
  return status;
}

// CLI11 only says that a command is missing where there is one it does not know.
int report_unknown_command(const std::string& given, bool json) {
  std::string names;
  for (const CommandEntry& entry : commands())
    names += fmt::format("{}{}", names.empty() ? "" : ", ", entry.name);
  const std::string found = given.empty() ? "none" : fmt::format("'{}'", one_line(given));
  return report("usage", fmt::format("command: {}, expected {}; see keysieve --help", found, names),
                kExitUsage, json);
}

int report_parse_error(const CLI::App& app, const CLI::ParseError& error, bool json) {
  std::string verb;
  std::string help = "keysieve";
  for (const CLI::App* part = &app; !part->get_subcommands().empty();) {
    part = part->get_subcommands().front();
    verb += (verb.empty() ? "" : " ") + part->get_name();
  }
  if (verb.empty()) {
    verb = "command line";
  } else {
    help += " " + verb;
  }
  const std::string message = fmt::format("{}: {}; see {} --help", verb, one_line(error.what()), help);
  return report("usage", message, kExitUsage, json);
}

std::string version_text() {
  std::string families;
  for (const std::string& name : kernel_families()) families += (families.empty() ? "" : ", ") + name;
  return fmt::format("keysieve {}\nkernels: {}", version(), families);
}

int run(int argc, char** argv) {
  // CLI11 has not parsed yet when its errors are reported.
  const bool json =
      std::any_of(argv + 1, argv + argc, [](const char* a) { return std::string_view(a) == "--json"; });
  CLI::App app("keysieve: learned sparse attention for ordinary language models, on ordinary CPUs",
               "keysieve");
  app.set_version_flag("--version", version_text);
  app.require_subcommand(1);
  app.footer(kMainExamples);
  std::vector<std::unique_ptr<Command>> made;
  std::vector<CLI::App*> parsers;
  for (const CommandEntry& entry : commands()) {
    CLI::App* parser = app.add_subcommand(entry.name, entry.summary);
    made.push_back(entry.make());
    made.back()->add_options(*parser);
    parsers.push_back(parser);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // --help and --version arrive as "errors" of status 0.
    if (error.get_exit_code() == 0) return app.exit(error);
    if (app.get_subcommands().empty()) {
      const char* const* first = std::find_if(argv + 1, argv + argc, [](const char* a) { return *a != '-'; });
      return report_unknown_command(first == argv + argc ? "" : *first, json);
    }
    return report_parse_error(app, error, json);
  }
  try {
    for (size_t i = 0; i < made.size(); ++i) {
      if (parsers[i]->parsed()) return made[i]->run();
    }
    return kExitUsage;
  } catch (const Error& error) {
    return report(to_string(error.kind()), error.what(),
                  error.kind() == ErrorKind::usage ? kExitUsage : kExitFailed, json);
  } catch (const std::bad_alloc&) {
    return report("resource", "memory: none left, expected more; use a smaller --context or model",
                  kExitFailed, json);
  }
}

}  // namespace
}  // namespace keysieve::cli

int main(int argc, char** argv) {
  // Character widths and line editing need to know that text is UTF-8; numbers stay in the C form.
  if (std::setlocale(LC_CTYPE, "") == nullptr || std::string_view(nl_langinfo(CODESET)) != "UTF-8") {
    std::setlocale(LC_CTYPE, "C.UTF-8");
  }
  // A file past its limit is then an error of the write, which names the file, instead of the program's end.
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return keysieve::cli::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "keysieve: %s\n", error.what());
    return keysieve::cli::kExitFailed;
  }
}
