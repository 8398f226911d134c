#pragma once

#include <string_view>

namespace keysieve::cli {

// About 4,000 tokens of plain prose written for this project: a year in the log of a harbour that never was.
// One sentence in its middle states a code that nothing else in it hints at.
std::string_view demo_document();

inline constexpr std::string_view kDemoQuestion = "What is the secret code?";
// How the question is put: a model this small answers from the text only when it is told to.
inline constexpr std::string_view kDemoBefore =
    "Read the following text and answer the question at the end.\n\n";
inline constexpr std::string_view kDemoAfter = "\nQuestion: What is the secret code? Answer with the number.";
inline constexpr std::string_view kDemoFact = "7392";

}  // namespace keysieve::cli
