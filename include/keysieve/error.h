#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace keysieve {

// What went wrong, coarse enough for a program to act on. The command line maps `usage` to exit status 2 and
// everything else to 1.
enum class ErrorKind {
  usage,        // an argument the caller gave makes no sense
  file,         // a file cannot be opened, read or written
  format,       // a file's content is damaged, hostile or of another format
  unsupported,  // valid, but not something this build can run
  mismatch,  // two valid things that do not belong together: an indexer and a model, a prompt and a context
  network,   // a server cannot be reached, refuses, or sends other bytes than it announced
  resource,  // memory, disk or address space ran out
};

// "usage", "file", ... as printed in JSON error objects.
std::string_view to_string(ErrorKind kind);

// The one exception type the library throws on purpose. Its message is one line:
//   <subject>: <found>, expected <expected>; <way out>
// `expected` and `way_out` may be empty and are then left out with their punctuation. Line breaks and control
// bytes (they may come from hostile files) are replaced by '?', and each part is cut to 500 bytes.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, std::string_view subject, std::string_view found, std::string_view expected = {},
        std::string_view way_out = {});
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

}  // namespace keysieve
