#include "eval/needle_answer.h"

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "eval/scoring.h"
#include "model/forward.h"

namespace keysieve {

std::string greedy_answer(SequenceState& state, const TextCodec& codec, size_t most) {
  const std::vector<int32_t>& ends = codec.end_tokens();
  std::vector<int32_t> ids;
  int32_t next = greedy_choice(state.last_logits());
  while (ids.size() < most && !std::binary_search(ends.begin(), ends.end(), next)) {
    ids.push_back(next);
    if (ids.size() == most || state.position() == state.context()) break;
    forward(state, {&next, 1});
    next = greedy_choice(state.last_logits());
  }
  return codec.decode(ids, true);
}

std::optional<CodeLikelihood> code_likelihood(
    SequenceState& state, const NeedlePrompt& prompt,
    const std::function<void(size_t predicted, std::span<const float> logits)>& on_logits) {
  const size_t first = prompt.tokens.size();
  if (!state.truncate(first)) return std::nullopt;
  if (state.context() - first < prompt.answer.size()) return std::nullopt;
  ForwardOptions options;
  options.logits = Logits::all;
  double sum = 0;
  bool greedy = true;
  options.on_logits = [&](size_t position, size_t rows, std::span<const float> values) {
    const size_t vocabulary = values.size() / rows;
    for (size_t r = 0; r < rows; ++r) {
      const size_t predicted = position + r + 1 - first;  // index in `answer` of the token this row predicts
      if (predicted >= prompt.answer.size()) continue;
      const std::span<const float> row = values.subspan(r * vocabulary, vocabulary);
      if (on_logits) on_logits(predicted, row);
      if (!prompt.is_code[predicted]) continue;
      sum += negative_log_likelihood(row, prompt.answer[predicted]);
      greedy = greedy && greedy_choice(row) == prompt.answer[predicted];
    }
  };
  prefill(state, prompt.answer, options);
  const auto codes = std::count(prompt.is_code.begin(), prompt.is_code.end(), true);
  return CodeLikelihood{.nll = sum / static_cast<double>(codes), .greedy = greedy};
}

}  // namespace keysieve
