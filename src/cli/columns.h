#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace keysieve::cli {

// Columns a terminal uses for UTF-8 text: wide characters two, combining ones none.
size_t display_width(std::string_view text);

// Lines of at most `width` columns, broken at spaces where there are any; words longer than a line are cut
// between characters. Line breaks in the text stay.
std::vector<std::string> wrap(std::string_view text, size_t width);

// Two texts side by side in `width` columns, wrapped, with " | " between: one line per row, line breaks
// included.
std::string side_by_side(std::string_view left, std::string_view right, size_t width);

}  // namespace keysieve::cli
