#include "text/jinja/lexer.h"

#include <fmt/format.h>

#include <array>
#include <charconv>

#include "core/ascii.h"
#include "text/jinja/value.h"
#include "text/utf8.h"

namespace keysieve::jinja {

namespace {

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Line breaks become \n, and one at the very end goes.
std::string normalize_line_breaks(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else if (i + 1 >= source.size() || source[i + 1] != '\n') {
      out += '\n';
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

size_t last_space_run(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t at = end - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if (!is_python_space(utf8_step(text, at).code_point)) break;
    end = at;
  }
  return end;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_line_breaks(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) lex_text();
    push(TokenType::end, "");
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  void push(TokenType type, std::string value) { tokens_.push_back({type, std::move(value), line_}); }
  void advance(size_t count) {
    for (size_t i = 0; i < count; ++i) line_ += source_[at_ + i] == '\n';
    at_ += count;
  }
  [[noreturn]] void fail_here(std::string_view what) const { fail(fmt::format("line {}: {}", line_, what)); }

  // Text up to the next delimiter, and what the delimiter opens.
  void lex_text() {
    size_t open = at_;
    for (;; ++open) {
      open = source_.find('{', open);
      if (open == std::string::npos || open + 1 >= source_.size()) {
        open = source_.size();
        break;
      }
      const char kind = source_[open + 1];
      if (kind == '{' || kind == '%' || kind == '#') break;
    }
    std::string_view text = std::string_view(source_).substr(at_, open - at_);
    if (open == source_.size()) {
      if (!text.empty()) push(TokenType::text, std::string(text));
      advance(text.size());
      return;
    }
    const char kind = source_[open + 1];
    const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
    const std::string_view kept = strip_before(text, kind, sign);
    if (!kept.empty()) push(TokenType::text, std::string(kept));
    advance(text.size() + 2 + (sign == '-' || sign == '+' ? 1 : 0));
    if (kind == '#') {
      lex_comment();
    } else if (kind == '%' && !lex_raw()) {
      push(TokenType::block_begin, "{%");
      lex_inside("%}", TokenType::block_end);
    } else if (kind == '{') {
      push(TokenType::variable_begin, "{{");
      lex_inside("}}", TokenType::variable_end);
    }
  }

  // What white space control before a delimiter leaves of the text.
  std::string_view strip_before(std::string_view text, char kind, char sign) const {
    if (sign == '-') return text.substr(0, last_space_run(text));
    if (sign == '+' || kind == '{') return text;
    // lstrip_blocks: white space goes if nothing else stands before the tag on its line.
    const size_t line_begin = text.rfind('\n') == std::string_view::npos ? 0 : text.rfind('\n') + 1;
    const bool starts_line = line_begin > 0 || at_ == 0 || source_[at_ - 1] == '\n';
    if (!starts_line || last_space_run(text.substr(line_begin)) != 0) return text;
    return text.substr(0, line_begin);
  }

  // Behind a closing delimiter: `-` takes all white space, `+` none, otherwise trim_blocks takes one line
  // break.
  void close(char sign, bool trim_block) {
    if (sign == '-') {
      while (at_ < source_.size()) {
        const Utf8Step step = utf8_step(source_, at_);
        if (!is_python_space(step.code_point)) break;
        advance(step.length);
      }
    } else if (sign != '+' && trim_block && rest().starts_with('\n')) {
      advance(1);
    }
  }

  void lex_comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) fail_here("a comment without an end");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    advance(end + 2 - at_);
    close(sign, true);
  }

  // At the inside of a block: if it is {% raw %}, takes everything to {% endraw %} as text.
  bool lex_raw() {
    const auto word_end = [&](size_t at, std::string_view word) -> size_t {
      while (at < source_.size() && is_space(source_[at])) ++at;
      if (source_.compare(at, word.size(), word) != 0) return 0;
      at += word.size();
      while (at < source_.size() && is_space(source_[at])) ++at;
      const bool sign = at < source_.size() && (source_[at] == '-' || source_[at] == '+');
      return source_.compare(at + sign, 2, "%}") == 0 ? at + sign + 2 : 0;
    };
    const size_t begin = word_end(at_, "raw");
    if (begin == 0) return false;
    const char begin_sign = source_[begin - 3];
    advance(begin - at_);
    close(begin_sign, false);
    for (size_t open = at_;; ++open) {
      open = source_.find("{%", open);
      if (open == std::string::npos) fail_here("a raw block without an end");
      const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
      const size_t inside = open + 2 + (sign == '-' || sign == '+' ? 1 : 0);
      const size_t end = word_end(inside, "endraw");
      if (end == 0) continue;
      const std::string_view text = std::string_view(source_).substr(at_, open - at_);
      const std::string_view kept = strip_before(text, '%', sign);
      if (!kept.empty()) push(TokenType::text, std::string(kept));
      const char end_sign = source_[end - 3];
      advance(end - at_);
      close(end_sign, true);
      return true;
    }
  }

  void lex_inside(std::string_view closing, TokenType closing_type) {
    std::string brackets;  // while one is open, }} may close a dict in a dict
    for (;;) {
      while (at_ < source_.size() && is_space(source_[at_])) advance(1);
      if (at_ >= source_.size()) fail_here(fmt::format("no {} to end the tag", closing));
      if (brackets.empty()) {
        const char sign = source_[at_];
        const bool has_sign =
            (sign == '-' || (sign == '+' && closing == "%}")) && rest().substr(1).starts_with(closing);
        if (has_sign || rest().starts_with(closing)) {
          push(closing_type, std::string(closing));
          advance(closing.size() + has_sign);
          close(has_sign ? sign : '\0', closing_type == TokenType::block_end);
          return;
        }
      }
      lex_token(brackets);
    }
  }

  void lex_token(std::string& brackets) {
    const char c = source_[at_];
    if (is_ascii_digit(c)) return lex_number();
    if (is_name_start(c)) {
      size_t length = 1;
      while (length < rest().size() && (is_name_start(rest()[length]) || is_ascii_digit(rest()[length])))
        ++length;
      push(TokenType::name, std::string(rest().substr(0, length)));
      return advance(length);
    }
    if (c == '"' || c == '\'') return lex_string(c);
    constexpr std::array<std::string_view, 7> kPairs = {"//", "**", "==", "!=", "<=", ">=", ":="};
    for (const std::string_view pair : kPairs) {
      if (!rest().starts_with(pair)) continue;
      push(TokenType::op, std::string(pair));
      return advance(2);
    }
    if (std::string_view("+-*/%~<>=()[]{}|.,:;").find(c) == std::string_view::npos) {
      fail_here(fmt::format("unexpected character '{}'", c));
    }
    if (c == '(' || c == '[' || c == '{') brackets += c;
    if (c == ')' || c == ']' || c == '}') {
      const char opening = c == ')' ? '(' : (c == ']' ? '[' : '{');
      if (brackets.empty() || brackets.back() != opening) fail_here(fmt::format("unexpected '{}'", c));
      brackets.pop_back();
    }
    push(TokenType::op, std::string(1, c));
    advance(1);
  }

  void lex_number() {
    const std::string_view text = rest();
    size_t length = 1;
    bool real = false;
    const auto digits = [&] {
      while (length < text.size() && (is_ascii_digit(text[length]) || text[length] == '_')) ++length;
    };
    if (text[0] == '0' && text.size() > 1 &&
        std::string_view("xXoObB").find(text[1]) != std::string_view::npos) {
      length = 2;
      while (length < text.size() &&
             std::string_view("0123456789abcdefABCDEF_").find(text[length]) != std::string_view::npos) {
        ++length;
      }
    } else {
      digits();
      if (length + 1 < text.size() && text[length] == '.' && is_ascii_digit(text[length + 1])) {
        real = true;
        ++length;
        digits();
      }
      if (length < text.size() && (text[length] == 'e' || text[length] == 'E')) {
        const size_t sign = length + 1 < text.size() && (text[length + 1] == '+' || text[length + 1] == '-');
        if (length + 1 + sign < text.size() && is_ascii_digit(text[length + 1 + sign])) {
          real = true;
          length += 1 + sign;
          digits();
        }
      }
    }
    std::string value(text.substr(0, length));
    std::erase(value, '_');
    push(real ? TokenType::real : TokenType::integer, std::move(value));
    advance(length);
  }

  void lex_string(char quote) {
    const int line = line_;
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail_here("a string without an end");
    const std::string_view raw = std::string_view(source_).substr(at_ + 1, end - at_ - 1);
    tokens_.push_back({TokenType::string, unescape(raw), line});
    advance(end + 1 - at_);
  }

  // The escapes of Python string literals; unknown ones stay as they are.
  std::string unescape(std::string_view raw) const {
    std::string out;
    for (size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] != '\\' || i + 1 >= raw.size()) {
        out += raw[i];
        continue;
      }
      const char c = raw[++i];
      constexpr std::string_view kLetters = "ntrbfva\\'\"";
      constexpr std::string_view kMeanings = "\n\t\r\b\f\v\a\\'\"";
      if (const size_t known = kLetters.find(c); known != std::string_view::npos) {
        out += kMeanings[known];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : (c == 'u' ? 4 : 8);
        append_utf8(out, number(raw.substr(i + 1, digits), digits, 16));
        i += digits;
      } else if (c >= '0' && c <= '7') {
        size_t digits = 1;
        while (digits < 3 && i + digits < raw.size() && raw[i + digits] >= '0' && raw[i + digits] <= '7')
          ++digits;
        append_utf8(out, number(raw.substr(i, digits), digits, 8));
        i += digits - 1;
      } else if (c == 'N') {
        fail_unsupported(fmt::format("line {}: \\N in a string", line_));
      } else if (c != '\n') {
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  char32_t number(std::string_view digits, size_t count, int base) const {
    uint32_t value = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (digits.size() != count || result.ptr != digits.data() + count || result.ec != std::errc()) {
      fail_here("a damaged escape in a string");
    }
    return value;
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> lex(std::string_view source) { return Lexer(source).run(); }

}  // namespace keysieve::jinja
