#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>

#include "core/json.h"

namespace keysieve {

// metrics.jsonl: one JSON object a line, each with its "step". Lines are flushed as they are written; what a
// killed run wrote past its last checkpoint is dropped when it goes on.
class MetricsLog {
 public:
  // Keeps the lines of steps up to `last_step` of a file that is there. Throws Error{file}.
  MetricsLog(const std::filesystem::path& path, size_t last_step);
  void write(const Json& line);  // throws Error{file}

 private:
  std::filesystem::path path_;
  std::ofstream file_;
};

}  // namespace keysieve
