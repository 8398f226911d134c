#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>

namespace keysieve {

// Words and sentences of random letters.
inline std::string prose(size_t bytes, uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  std::string text;
  while (text.size() < bytes) {
    for (size_t i = 0; i < 2 + random() % 7; ++i) text += static_cast<char>('a' + random() % 26);
    text += random() % 9 == 0 ? ".\n" : " ";
  }
  text.resize(bytes);
  return text;
}

}  // namespace keysieve
