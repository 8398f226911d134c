#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace keysieve {

// Ends a text before the first stop string, wherever token boundaries fall: text that may still become a stop
// string is held back until the next piece decides.
class StopMatcher {
 public:
  // Throws Error{usage} for an empty stop string.
  explicit StopMatcher(std::vector<std::string> stops);

  // Takes the next piece of text and returns what can be shown now. After stopped() everything is ignored.
  std::string push(std::string_view piece);
  // The text held back, when the text ends without a stop string.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  size_t held_back() const;

  std::vector<std::string> stops_;
  std::string pending_;
  bool stopped_ = false;
};

}  // namespace keysieve
