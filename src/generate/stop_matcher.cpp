#include "generate/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "keysieve/error.h"

namespace keysieve {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    if (stop.empty()) throw Error(ErrorKind::usage, "stop string", "an empty text", "at least one character");
  }
}

std::string StopMatcher::push(std::string_view piece) {
  if (stopped_) return {};
  pending_ += piece;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, pending_.find(stop));
  if (first != std::string::npos) {
    stopped_ = true;
    std::string shown = pending_.substr(0, first);
    pending_.clear();
    return shown;
  }
  const size_t held = held_back();
  std::string shown = pending_.substr(0, pending_.size() - held);
  pending_.erase(0, pending_.size() - held);
  return shown;
}

std::string StopMatcher::finish() { return std::exchange(pending_, {}); }

// Length of the longest end of the pending text that begins a stop string.
size_t StopMatcher::held_back() const {
  size_t held = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, pending_.size()); length > held; --length) {
      if (pending_.ends_with(std::string_view(stop).substr(0, length))) held = length;
    }
  }
  return held;
}

}  // namespace keysieve
