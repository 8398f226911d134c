#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/lexer.h"

namespace keysieve::jinja {

// The tokens of a template with the expression grammar; Parser adds the statements.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& current() const { return tokens_[at_]; }
  const Token& peek() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  Token take();
  bool is(TokenType type) const { return current().type == type; }
  bool is_op(std::string_view op) const { return is(TokenType::op) && current().value == op; }
  bool is_name(std::string_view name) const { return is(TokenType::name) && current().value == name; }
  bool skip_op(std::string_view op);
  bool skip_name(std::string_view name);
  void expect_op(std::string_view op);
  void expect(TokenType type, std::string_view what);
  std::string expect_name();
  [[noreturn]] void fail_here(std::string_view what) const;
  [[noreturn]] void fail_unexpected(std::string_view expected) const;

  ExpressionPtr parse_expression(bool with_conditional = true);
  // An expression, or a tuple written without brackets.
  ExpressionPtr parse_tuple(bool with_conditional = true);
  // The pipe and what follows it, applied to `operand`.
  ExpressionPtr parse_filter(ExpressionPtr operand);
  // In the place of a call: "(", arguments, ")".
  void parse_arguments(Expression& call);

 private:
  ExpressionPtr node(ExpressionKind kind, int line) const;
  template <class... Operands>
  ExpressionPtr node(ExpressionKind kind, int line, Operands... operands) const;
  void add(Expression& parent, ExpressionPtr operand) const;

  ExpressionPtr parse_conditional();
  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_comparison();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concatenation();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_unary(bool with_filter = true);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_number();
  ExpressionPtr parse_brackets();
  ExpressionPtr parse_postfix(ExpressionPtr operand);
  ExpressionPtr parse_subscript(ExpressionPtr operand);
  ExpressionPtr parse_filters_and_tests(ExpressionPtr operand);
  ExpressionPtr parse_test(ExpressionPtr operand);
  bool ends_tuple() const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
};

}  // namespace keysieve::jinja
