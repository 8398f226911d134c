#pragma once

#include <string>
#include <string_view>

#include "core/json.h"
#include "report/plot.h"

namespace keysieve::report {

// Values as the page needs them: what is missing or of another type becomes the fallback, since results of
// older versions lack fields that newer ones have.
double number(const Json& object, std::string_view key, double fallback = 0);
std::string text(const Json& object, std::string_view key, std::string_view fallback = "");
const Json& list(const Json& object, std::string_view key);  // an empty array where there is none

// low and high of {key: [low, high]} into `point`; left as they are where there is no such pair.
void take_interval(Point& point, const Json& object, std::string_view key);

// The row's mode where it is one of `eval`, else "other": what chooses its colour.
std::string style_of(std::string_view mode);

// <figure> with a heading, a drawing and words below it; empty without a drawing.
std::string figure(const std::string& heading, const std::string& drawing, const std::string& words);

// Cells are escaped here; columns past the first are set flush right.
class Table {
 public:
  explicit Table(std::vector<std::string> head) : head_(std::move(head)) {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string html() const;  // empty without rows

 private:
  std::vector<std::string> head_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace keysieve::report
