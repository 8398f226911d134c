#include "train/text_windows.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "core/file_io.h"
#include "core/json.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

std::string fnv1a(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : bytes) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return fmt::format("{:016x}", hash);
}

std::vector<std::string> documents_of(const std::filesystem::path& file, std::string bytes) {
  if (file.extension() != ".jsonl") return {std::move(bytes)};
  std::vector<std::string> documents;
  size_t number = 0;
  for (size_t at = 0; at < bytes.size();) {
    const size_t end = std::min(bytes.find('\n', at), bytes.size());
    const std::string_view line(bytes.data() + at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string subject = fmt::format("{}, line {}", file.string(), number);
    documents.push_back(json_require<std::string>(parse_json(line, subject), "text", subject));
  }
  return documents;
}

std::string joined(std::vector<std::string> documents) {
  if (documents.size() == 1) return std::move(documents.front());
  std::string text;
  for (const std::string& document : documents) {
    if (!text.empty()) text += "\n\n";
    text += document;
  }
  return text;
}

// The window's tokens from text.substr(begin); fewer where `end` comes first. Encodes only as much text as
// needed: tokenising whole books for a few windows would take longer than the calibration.
std::vector<int32_t> take_window(std::string_view text, size_t begin, size_t end, const Tokenizer& tokenizer,
                                 size_t window) {
  for (size_t bytes = window * 6;; bytes *= 2) {
    size_t stop = std::min(end, begin + bytes);
    while (stop < end && !starts_character(text[stop])) ++stop;
    std::vector<int32_t> ids = tokenizer.encode(text.substr(begin, stop - begin), false);
    // A token more than needed: the one at the cut may be half a word.
    if (ids.size() > window) {
      ids.resize(window);
      return ids;
    }
    if (stop == end) return ids;
  }
}

[[noreturn]] void refuse(const std::string& subject, size_t found, size_t share, size_t window) {
  throw Error(ErrorKind::mismatch, subject, fmt::format("a stretch of {} tokens", found),
              fmt::format("{} windows of {} tokens from this file, {} in all", share, window, share * window),
              "give longer texts, or lower --windows or --window");
}

}  // namespace

size_t next_start(std::string_view text, size_t at) {
  if (at == 0) return 0;
  const size_t line = text.find('\n', at);
  if (line != std::string_view::npos && line - at < 2000) return line + 1;
  while (at < text.size() && !starts_character(text[at])) ++at;
  return at;
}

TrainingText read_training_text(const std::filesystem::path& file) {
  std::string bytes = read_text_file(file);
  TextSource source{file.filename().string(), bytes.size(), fnv1a(bytes), 0};
  return {std::move(source), documents_of(file, std::move(bytes))};
}

TextWindows read_text_windows(std::span<const std::filesystem::path> files, const Tokenizer& tokenizer,
                              size_t windows, size_t window) {
  if (files.empty() || windows == 0 || window == 0) {
    throw Error(ErrorKind::usage, "texts",
                fmt::format("{} files, {} windows of {} tokens", files.size(), windows, window),
                "at least one of each");
  }
  TextWindows result;
  for (size_t f = 0; f < files.size(); ++f) {
    auto [source, documents] = read_training_text(files[f]);
    const std::string text = joined(std::move(documents));
    source.windows = (f + 1) * windows / files.size() - f * windows / files.size();
    for (size_t i = 0; i < source.windows; ++i) {
      // Window i lies inside the i-th of equal parts of the text, a quarter into it where there is room: what
      // comes first in a book is its title page.
      const size_t part = text.size() / source.windows;
      const size_t part_end = i + 1 == source.windows ? text.size() : (i + 1) * part;
      std::vector<int32_t> ids =
          take_window(text, next_start(text, i * part + part / 4), part_end, tokenizer, window);
      if (ids.size() < window)
        ids = take_window(text, next_start(text, i * part), part_end, tokenizer, window);
      if (ids.size() < window) refuse(files[f].string(), ids.size(), source.windows, window);
      result.windows.push_back(std::move(ids));
    }
    result.sources.push_back(std::move(source));
  }
  return result;
}

}  // namespace keysieve
