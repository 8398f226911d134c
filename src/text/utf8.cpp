#include "text/utf8.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <vector>

#include "keysieve/error.h"

namespace keysieve {

namespace {

struct LeadByte {
  uint8_t length;        // 0: never starts a character
  uint8_t second_first;  // allowed range of the second byte: narrower than 80..BF where overlong forms,
                         // surrogates
  uint8_t second_last;   // and values past U+10FFFF would begin
};

LeadByte lead_byte(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Step utf8_step(std::string_view text, size_t at) {
  const auto first = static_cast<uint8_t>(text[at]);
  if (first < 0x80) return {first, 1, true, false};
  const LeadByte lead = lead_byte(first);
  if (lead.length == 0) return {};
  // The lead byte of n bytes carries 7 - n bits.
  char32_t code_point = first & (0x7Fu >> lead.length);
  for (uint8_t i = 1; i < lead.length; ++i) {
    if (at + i >= text.size()) return {0xFFFD, i, false, true};
    const auto byte = static_cast<uint8_t>(text[at + i]);
    const uint8_t low = i == 1 ? lead.second_first : 0x80;
    const uint8_t high = i == 1 ? lead.second_last : 0xBF;
    if (byte < low || byte > high) return {0xFFFD, i, false, false};
    code_point = (code_point << 6) | (byte & 0x3Fu);
  }
  return {code_point, lead.length, true, false};
}

bool is_ascii(std::string_view text) {
  size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + i, 8);
    if (word & 0x8080808080808080u) return false;
  }
  for (; i < text.size(); ++i) {
    if (static_cast<uint8_t>(text[i]) >= 0x80) return false;
  }
  return true;
}

bool is_valid_utf8(std::string_view text) {
  if (is_ascii(text)) return true;
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    if (!step.valid) return false;
    i += step.length;
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    out.append(step.valid ? text.substr(i, step.length) : kReplacementCharacter);
    i += step.length;
  }
  return out;
}

void append_utf8(std::string& out, char32_t code_point) {
  const bool surrogate = code_point >= 0xD800 && code_point <= 0xDFFF;
  if (surrogate || code_point > 0x10FFFF) code_point = 0xFFFD;
  std::array<utf8proc_uint8_t, 4> bytes;
  const auto count = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes.data());
  out.append(reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(count));
}

size_t incomplete_utf8_suffix(std::string_view text) {
  for (size_t length = 1; length <= std::min<size_t>(3, text.size()); ++length) {
    const size_t at = text.size() - length;
    if ((static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) continue;  // a continuation byte: look further left
    const Utf8Step step = utf8_step(text, at);
    return step.truncated && step.length == length ? length : 0;
  }
  return 0;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

namespace {

int combining_class(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

// Sorts by class and keeps the order of equals: the class, the place and the code point as one number.
void sort_run(std::span<utf8proc_int32_t> run) {
  if (run.size() < 2) return;
  std::vector<uint64_t> keys(run.size());  // 8 bits of class, 35 of place, 21 of code point
  for (size_t i = 0; i < run.size(); ++i) {
    keys[i] = (static_cast<uint64_t>(combining_class(run[i])) << 56) | (uint64_t{i} << 21) |
              static_cast<uint64_t>(run[i]);
  }
  std::sort(keys.begin(), keys.end());
  for (size_t i = 0; i < run.size(); ++i) run[i] = static_cast<utf8proc_int32_t>(keys[i] & 0x1FFFFF);
}

// Canonical order: runs of combining marks sorted by class, equal classes keep their order. utf8proc's own
// decomposition does this by insertion, which takes O(n^2) on a long run of marks.
void sort_combining_marks(std::vector<utf8proc_int32_t>& code_points) {
  size_t begin = 0;
  while (begin < code_points.size()) {
    if (combining_class(code_points[begin]) == 0) {
      ++begin;
      continue;
    }
    size_t end = begin + 1;
    while (end < code_points.size() && combining_class(code_points[end]) != 0) ++end;
    sort_run(std::span(code_points).subspan(begin, end - begin));
    begin = end;
  }
}

}  // namespace

std::string normalize_nfc(std::string_view text) {
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  if (is_ascii(text)) return std::string(text);
  std::vector<utf8proc_int32_t> code_points;
  code_points.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    i += step.length;
    if (step.code_point < 0xC0) {  // nothing below U+00C0 decomposes
      code_points.push_back(static_cast<utf8proc_int32_t>(step.code_point));
      continue;
    }
    std::array<utf8proc_int32_t, 32> buffer;  // the longest canonical decomposition has 4 code points
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(step.code_point), buffer.data(),
                                               buffer.size(), kOptions, nullptr);
    if (count < 0 || static_cast<size_t>(count) > buffer.size()) {
      throw Error(ErrorKind::format, "text", utf8proc_errmsg(count));
    }
    code_points.insert(code_points.end(), buffer.begin(), buffer.begin() + count);
  }
  sort_combining_marks(code_points);
  const auto count = utf8proc_normalize_utf32(code_points.data(),
                                              static_cast<utf8proc_ssize_t>(code_points.size()), kOptions);
  if (count < 0) throw Error(ErrorKind::format, "text", utf8proc_errmsg(count));
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    append_utf8(out, static_cast<char32_t>(code_points[static_cast<size_t>(i)]));
  }
  return out;
}

}  // namespace keysieve
