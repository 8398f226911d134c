#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "keysieve/text_codec.h"

namespace keysieve {

// `windows` stretches of `window` tokens, shared out evenly over the texts and spread evenly within each,
// none overlapping another. Throws Error{mismatch} with the numbers where a text is too short, Error{usage}
// for no texts, no windows or windows of fewer than 8 tokens.
std::vector<std::vector<int32_t>> token_windows(const TextCodec& codec, std::span<const std::string> texts,
                                                size_t window, size_t windows);

}  // namespace keysieve
