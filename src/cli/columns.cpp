#include "cli/columns.h"

#include <wchar.h>

#include <algorithm>
#include <cstdint>

namespace keysieve::cli {
namespace {

struct Character {
  size_t bytes;
  size_t columns;
};

// The character at the start of a text that is not empty; a byte that is no UTF-8 counts as one column.
Character first_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  size_t length = lead < 0x80 ? 1 : lead < 0xc0 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf8 ? 4 : 0;
  if (length == 0 || length > text.size()) return {1, 1};
  uint32_t code = length == 1 ? lead : lead & (0x7fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {1, 1};
    code = (code << 6) | (byte(i) & 0x3fu);
  }
  // wcwidth goes by the locale main() has set; it gives -1 for what cannot be shown.
  const int columns = wcwidth(static_cast<wchar_t>(code));
  return {length, columns < 0 ? 1 : static_cast<size_t>(columns)};
}

// Bytes of the longest beginning of `text` that fits `width` columns; at least one character.
size_t fitting(std::string_view text, size_t width) {
  size_t bytes = 0;
  size_t columns = 0;
  while (bytes < text.size()) {
    const Character next = first_character(text.substr(bytes));
    if (bytes > 0 && columns + next.columns > width) break;
    bytes += next.bytes;
    columns += next.columns;
  }
  return bytes;
}

void wrap_line(std::string_view line, size_t width, std::vector<std::string>& out) {
  while (true) {
    size_t end = fitting(line, width);
    if (end == line.size()) {
      out.emplace_back(line);
      return;
    }
    size_t resume = end;
    if (line[end] == ' ') {
      resume = end + 1;
    } else if (const size_t space = line.substr(0, end).rfind(' ');
               space != std::string_view::npos && space > 0) {
      end = space;
      resume = space + 1;
    }
    out.emplace_back(line.substr(0, end));
    line.remove_prefix(resume);
  }
}

}  // namespace

size_t display_width(std::string_view text) {
  size_t columns = 0;
  while (!text.empty()) {
    const Character next = first_character(text);
    columns += next.columns;
    text.remove_prefix(next.bytes);
  }
  return columns;
}

std::vector<std::string> wrap(std::string_view text, size_t width) {
  std::string spaced;
  for (const char c : text) {
    if (c == '\t') {
      spaced += "    ";
    } else {
      spaced += c;
    }
  }
  std::vector<std::string> lines;
  std::string_view rest = spaced;
  while (true) {
    const size_t end = rest.find('\n');
    wrap_line(rest.substr(0, end), std::max<size_t>(width, 1), lines);
    if (end == std::string_view::npos) return lines;
    rest.remove_prefix(end + 1);
  }
}

std::string side_by_side(std::string_view left, std::string_view right, size_t width) {
  const size_t column = width > 23 ? (width - 3) / 2 : 10;
  const std::vector<std::string> a = wrap(left, column);
  const std::vector<std::string> b = wrap(right, column);
  std::string out;
  for (size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    const std::string l = i < a.size() ? a[i] : "";
    out += l;
    out.append(column - std::min(column, display_width(l)), ' ');
    out += " | ";
    if (i < b.size()) out += b[i];
    out += '\n';
  }
  return out;
}

}  // namespace keysieve::cli
