#include "eval/token_windows.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "keysieve/error.h"

namespace keysieve {
namespace {

bool starts_character(char c) { return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u; }

// The first `window` tokens of `text`, fewer if it has no more. Encodes no more of it than needed.
std::vector<int32_t> first_tokens(const TextCodec& codec, std::string_view text, size_t window) {
  for (size_t bytes = window * 6;; bytes *= 2) {
    size_t stop = std::min(text.size(), bytes);
    while (stop < text.size() && !starts_character(text[stop])) ++stop;
    std::vector<int32_t> ids = codec.encode(text.substr(0, stop), false);
    // The token at the cut may be half a word, so one more is asked for.
    if (ids.size() > window || stop == text.size()) {
      ids.resize(std::min(ids.size(), window));
      return ids;
    }
  }
}

}  // namespace

std::vector<std::vector<int32_t>> token_windows(const TextCodec& codec, std::span<const std::string> texts,
                                                size_t window, size_t windows) {
  if (texts.empty() || windows == 0 || window < 8) {
    throw Error(ErrorKind::usage, "windows",
                fmt::format("{} texts, {} windows of {} tokens", texts.size(), windows, window),
                "at least one text and one window of 8 tokens");
  }
  std::vector<std::vector<int32_t>> result;
  for (size_t f = 0; f < texts.size(); ++f) {
    const size_t share = (f + 1) * windows / texts.size() - f * windows / texts.size();
    for (size_t i = 0; i < share; ++i) {
      const std::string_view text(texts[f]);
      const size_t part = text.size() / share;
      size_t begin = i * part;
      while (begin < text.size() && !starts_character(text[begin])) ++begin;
      const size_t end = i + 1 == share ? text.size() : (i + 1) * part;
      std::vector<int32_t> ids = first_tokens(codec, text.substr(begin, end - begin), window);
      if (ids.size() < window) {
        throw Error(ErrorKind::mismatch, fmt::format("text {}", f + 1),
                    fmt::format("{} tokens for a window", ids.size()),
                    fmt::format("{} windows of {} tokens", share, window),
                    "give a longer text, or lower --window or --windows");
      }
      result.push_back(std::move(ids));
    }
  }
  return result;
}

std::vector<std::vector<int32_t>> consecutive_windows(const TextCodec& codec, std::string_view text,
                                                      size_t window, size_t windows) {
  if (window < 8) throw Error(ErrorKind::usage, "window", fmt::format("{} tokens", window), "at least 8");
  const std::vector<int32_t> start = codec.encode_prompt("");
  std::vector<int32_t> ids = codec.encode(text, false);
  ids.insert(ids.begin(), start.begin(), start.end());
  const size_t whole = ids.size() / window;
  if (whole == 0) {
    throw Error(ErrorKind::mismatch, "text", fmt::format("{} tokens", ids.size()),
                fmt::format("a window of {}", window), "give a longer text, or lower --window");
  }
  std::vector<std::vector<int32_t>> result;
  for (size_t i = 0; i < (windows == 0 ? whole : std::min(windows, whole)); ++i) {
    const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(i * window);
    result.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(window));
    if (!start.empty()) result.back().front() = start.front();
  }
  return result;
}

}  // namespace keysieve
