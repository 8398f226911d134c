#include "eval/partial_results.h"

#include <utility>

#include "core/file_io.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

std::string printed(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// The first setting in which two runs differ.
std::string difference(const Json& found, const Json& asked) {
  for (const auto& [key, value] : asked.items()) {
    if (!found.contains(key)) return key + " is not there";
    if (found.at(key) != value) return key + " " + printed(found.at(key));
  }
  return "other settings";
}

}  // namespace

PartialResults::PartialResults(std::filesystem::path path, const Json& question)
    : path_(std::move(path)), question_(parse_json(printed(question), "question")) {
  std::error_code ignored;
  if (path_.empty() || !std::filesystem::exists(path_, ignored)) return;
  const Json file = read_json_file(path_);
  const bool whole = file.is_object() && file.contains("question") && file.at("question").is_object() &&
                     file.contains("results") && file.at("results").is_object();
  if (!whole) {
    throw Error(ErrorKind::format, path_.string(), "no partial results", "a file that --resume wrote",
                "name a new file");
  }
  if (file.at("question") != question_) {
    throw Error(ErrorKind::mismatch, path_.string(), difference(file.at("question"), question_),
                "the same options as now", "name a new file for a new question");
  }
  results_ = file.at("results");
}

const Json* PartialResults::find(const std::string& key) const {
  const auto found = results_.find(key);
  return found == results_.end() ? nullptr : &*found;
}

void PartialResults::put(const std::string& key, const Json& result) {
  results_[key] = result;
  if (path_.empty()) return;
  AtomicFileWriter writer(path_);
  writer.write(printed({{"question", question_}, {"results", results_}}) + "\n");
  writer.commit();
}

}  // namespace keysieve
