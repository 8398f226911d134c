#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace keysieve::jinja {

enum class TokenType {
  text,
  variable_begin,
  variable_end,
  block_begin,
  block_end,
  name,
  string,
  integer,
  real,
  op,
  end
};

struct Token {
  TokenType type = TokenType::end;
  std::string value;  // strings with their escapes resolved, numbers without underscores
  int line = 1;
};

// Cuts a template into tokens, ending with one of type `end`. White space control is done here: trim_blocks
// and lstrip_blocks are on, one line break at the very end is dropped, and `-` and `+` inside delimiters work
// as in Jinja. Comments are gone and raw blocks are text. Throws Failure with the line.
std::vector<Token> lex(std::string_view source);

}  // namespace keysieve::jinja
