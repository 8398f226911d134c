#pragma once

#include <filesystem>
#include <string>

#include "core/json.h"

namespace keysieve {

// What a long evaluation has found so far, in a file that is whole after every step, so that a run which was
// stopped goes on where it was.
class PartialResults {
 public:
  PartialResults() = default;  // keeps nothing
  // Takes up what `path` holds, or starts it with the first put(). `question` is everything the results
  // depend on. Throws Error{mismatch} where the file answers another question, Error{file} and Error{format}.
  PartialResults(std::filesystem::path path, const Json& question);

  const Json* find(const std::string& key) const;        // null: not there yet
  void put(const std::string& key, const Json& result);  // throws Error{file}, a full disk included
  size_t size() const { return results_.size(); }

 private:
  std::filesystem::path path_;
  Json question_;
  Json results_ = Json::object();
};

}  // namespace keysieve
