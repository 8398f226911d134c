#include "text/splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <utility>

#include "keysieve/error.h"
#include "text/utf8.h"

namespace keysieve {

namespace {

// A match of a sane pattern takes a few steps per byte; a pattern that backtracks exponentially hits this
// after about a tenth of a second.
constexpr uint32_t kMatchLimit = 10'000'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;
constexpr size_t kJitStackBytes = 1 << 20;
// The longest split pattern on the Hub (DeepSeek) has under 2 KB.
constexpr size_t kLongestPattern = 16 * 1024;

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};
struct FreeData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeStack {
  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};

std::string pcre_message(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

[[noreturn]] void refuse_pattern(std::string_view subject, std::string_view pattern, std::string_view why) {
  throw Error(ErrorKind::unsupported, subject,
              fmt::format("split pattern {}: {}", pattern.substr(0, 200), why),
              "a pattern that PCRE2 reads as Oniguruma does", "use a GGUF file of the model");
}

}  // namespace

std::string translate_pattern(std::string_view pattern, std::string_view subject) {
  // White space is the Unicode property White_Space. PCRE2's own \s adds U+180E, and its \w lacks combining
  // marks.
  constexpr std::string_view kSpace = "\\p{Z}\\t-\\r\\x{85}";
  constexpr std::string_view kWord = "\\p{L}\\p{M}\\p{N}\\p{Pc}";
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's' || escaped == 'w') {
        const std::string_view members = escaped == 's' ? kSpace : kWord;
        out += in_class ? std::string(members) : fmt::format("[{}]", members);
      } else if (!in_class && (escaped == 'S' || escaped == 'W')) {
        out += fmt::format("[^{}]", escaped == 'S' ? kSpace : kWord);
      } else if (escaped == 'u' && i + 4 < pattern.size()) {
        out += fmt::format("\\x{{{}}}", pattern.substr(i + 1, 4));
        i += 4;
      } else if (escaped == 'h' || escaped == 'H' || escaped == 'W' || escaped == 'R' || escaped == 'X') {
        refuse_pattern(subject, pattern, fmt::format("\\{} in this place", escaped));
      } else {
        out += c;
        out += escaped;
      }
      continue;
    }
    if (in_class) {
      if (c == '&' && pattern.substr(i, 2) == "&&") refuse_pattern(subject, pattern, "a class intersection");
      if (c == '[' && pattern.substr(i, 2) != "[:")
        refuse_pattern(subject, pattern, "a class inside a class");
      if (c == ']') in_class = false;
    } else if (c == '[') {
      in_class = true;
      out += c;
      // A bracket right after the opening one is a member, not the end.
      if (pattern.substr(i + 1, 1) == "^") out += pattern[++i];
      if (pattern.substr(i + 1, 1) == "]") out += pattern[++i];
      continue;
    }
    out += c;
  }
  return out;
}

struct MatchMemory::Impl {
  std::unique_ptr<pcre2_match_context, FreeContext> context{pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_match_data, FreeData> data{pcre2_match_data_create(1, nullptr)};
  std::unique_ptr<pcre2_jit_stack, FreeStack> stack{
      pcre2_jit_stack_create(32 * 1024, kJitStackBytes, nullptr)};
};

MatchMemory::MatchMemory() : impl_(std::make_unique<Impl>()) {
  if (!impl_->context || !impl_->data) throw Error(ErrorKind::resource, "tokenizer", "out of memory");
  pcre2_set_match_limit(impl_->context.get(), kMatchLimit);
  pcre2_set_depth_limit(impl_->context.get(), kMatchLimit);
  pcre2_set_heap_limit(impl_->context.get(), kHeapLimitKib);
  // Without a stack of its own the JIT uses 32 KB of the machine stack: slower to fail over, never wrong.
  if (impl_->stack) pcre2_jit_stack_assign(impl_->context.get(), nullptr, impl_->stack.get());
}
MatchMemory::MatchMemory(MatchMemory&&) noexcept = default;
MatchMemory::~MatchMemory() = default;

struct Splitter::Code {
  std::unique_ptr<pcre2_code, FreeCode> code;
};

Splitter::Splitter(const SplitStep& step, std::string_view subject)
    : code_(std::make_unique<Code>()), behavior_(step.behavior), invert_(step.invert), subject_(subject) {
  if (step.pattern.size() > kLongestPattern) refuse_pattern(subject, step.pattern, "longer than 16 KB");
  if (!is_valid_utf8(step.pattern)) refuse_pattern(subject, "", "not UTF-8");
  const std::string pattern = translate_pattern(step.pattern, subject);
  const std::unique_ptr<pcre2_compile_context, FreeContext> context(pcre2_compile_context_create(nullptr));
  if (!context) throw Error(ErrorKind::resource, subject, "out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int code = 0;
  PCRE2_SIZE offset = 0;
  code_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code,
                                  &offset, context.get()));
  if (!code_->code)
    refuse_pattern(subject, step.pattern, fmt::format("{} at byte {}", pcre_message(code), offset));
  // A build of PCRE2 without JIT interprets the pattern: the same matches, several times slower.
  pcre2_jit_compile(code_->code.get(), PCRE2_JIT_COMPLETE);
}
Splitter::Splitter(Splitter&&) noexcept = default;
Splitter::~Splitter() = default;

std::vector<Splitter::Match> Splitter::find(std::string_view text, MatchMemory& memory) const {
  std::vector<Match> found;
  pcre2_match_context* context = memory.impl_->context.get();
  pcre2_match_data* data = memory.impl_->data.get();
  size_t covered = 0;
  for (size_t at = 0; at <= text.size();) {
    const auto match = [&](uint32_t options) {
      return pcre2_match(code_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                         options | PCRE2_NO_UTF_CHECK, data, context);
    };
    int code = match(0);
    if (code == PCRE2_ERROR_JIT_STACKLIMIT) code = match(PCRE2_NO_JIT);
    if (code == PCRE2_ERROR_NOMATCH) break;
    if (code < 0) {
      throw Error(ErrorKind::resource, subject_,
                  fmt::format("a split pattern failed ({})", pcre_message(code)),
                  "a pattern that needs no heavy backtracking", "use a GGUF file of the model");
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data);
    // \K in a lookaround may put the start behind the end or before this position.
    const size_t start = std::max<size_t>(range[0], covered);
    const size_t end = std::max<size_t>(range[1], start);
    if (start > covered) found.push_back({text.substr(covered, start - covered), false});
    found.push_back({text.substr(start, end - start), true});
    covered = end;
    at = end;
    if (range[0] >= range[1]) at += at < text.size() ? utf8_step(text, at).length : 1;
  }
  if (covered < text.size()) found.push_back({text.substr(covered), false});
  if (invert_) {
    for (Match& match : found) match.matched = !match.matched;
  }
  return found;
}

void Splitter::split(std::string_view text, MatchMemory& memory, std::vector<std::string_view>& out) const {
  const auto join = [](std::string_view first, std::string_view second) {
    return std::string_view(first.data(), first.size() + second.size());
  };
  std::vector<Match> matches = find(text, memory);
  std::vector<std::string_view> pieces;
  bool previous = false;
  switch (behavior_) {
    case SplitBehavior::removed:
      for (const Match& match : matches) {
        if (!match.matched) pieces.push_back(match.text);
      }
      break;
    case SplitBehavior::isolated:
      for (const Match& match : matches) pieces.push_back(match.text);
      break;
    case SplitBehavior::merged_with_previous:
    case SplitBehavior::contiguous:
      for (const Match& match : matches) {
        const bool merge =
            behavior_ == SplitBehavior::contiguous ? match.matched == previous : match.matched && !previous;
        if (merge && !pieces.empty()) {
          pieces.back() = join(pieces.back(), match.text);
        } else {
          pieces.push_back(match.text);
        }
        previous = match.matched;
      }
      break;
    case SplitBehavior::merged_with_next:
      for (auto match = matches.rbegin(); match != matches.rend(); ++match) {
        if (match->matched && !previous && !pieces.empty()) {
          pieces.back() = join(match->text, pieces.back());
        } else {
          pieces.push_back(match->text);
        }
        previous = match->matched;
      }
      std::reverse(pieces.begin(), pieces.end());
      break;
  }
  std::copy_if(pieces.begin(), pieces.end(), std::back_inserter(out),
               [](auto piece) { return !piece.empty(); });
}

}  // namespace keysieve
