#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace keysieve {

// How GPT-2 cuts text into words; ByteLevel steps with use_regex mean this pattern.
inline constexpr std::string_view kGpt2SplitPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// PCRE2's working memory for one thread of matching.
class MatchMemory {
 public:
  MatchMemory();
  MatchMemory(MatchMemory&&) noexcept;
  ~MatchMemory();

 private:
  friend class Splitter;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One compiled split step. Patterns are Oniguruma's as Hugging Face tokenizers run them: Unicode classes, ^
// and $ at every line. What the two engines read differently is translated or refused, never run with another
// meaning.
class Splitter {
 public:
  // Throws Error{unsupported} for a pattern that PCRE2 cannot compile or would read differently.
  Splitter(const SplitStep& step, std::string_view subject);
  Splitter(Splitter&&) noexcept;
  ~Splitter();

  // Appends the pieces of `text` (valid UTF-8) to `out`; none is empty. Throws Error{resource} when a match
  // needs more steps or memory than its limits.
  void split(std::string_view text, MatchMemory& memory, std::vector<std::string_view>& out) const;

 private:
  struct Match {
    std::string_view text;
    bool matched;
  };
  std::vector<Match> find(std::string_view text, MatchMemory& memory) const;
  struct Code;

  std::unique_ptr<Code> code_;
  SplitBehavior behavior_;
  bool invert_;
  std::string subject_;
};

// The pattern in PCRE2's reading; see Splitter.
std::string translate_pattern(std::string_view pattern, std::string_view subject);

}  // namespace keysieve
