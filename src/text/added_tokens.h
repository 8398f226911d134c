#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace keysieve {

// Finds added tokens in text: leftmost first, the longest among those that start at one place.
class AddedTokenMatcher {
 public:
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  struct Piece {
    std::string_view text;  // where id is -1: text between added tokens, never empty
    int32_t id;
  };
  // Control tokens are left in the text unless `parse_special`.
  std::vector<Piece> split(std::string_view text, bool parse_special) const;
  bool empty() const { return tokens_.empty(); }

 private:
  // The longest token that starts at `at`, or null.
  const AddedToken* longest_at(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;  // sorted by content
  std::array<bool, 256> starts_{};  // bytes that some token starts with
};

}  // namespace keysieve
