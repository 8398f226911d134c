#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/needle_task.h"
#include "keysieve/text_codec.h"

namespace keysieve {

// One needle in a haystack, as the model sees it: a chat whose user message is an instruction, prose with the
// needle's sentences between its own, and the question.
struct NeedlePrompt {
  std::vector<int32_t> tokens;     // the rendered chat, ready for the answer
  size_t document_tokens = 0;      // of these, the ones before the question
  std::vector<std::string> codes;  // four digits each
  double depth = 0;  // where the (first) code's sentence begins, as a share of the tokens before the question
  std::vector<int32_t> answer;  // the task's answer as the model would spell it, for teacher forcing
  std::vector<bool> is_code;    // [answer] the tokens that spell the codes
};

struct NeedleSpec {
  size_t tokens = 4096;  // of the prompt; kept within 1%
  double depth = 0.5;    // wanted, 0 to 1; each sentence goes to the nearest end of a sentence
  size_t start = 0;      // byte of the haystack where the prose begins (moved to the next sentence)
  std::string code = "7392";
  NeedleForm form = NeedleForm::code;
  uint64_t draw = 1;    // what else the task needs is drawn from this
  size_t question = 0;  // of those that share the text (needle_questions)
};

// Throws Error{mismatch} where the haystack has too little text after `start` (it is not repeated: repeated
// prose is easier than prose) or the prompt has no room for any.
NeedlePrompt make_needle_prompt(const TextCodec& codec, std::string_view haystack, const NeedleSpec& spec);

// The spec of trial `trial` of `trials`: depths spread evenly, prose and code drawn from `seed`. Trials that
// share a text follow each other, and their prompts begin alike.
NeedleSpec needle_spec(size_t tokens, size_t trial, size_t trials, size_t haystack_bytes, uint64_t seed,
                       NeedleForm form = NeedleForm::code);

// The prompt of trial `trial` of `trials` for a context of `context` tokens, prompt and answer together,
// which is more than needle_answer_tokens(form). Texts take turns, questions that share one stay with it.
// Throws as make_needle_prompt.
NeedlePrompt trial_prompt(const TextCodec& codec, std::span<const std::string> haystacks, size_t context,
                          size_t trial, size_t trials, uint64_t seed, NeedleForm form);

// Whether an answer names the code: its digits, not inside a longer number.
bool names_code(std::string_view answer, std::string_view code);
bool names_codes(std::string_view answer, std::span<const std::string> codes);  // all of them

}  // namespace keysieve
