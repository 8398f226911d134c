#include "eval/needle_prompt.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "eval/statistics.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr std::string_view kBefore = "Read the following text and answer the question at the end.\n\n";
constexpr std::string_view kAfter = "\n\nQuestion: What is the secret code? Answer with the number.";

bool is_digit(char c) { return c >= '0' && c <= '9'; }

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

Rendered render(const TextCodec& codec, std::string_view prose, size_t cut, std::string_view sentence) {
  // A space where the prose does not end a line there.
  const std::string_view left = prose.substr(0, cut);
  const std::string document = fmt::format("{}{}{}{}{}", kBefore, left, sentence, " ", prose.substr(cut));
  const std::array chat{Message{"user", document + std::string(kAfter)}};
  Rendered result;
  result.tokens = codec.encode_chat(chat);
  // Where parts begin is told by what stays the same when they are replaced.
  const std::array without{Message{"user", fmt::format("{}{}#", kBefore, left)}};
  result.needle_token = common_prefix(result.tokens, codec.encode_chat(without));
  const std::array unasked{Message{"user", document + "\n\n#"}};
  result.document_tokens = common_prefix(result.tokens, codec.encode_chat(unasked));
  return result;
}

}  // namespace

NeedlePrompt make_needle_prompt(const TextCodec& codec, std::string_view haystack, const NeedleSpec& spec) {
  std::string_view prose = haystack.substr(std::min(spec.start, haystack.size()));
  const std::vector<size_t> early = sentence_starts(prose.substr(0, 4000));
  if (spec.start > 0 && early.size() > 2) prose.remove_prefix(early[1]);
  const std::string sentence = fmt::format("The secret code is {}.", spec.code);
  const size_t frame = render(codec, "", 0, sentence).tokens.size();
  if (frame >= spec.tokens) {
    throw Error(ErrorKind::mismatch, "needle context", fmt::format("{} tokens", spec.tokens),
                fmt::format("more than the {} of the question alone", frame), "use longer --contexts");
  }
  // Bytes of prose are adjusted until the tokens are right: the number of tokens in a text is known only
  // after encoding it, and each step lands closer because tokens per byte barely change.
  size_t bytes = (spec.tokens - frame) * 4;
  Rendered best;
  size_t best_miss = spec.tokens;
  for (int step = 0; step < 12 && best_miss > 0; ++step) {
    const std::string_view part = prose.substr(0, bytes);
    const auto wanted = static_cast<size_t>(std::lround(spec.depth * static_cast<double>(part.size())));
    const Rendered found = render(codec, part, nearest(sentence_starts(part), wanted), sentence);
    const size_t count = found.tokens.size();
    const size_t miss = count > spec.tokens ? count - spec.tokens : spec.tokens - count;
    if (miss < best_miss) {
      best = found;
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
  NeedlePrompt prompt;
  prompt.document_tokens = best.document_tokens;
  prompt.depth = static_cast<double>(best.needle_token) / static_cast<double>(best.document_tokens);
  prompt.tokens = std::move(best.tokens);
  prompt.code = spec.code;
  prompt.answer = codec.encode(fmt::format("The secret code is {}", spec.code), false);
  prompt.code_begin = common_prefix(prompt.answer, codec.encode("The secret code is #", false));
  return prompt;
}

NeedleSpec needle_spec(size_t tokens, size_t trial, size_t trials, size_t haystack_bytes, uint64_t seed) {
  SplitMix random(seed * 1000003 + trial * 7919 + tokens);
  NeedleSpec spec;
  spec.tokens = tokens;
  spec.depth = (static_cast<double>(trial) + 0.5) / static_cast<double>(trials);
  // Six bytes a token is more than prose needs.
  const size_t needed = tokens * 6;
  spec.start = haystack_bytes > needed ? random.below(haystack_bytes - needed) : 0;
  spec.code = fmt::format("{}", 1000 + random.below(9000));
  return spec;
}

bool names_code(std::string_view answer, std::string_view code) {
  for (size_t at = answer.find(code); at != std::string_view::npos; at = answer.find(code, at + 1)) {
    const size_t end = at + code.size();
    if ((at == 0 || !is_digit(answer[at - 1])) && (end == answer.size() || !is_digit(answer[end])))
      return true;
  }
  return false;
}

}  // namespace keysieve
