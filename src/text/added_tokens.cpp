#include "text/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "text/utf8.h"

namespace keysieve {

namespace {

// The code point that ends just before `at`; `text` is valid UTF-8 and at > 0.
size_t previous_character(std::string_view text, size_t at) {
  do {
    --at;
  } while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return at;
}

// \w of the reference's regular expressions: letters, marks, decimal and letter numbers, connectors.
bool is_word_character(char32_t code_point) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

bool inside_word(std::string_view text, size_t begin, size_t end) {
  const bool before =
      begin > 0 && is_word_character(utf8_step(text, previous_character(text, begin)).code_point);
  const bool after = end < text.size() && is_word_character(utf8_step(text, end).code_point);
  return before || after;
}

size_t skip_spaces_back(std::string_view text, size_t at, size_t lowest) {
  while (at > lowest) {
    const size_t previous = previous_character(text, at);
    if (!is_white_space(utf8_step(text, previous).code_point)) break;
    at = previous;
  }
  return std::max(at, lowest);
}

size_t skip_spaces(std::string_view text, size_t at) {
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text, at);
    if (!is_white_space(step.code_point)) break;
    at += step.length;
  }
  return at;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::sort(tokens_.begin(), tokens_.end(),
            [](const auto& a, const auto& b) { return a.content < b.content; });
  for (const AddedToken& token : tokens_) starts_[static_cast<uint8_t>(token.content[0])] = true;
}

const AddedToken* AddedTokenMatcher::longest_at(std::string_view text, size_t at) const {
  // Narrows the sorted tokens to those that share one more byte with the text, until none is left.
  const AddedToken* longest = nullptr;
  auto first = tokens_.begin();
  auto last = tokens_.end();
  for (size_t depth = 0; at + depth < text.size() && first != last; ++depth) {
    const auto byte = static_cast<uint8_t>(text[at + depth]);
    // A token that ends here sorts before the longer ones and has no byte at `depth`.
    const auto byte_of = [depth](const AddedToken& token) {
      return depth < token.content.size() ? int{static_cast<uint8_t>(token.content[depth])} : -1;
    };
    first = std::partition_point(first, last, [&](const AddedToken& token) { return byte_of(token) < byte; });
    last = std::partition_point(first, last, [&](const AddedToken& token) { return byte_of(token) == byte; });
    if (first != last && first->content.size() == depth + 1) longest = &*first;
  }
  return longest;
}

std::vector<AddedTokenMatcher::Piece> AddedTokenMatcher::split(std::string_view text,
                                                               bool parse_special) const {
  std::vector<Piece> pieces;
  size_t covered = 0;
  for (size_t at = 0; at < text.size() && !tokens_.empty();) {
    if (!starts_[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    const AddedToken* token = longest_at(text, at);
    if (!token) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + token->content.size();
    at = end;
    if (token->special && !parse_special) continue;
    if (token->single_word && inside_word(text, begin, end)) continue;
    if (token->lstrip) begin = skip_spaces_back(text, begin, covered);
    if (token->rstrip) end = skip_spaces(text, end);
    if (covered < begin) pieces.push_back({text.substr(covered, begin - covered), -1});
    pieces.push_back({text.substr(begin, end - begin), token->id});
    covered = end;
    at = end;
  }
  if (covered < text.size()) pieces.push_back({text.substr(covered), -1});
  return pieces;
}

}  // namespace keysieve
