#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace keysieve {

// One step through bytes that claim to be UTF-8. Bytes that are not are taken in maximal subparts, the
// practice of the Unicode standard, Python's errors="replace" and Rust's from_utf8_lossy: each subpart
// becomes one U+FFFD.
struct Utf8Step {
  char32_t code_point = 0xFFFD;
  uint8_t length = 1;      // bytes taken, 1 to 4
  bool valid = false;      // otherwise code_point is U+FFFD
  bool truncated = false;  // not valid only because the text ends here
};

// `at` must lie inside the text.
Utf8Step utf8_step(std::string_view text, size_t at);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

bool is_valid_utf8(std::string_view text);
bool is_ascii(std::string_view text);
std::string replace_invalid_utf8(std::string_view text);
void append_utf8(std::string& out, char32_t code_point);  // surrogates and values past U+10FFFF become U+FFFD

// Length of the trailing bytes that begin a character and wait for its rest: 0 to 3.
size_t incomplete_utf8_suffix(std::string_view text);

// The Unicode property White_Space.
bool is_white_space(char32_t code_point);
// str.isspace() of Python: White_Space and the separators U+001C to U+001F.
bool is_python_space(char32_t code_point);

// Unicode normalisation form C of valid UTF-8, in O(n log n) for any sequence of combining marks.
std::string normalize_nfc(std::string_view text);

}  // namespace keysieve
