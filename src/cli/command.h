#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <span>
#include <string>

namespace keysieve::cli {

// Exit statuses (docs of every verb): 0 fine, 1 the work failed, 2 usage, 130 stopped by Ctrl-C.
inline constexpr int kExitFine = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

// One verb. Lives from the parsing of the command line to the end of the program.
class Command {
 public:
  virtual ~Command() = default;
  // Declares options and examples (app.footer) on the verb's own parser; verbs with parts (`eval ppl`) add
  // subcommands to it.
  virtual void add_options(CLI::App& app) = 0;
  // Does the work and returns an exit status. Throws keysieve::Error; main prints it.
  virtual int run() = 0;
};

struct CommandEntry {
  const char* name;
  const char* summary;
  std::unique_ptr<Command> (*make)();
};

// Every verb there is, in the order of --help. A new verb is one file and one line in commands.cpp.
std::span<const CommandEntry> commands();

}  // namespace keysieve::cli
