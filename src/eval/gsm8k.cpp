#include "eval/gsm8k.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>

#include "core/ascii.h"
#include "core/cancel.h"
#include "core/json.h"
#include "eval/scoring.h"
#include "eval/statistics.h"
#include "keysieve/error.h"
#include "model/forward.h"

namespace keysieve {
namespace {

constexpr std::string_view kMark = "####";
constexpr std::string_view kPhrase = "The answer is";

// The number that starts at `at`, a digit: its value, and where it ends.
std::pair<std::optional<double>, size_t> number_at(std::string_view text, size_t at) {
  std::string digits;
  size_t end = at;
  for (; end < text.size(); ++end) {
    const bool inside = end + 1 < text.size() && is_ascii_digit(text[end + 1]);
    if (text[end] == ',' && inside) continue;
    if (text[end] == '.' && inside && digits.find('.') == std::string::npos) {
      digits += '.';
      continue;
    }
    if (!is_ascii_digit(text[end])) break;
    digits += text[end];
  }
  const bool directly = at > 0 && text[at - 1] == '-';
  const bool currency = at > 1 && text[at - 1] == '$' && text[at - 2] == '-';
  double value = 0;
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || stop != digits.data() + digits.size()) return {std::nullopt, end};
  return {directly || currency ? -value : value, end};
}

std::optional<double> first_number(std::string_view text) {
  const auto digit = std::find_if(text.begin(), text.end(), is_ascii_digit);
  if (digit == text.end()) return std::nullopt;
  return number_at(text, static_cast<size_t>(digit - text.begin())).first;
}

std::optional<double> last_number(std::string_view text) {
  std::optional<double> last;
  for (size_t at = 0; at < text.size();) {
    if (!is_ascii_digit(text[at])) {
      ++at;
      continue;
    }
    const auto [value, end] = number_at(text, at);
    if (value) last = value;
    at = end;
  }
  return last;
}

std::string without_calculator_notes(std::string_view answer) {
  std::string out;
  while (!answer.empty()) {
    const size_t open = answer.find("<<");
    const size_t close = open == std::string_view::npos ? open : answer.find(">>", open);
    if (close == std::string_view::npos) return out + std::string(answer);
    out += answer.substr(0, open);
    answer.remove_prefix(close + 2);
  }
  return out;
}

struct Answered {
  bool correct = false;
  bool cut_short = false;
  size_t tokens = 0;
};

class Run {
 public:
  Run(const EvalSetting& setting, const WordProblemOptions& options)
      : options_(options), codec_(setting.language_model().text()), state_(setting.sequence(options.mode)) {}

  // nullopt: cancelled
  std::optional<Answered> solve(const WordProblem& problem) {
    const std::vector<int32_t> prompt = codec_.encode_prompt(word_problem_prompt(options_.shots, problem));
    if (prompt.size() >= state_.context()) {
      throw Error(ErrorKind::mismatch, "gsm8k prompt", fmt::format("{} tokens", prompt.size()),
                  fmt::format("fewer than {}, the context", state_.context()), "lower --shots");
    }
    if (!read(prompt)) return std::nullopt;
    std::vector<int32_t> ids;
    Answered answered;
    std::string text;
    while (true) {
      const int32_t next = greedy_choice(state_.last_logits());
      const std::vector<int32_t>& ends = codec_.end_tokens();
      if (std::binary_search(ends.begin(), ends.end(), next)) break;
      ids.push_back(next);
      text = codec_.decode(ids, true);
      const size_t stop = std::min(text.find("\n\n"), text.find("Question:"));
      if (stop != std::string::npos) {
        text.resize(stop);
        break;
      }
      answered.cut_short = ids.size() >= options_.max_tokens || state_.position() >= state_.context();
      if (answered.cut_short) break;
      forward(state_, {&next, 1});
      held_.push_back(next);
      if (is_cancelled(options_.cancel)) return std::nullopt;
    }
    answered.tokens = prompt.size() + ids.size();
    answered.correct = extract_answer(text) == extract_answer(problem.answer);
    return answered;
  }

 private:
  // Makes the sequence `prompt`, from where it differs from what is held. False: cancelled.
  bool read(std::span<const int32_t> prompt) {
    const auto [at, ignored] = std::mismatch(held_.begin(), held_.end(), prompt.begin(), prompt.end());
    size_t same = std::min(static_cast<size_t>(at - held_.begin()), prompt.size() - 1);
    if (!state_.cache().keeps_everything() || !state_.truncate(same)) {
      state_.clear();
      same = 0;
    }
    const std::span<const int32_t> rest = prompt.subspan(same);
    held_.assign(prompt.begin(), prompt.end());
    return prefill(state_, rest, {}, [&](size_t) { return !is_cancelled(options_.cancel); }) == rest.size();
  }

  const WordProblemOptions& options_;
  const TextCodec& codec_;
  SequenceState state_;
  std::vector<int32_t> held_;  // the tokens in `state_`
};

}  // namespace

std::vector<WordProblem> parse_word_problems(std::string_view text, const std::string& subject) {
  std::vector<WordProblem> problems;
  size_t line_number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{} line {}", subject, line_number);
    const Json json = parse_json(line, where);
    WordProblem problem{json_require<std::string>(json, "question", where),
                        json_require<std::string>(json, "answer", where)};
    if (problem.answer.find(kMark) == std::string::npos || !extract_answer(problem.answer)) {
      throw Error(ErrorKind::format, where, "an answer without a number", "one that ends with #### NUMBER");
    }
    problems.push_back(std::move(problem));
  }
  return problems;
}

std::optional<double> extract_answer(std::string_view text) {
  for (const std::string_view mark : {kMark, kPhrase}) {
    const size_t at = text.rfind(mark);
    if (at == std::string_view::npos) continue;
    if (const std::optional<double> value = first_number(text.substr(at + mark.size()))) return value;
  }
  return last_number(text);
}

std::string word_problem_prompt(std::span<const WordProblem> shots, const WordProblem& problem) {
  std::string prompt;
  for (const WordProblem& shot : shots) {
    prompt +=
        fmt::format("Question: {}\nAnswer: {}\n\n", shot.question, without_calculator_notes(shot.answer));
  }
  return prompt + fmt::format("Question: {}\nAnswer:", problem.question);
}

std::optional<WordProblemResult> run_word_problems(const EvalSetting& setting,
                                                   const WordProblemOptions& options) {
  if (options.problems.empty()) throw Error(ErrorKind::usage, "gsm8k", "no problems", "at least one");
  setting.require(options.mode);
  Run run(setting, options);
  WordProblemResult result;
  const size_t budget = setting.budget(options.mode);
  for (size_t i = 0; i < options.problems.size(); ++i) {
    const std::string key = fmt::format("problem {}", i);
    Answered answered;
    if (const Json* known = options.partial ? options.partial->find(key) : nullptr) {
      answered = {json_require<bool>(*known, "correct", key), json_require<bool>(*known, "cut_short", key),
                  json_require<size_t>(*known, "tokens", key)};
    } else {
      const std::optional<Answered> solved = run.solve(options.problems[i]);
      if (!solved) return std::nullopt;
      answered = *solved;
      if (options.partial) {
        options.partial->put(
            key,
            {{"correct", answered.correct}, {"cut_short", answered.cut_short}, {"tokens", answered.tokens}});
      }
    }
    ++result.total;
    result.correct += answered.correct ? 1 : 0;
    result.cut_short += answered.cut_short ? 1 : 0;
    result.over_budget += budget > 0 && answered.tokens > budget ? 1 : 0;
    result.sequence_tokens += static_cast<double>(answered.tokens);
    if (options.on_progress) options.on_progress(i + 1, options.problems.size());
  }
  result.sequence_tokens /= static_cast<double>(result.total);
  result.wilson95 = wilson95(result.correct, result.total);
  return result;
}

}  // namespace keysieve
