#pragma once

#include <charconv>
#include <cstddef>
#include <string_view>
#include <system_error>

#include "keysieve/error.h"

namespace keysieve {

// A number above 0 from a benchmark tool's command line. Throws Error{usage} naming `option`.
inline size_t parse_size(std::string_view option, std::string_view text) {
  size_t value = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end != text.data() + text.size() || value == 0)
    throw Error(ErrorKind::usage, option, text, "a number above 0");
  return value;
}

}  // namespace keysieve
