#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "keysieve/text_codec.h"

namespace keysieve {

// One needle in a haystack, as the model sees it: a chat whose user message is an instruction, prose with the
// sentence "The secret code is NNNN." in its middle somewhere, and the question.
struct NeedlePrompt {
  std::vector<int32_t> tokens;  // the rendered chat, ready for the answer
  size_t document_tokens = 0;   // of these, the ones before the question
  std::string code;             // four digits
  double depth = 0;  // where the code's sentence begins, as a share of the tokens before the question
  std::vector<int32_t> answer;  // "The secret code is NNNN" as the model would spell it, for teacher forcing
  size_t code_begin = 0;        // the first token of `answer` that belongs to the code
};

struct NeedleSpec {
  size_t tokens = 4096;  // of the prompt; kept within 1%
  double depth = 0.5;    // wanted, 0 to 1; the sentence goes to the nearest end of a sentence
  size_t start = 0;      // byte of the haystack where the prose begins (moved to the next sentence)
  std::string code = "7392";
};

// Throws Error{mismatch} where the haystack has too little text after `start` (it is not repeated: repeated
// prose is easier than prose) or the prompt has no room for any.
NeedlePrompt make_needle_prompt(const TextCodec& codec, std::string_view haystack, const NeedleSpec& spec);

// The spec of trial `trial` of `trials`: depths spread evenly, prose and code drawn from `seed`.
NeedleSpec needle_spec(size_t tokens, size_t trial, size_t trials, size_t haystack_bytes, uint64_t seed);

// Whether an answer names the code: its digits, not inside a longer number.
bool names_code(std::string_view answer, std::string_view code);

}  // namespace keysieve
