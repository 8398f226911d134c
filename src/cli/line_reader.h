#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace keysieve::cli {

// Lines a person types: with line editing and a history that outlives the program on a terminal, plain lines
// where input is piped.
class LineReader {
 public:
  // `history` names the file under $XDG_STATE_HOME/keysieve (~/.local/state/keysieve); one that cannot be
  // read or written is done without.
  explicit LineReader(std::string_view history);
  LineReader(LineReader&&) noexcept;
  LineReader& operator=(LineReader&&) noexcept;
  ~LineReader();

  // The next line without its line break; nullopt at the end of input (Ctrl-D). Ctrl-C gives an empty line.
  std::optional<std::string> read(std::string_view prompt);
  bool interactive() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace keysieve::cli
