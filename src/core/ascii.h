#pragma once

namespace keysieve {

// Whatever the locale.
constexpr bool is_ascii_digit(char letter) { return letter >= '0' && letter <= '9'; }

}  // namespace keysieve
