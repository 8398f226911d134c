#pragma once

#include <string>
#include <system_error>

namespace keysieve {

// What the system says of an errno, without a number: "No space left on device".
inline std::string system_reason(int error) { return std::generic_category().message(error); }

}  // namespace keysieve
