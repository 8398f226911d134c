#include "eval/needle_prompt.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <span>

#include "core/ascii.h"
#include "eval/statistics.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr std::string_view kBefore = "Read the following text and answer the question at the end.\n\n";

// Ends of sentences: the byte after ". ", ".\n" and the like, ascending; 0 and the end count.
std::vector<size_t> sentence_starts(std::string_view text) {
  std::vector<size_t> starts{0};
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    const bool stop = text[i] == '.' || text[i] == '!' || text[i] == '?';
    if (stop && (text[i + 1] == ' ' || text[i + 1] == '\n')) starts.push_back(i + 2);
  }
  starts.push_back(text.size());
  return starts;
}

size_t nearest(const std::vector<size_t>& ascending, size_t wanted) {
  const auto above = std::lower_bound(ascending.begin(), ascending.end(), wanted);
  if (above == ascending.end()) return ascending.back();
  if (above == ascending.begin() || *above - wanted < wanted - *(above - 1)) return *above;
  return *(above - 1);
}

struct Rendered {
  std::vector<int32_t> tokens;
  size_t needle_token = 0;  // about where the code's sentence begins
  size_t document_tokens = 0;
};

size_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  const size_t limit = std::min(a.size(), b.size());
  size_t count = 0;
  while (count < limit && a[count] == b[count]) ++count;
  return count;
}

// Positions in `prose` where the task's sentences go, [plants].
std::vector<size_t> places(std::string_view prose, const NeedleTask& task) {
  const std::vector<size_t> starts = sentence_starts(prose);
  std::vector<size_t> cuts;
  for (const NeedleTask::Plant& plant : task.plants) {
    const double wanted = plant.depth * static_cast<double>(prose.size());
    cuts.push_back(nearest(starts, static_cast<size_t>(std::lround(wanted))));
  }
  return cuts;
}

Rendered render(const TextCodec& codec, std::string_view prose, const NeedleTask& task) {
  const std::vector<size_t> cuts = places(prose, task);
  std::vector<size_t> order(cuts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return std::pair(cuts[a], a) < std::pair(cuts[b], b); });
  std::string document(kBefore);
  std::string before_needle;
  size_t at = 0;
  for (const size_t i : order) {
    document += prose.substr(at, cuts[i] - at);
    at = cuts[i];
    if (i == task.asked) before_needle = document;
    document += task.plants[i].sentence + " ";
  }
  document += prose.substr(at);
  const std::array chat{Message{"user", document + "\n\nQuestion: " + task.question}};
  Rendered result;
  result.tokens = codec.encode_chat(chat);
  // Where parts begin is told by what stays the same when they are replaced.
  const std::array without{Message{"user", before_needle + "#"}};
  result.needle_token = common_prefix(result.tokens, codec.encode_chat(without));
  const std::array unasked{Message{"user", document + "\n\n#"}};
  result.document_tokens = common_prefix(result.tokens, codec.encode_chat(unasked));
  return result;
}

// The tokens of `answer` that spell a code: those that change when the code does.
std::vector<bool> code_tokens(const TextCodec& codec, const NeedleTask& task,
                              std::span<const int32_t> answer) {
  std::vector<bool> is_code(answer.size(), false);
  for (const std::string& code : task.codes) {
    std::string other = task.answer;
    other.replace(other.find(code), code.size(), "#");
    const std::vector<int32_t> changed = codec.encode(other, false);
    const size_t begin = common_prefix(answer, changed);
    size_t same_end = 0;
    while (same_end < std::min(answer.size(), changed.size()) - begin &&
           answer[answer.size() - 1 - same_end] == changed[changed.size() - 1 - same_end]) {
      ++same_end;
    }
    std::fill(is_code.begin() + static_cast<ptrdiff_t>(begin),
              is_code.end() - static_cast<ptrdiff_t>(same_end), true);
  }
  return is_code;
}

}  // namespace

NeedlePrompt make_needle_prompt(const TextCodec& codec, std::string_view haystack, const NeedleSpec& spec) {
  std::string_view prose = haystack.substr(std::min(spec.start, haystack.size()));
  const std::vector<size_t> early = sentence_starts(prose.substr(0, 4000));
  if (spec.start > 0 && early.size() > 2) prose.remove_prefix(early[1]);
  const auto task_of = [&](size_t question) {
    return make_needle_task(spec.form, spec.code, spec.depth, spec.draw, question);
  };
  const NeedleTask task = task_of(spec.question);
  // The prose must not depend on which of its questions is asked.
  const NeedleTask first_task = task_of(0);
  const size_t frame = render(codec, "", first_task).tokens.size();
  if (frame >= spec.tokens) {
    throw Error(ErrorKind::mismatch, "needle context", fmt::format("{} tokens", spec.tokens),
                fmt::format("more than the {} of the question alone", frame), "use longer --contexts");
  }
  // Bytes of prose are adjusted until the tokens are right: the number of tokens in a text is known only
  // after encoding it, and each step lands closer because tokens per byte barely change.
  size_t bytes = (spec.tokens - frame) * 4;
  Rendered best;
  std::string_view best_prose;
  size_t best_miss = spec.tokens;
  for (int step = 0; step < 12 && best_miss > 0; ++step) {
    const std::string_view part = prose.substr(0, bytes);
    Rendered found = render(codec, part, first_task);
    const size_t count = found.tokens.size();
    const size_t miss = count > spec.tokens ? count - spec.tokens : spec.tokens - count;
    if (miss < best_miss) {
      best = std::move(found);
      best_prose = part;
      best_miss = miss;
    }
    if (part.size() < bytes && count < spec.tokens) break;  // no text left
    const double per_token = static_cast<double>(part.size()) / static_cast<double>(count - frame + 1);
    const auto change = static_cast<size_t>(std::lround(per_token * static_cast<double>(miss)));
    bytes = count > spec.tokens ? bytes - std::min(bytes, std::max<size_t>(change, 1))
                                : bytes + std::max<size_t>(change, 1);
    // Not inside a character.
    while (bytes < prose.size() && (static_cast<unsigned char>(prose[bytes]) & 0xc0u) == 0x80u) ++bytes;
  }
  if (static_cast<double>(best_miss) > 0.01 * static_cast<double>(spec.tokens)) {
    throw Error(ErrorKind::mismatch, "haystack",
                fmt::format("text for {} tokens from byte {}", best.tokens.size(), spec.start),
                fmt::format("{}", spec.tokens), "give a longer --haystack or shorter --contexts");
  }
  if (spec.question > 0) best = render(codec, best_prose, task);
  NeedlePrompt prompt;
  prompt.document_tokens = best.document_tokens;
  prompt.depth = static_cast<double>(best.needle_token) / static_cast<double>(best.document_tokens);
  prompt.tokens = std::move(best.tokens);
  prompt.codes = task.codes;
  prompt.answer = codec.encode(task.answer, false);
  prompt.is_code = code_tokens(codec, task, prompt.answer);
  return prompt;
}

NeedleSpec needle_spec(size_t tokens, size_t trial, size_t trials, size_t haystack_bytes, uint64_t seed,
                       NeedleForm form) {
  const size_t questions = needle_questions(form);
  SplitMix random(seed * 1000003 + trial / questions * 7919 + tokens);
  NeedleSpec spec;
  spec.tokens = tokens;
  spec.question = trial % questions;
  spec.depth = (static_cast<double>(trial) + 0.5) / static_cast<double>(trials);
  // Six bytes a token is more than prose needs.
  const size_t needed = tokens * 6;
  spec.start = haystack_bytes > needed ? random.below(haystack_bytes - needed) : 0;
  spec.code = fmt::format("{}", 1000 + random.below(9000));
  spec.form = form;
  spec.draw = random.next();
  return spec;
}

NeedlePrompt trial_prompt(const TextCodec& codec, std::span<const std::string> haystacks, size_t context,
                          size_t trial, size_t trials, uint64_t seed, NeedleForm form) {
  const std::string& haystack = haystacks[trial / needle_questions(form) % haystacks.size()];
  const size_t tokens = context - needle_answer_tokens(form);
  return make_needle_prompt(codec, haystack, needle_spec(tokens, trial, trials, haystack.size(), seed, form));
}

bool names_code(std::string_view answer, std::string_view code) {
  for (size_t at = answer.find(code); at != std::string_view::npos; at = answer.find(code, at + 1)) {
    const size_t end = at + code.size();
    if ((at == 0 || !is_ascii_digit(answer[at - 1])) &&
        (end == answer.size() || !is_ascii_digit(answer[end])))
      return true;
  }
  return false;
}

bool names_codes(std::string_view answer, std::span<const std::string> codes) {
  return std::all_of(codes.begin(), codes.end(),
                     [&](const std::string& code) { return names_code(answer, code); });
}

}  // namespace keysieve
