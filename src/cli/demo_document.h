#pragma once

#include <string_view>

namespace keysieve::cli {

// About 4,000 tokens of plain prose written for this project: a year in the log of a harbour that never was.
// One sentence in its middle states a code that nothing else in it hints at.
std::string_view demo_document();

inline constexpr std::string_view kDemoQuestion = "What is the secret code?";
inline constexpr std::string_view kDemoFact = "7392";

}  // namespace keysieve::cli
