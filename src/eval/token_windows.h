#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "keysieve/text_codec.h"

namespace keysieve {

// `windows` stretches of `window` tokens, shared out evenly over the texts and spread evenly within each,
// none overlapping another. Throws Error{mismatch} with the numbers where a text is too short, Error{usage}
// for no texts, no windows or windows of fewer than 8 tokens.
std::vector<std::vector<int32_t>> token_windows(const TextCodec& codec, std::span<const std::string> texts,
                                                size_t window, size_t windows);

// The text in consecutive windows, the first of them where `windows` is not 0 and what is left over dropped:
// what llama.cpp's perplexity tool reads. Where the model begins sequences with a token of its own, that
// takes the place of each window's first, as it does there. Throws Error{mismatch} for a text of less than
// one window, Error{usage} for a window of fewer than 8 tokens.
std::vector<std::vector<int32_t>> consecutive_windows(const TextCodec& codec, std::string_view text,
                                                      size_t window, size_t windows);

}  // namespace keysieve
