#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/json.h"

namespace keysieve::report {

// One result to show.
struct ReportInput {
  std::string name;     // of the file or folder, without where it lies
  std::string kind;     // ppl, needle, agreement, memory, latency, gsm8k, reading or train
  Json result;          // what `eval` printed; for train: {"steps": [...], "developments": [...]}
  std::string command;  // how it was made, where the file says so
  std::string machine;
  std::string date;
};

// A JSON result of `eval`, alone or as the "result" of a document that also holds "command", "machine" and
// "date"; or the folder of a `train` run. Throws Error{file}, Error{format} for what is no result or has
// values of the wrong type, Error{resource} for files over 64 MB.
ReportInput read_report_input(const std::filesystem::path& path);

}  // namespace keysieve::report
