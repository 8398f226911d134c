#include "text/jinja/token_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

namespace keysieve::jinja {

namespace {
constexpr int kMostBrackets = 100;
constexpr int kDeepestTree = 250;

struct Nesting {
  explicit Nesting(int& count) : count_(count) { ++count_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;
  ~Nesting() { --count_; }
  int& count_;
};
}  // namespace

Token TokenStream::take() {
  Token token = current();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool TokenStream::skip_op(std::string_view op) {
  if (!is_op(op)) return false;
  take();
  return true;
}
bool TokenStream::skip_name(std::string_view name) {
  if (!is_name(name)) return false;
  take();
  return true;
}
void TokenStream::expect_op(std::string_view op) {
  if (!skip_op(op)) fail_unexpected(fmt::format("'{}'", op));
}
void TokenStream::expect(TokenType type, std::string_view what) {
  if (!is(type)) fail_unexpected(what);
  take();
}
std::string TokenStream::expect_name() {
  if (!is(TokenType::name)) fail_unexpected("a name");
  return take().value;
}
void TokenStream::fail_here(std::string_view what) const {
  fail(fmt::format("line {}: {}", current().line, what));
}
void TokenStream::fail_unexpected(std::string_view expected) const {
  const std::string found =
      is(TokenType::end) ? "the end of the template" : fmt::format("'{}'", current().value.substr(0, 80));
  fail(fmt::format("line {}: {}", current().line, found), std::string(expected));
}

ExpressionPtr TokenStream::node(ExpressionKind kind, int line) const {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->line = line;
  return expression;
}

template <class... Operands>
ExpressionPtr TokenStream::node(ExpressionKind kind, int line, Operands... operands) const {
  ExpressionPtr expression = node(kind, line);
  (add(*expression, std::move(operands)), ...);
  return expression;
}

void TokenStream::add(Expression& parent, ExpressionPtr operand) const {
  if (operand) parent.depth = std::max(parent.depth, operand->depth + 1);
  if (parent.depth > kDeepestTree) {
    throw Failure{ErrorKind::resource,
                  fmt::format("line {}: more than 250 operators in a row", current().line)};
  }
  parent.operands.push_back(std::move(operand));
}

ExpressionPtr TokenStream::parse_expression(bool with_conditional) {
  const Nesting nesting(nesting_);
  if (nesting_ > kMostBrackets) {
    throw Failure{ErrorKind::resource,
                  fmt::format("line {}: brackets nested deeper than 100", current().line)};
  }
  return with_conditional ? parse_conditional() : parse_or();
}

ExpressionPtr TokenStream::parse_conditional() {
  ExpressionPtr value = parse_or();
  while (is_name("if")) {
    const int line = take().line;
    ExpressionPtr condition = parse_or();
    ExpressionPtr other = skip_name("else") ? parse_expression() : nullptr;
    value = node(ExpressionKind::conditional, line, std::move(value), std::move(condition), std::move(other));
  }
  return value;
}

ExpressionPtr TokenStream::parse_or() {
  ExpressionPtr left = parse_and();
  while (is_name("or")) {
    const int line = take().line;
    left = node(ExpressionKind::logical_or, line, std::move(left), parse_and());
  }
  return left;
}

ExpressionPtr TokenStream::parse_and() {
  ExpressionPtr left = parse_not();
  while (is_name("and")) {
    const int line = take().line;
    left = node(ExpressionKind::logical_and, line, std::move(left), parse_not());
  }
  return left;
}

ExpressionPtr TokenStream::parse_not() {
  if (!is_name("not")) return parse_comparison();
  const Nesting nesting(nesting_);
  if (nesting_ > kMostBrackets) fail_here("too many 'not' in a row");
  const int line = take().line;
  return node(ExpressionKind::logical_not, line, parse_not());
}

ExpressionPtr TokenStream::parse_comparison() {
  ExpressionPtr first = parse_sum();
  ExpressionPtr chain;
  for (;;) {
    std::string op;
    if (is(TokenType::op)) {
      constexpr std::string_view kComparing[] = {"==", "!=", "<", "<=", ">", ">="};
      if (std::find(std::begin(kComparing), std::end(kComparing), current().value) == std::end(kComparing)) {
        break;
      }
      op = current().value;
    } else if (is_name("in")) {
      op = "in";
    } else if (is_name("not") && peek().type == TokenType::name && peek().value == "in") {
      take();
      op = "not in";
    } else {
      break;
    }
    const int line = take().line;
    if (!chain) chain = node(ExpressionKind::comparison, line, std::move(first));
    chain->operators.push_back(std::move(op));
    add(*chain, parse_sum());
  }
  return chain ? std::move(chain) : std::move(first);
}

ExpressionPtr TokenStream::parse_sum() {
  ExpressionPtr left = parse_concatenation();
  while (is_op("+") || is_op("-")) {
    const Token op = take();
    left = node(ExpressionKind::binary, op.line, std::move(left), parse_concatenation());
    left->name = op.value;
  }
  return left;
}

ExpressionPtr TokenStream::parse_concatenation() {
  ExpressionPtr left = parse_product();
  while (is_op("~")) {
    const Token op = take();
    left = node(ExpressionKind::binary, op.line, std::move(left), parse_product());
    left->name = op.value;
  }
  return left;
}

ExpressionPtr TokenStream::parse_product() {
  ExpressionPtr left = parse_power();
  while (is_op("*") || is_op("/") || is_op("//") || is_op("%")) {
    const Token op = take();
    left = node(ExpressionKind::binary, op.line, std::move(left), parse_power());
    left->name = op.value;
  }
  return left;
}

ExpressionPtr TokenStream::parse_power() {
  ExpressionPtr left = parse_unary();
  while (is_op("**")) {
    const Token op = take();
    left = node(ExpressionKind::binary, op.line, std::move(left), parse_unary());
    left->name = op.value;
  }
  return left;
}

ExpressionPtr TokenStream::parse_unary(bool with_filter) {
  const Nesting nesting(nesting_);
  if (nesting_ > kMostBrackets) fail_here("signs and brackets nested deeper than 100");
  ExpressionPtr operand;
  if (is_op("-") || is_op("+")) {
    const Token op = take();
    const auto kind = op.value == "-" ? ExpressionKind::negative : ExpressionKind::positive;
    operand = node(kind, op.line, parse_unary(false));
  } else {
    operand = parse_primary();
  }
  operand = parse_postfix(std::move(operand));
  return with_filter ? parse_filters_and_tests(std::move(operand)) : std::move(operand);
}

ExpressionPtr TokenStream::parse_number() {
  const Token token = take();
  ExpressionPtr literal = node(ExpressionKind::literal, token.line);
  const char* first = token.value.data();
  const char* last = first + token.value.size();
  std::from_chars_result result{};
  if (token.type == TokenType::real) {
    double value = 0;
    result = std::from_chars(first, last, value);
    literal->value = value;
  } else {
    int base = 10;
    if (token.value.size() > 2 && token.value[0] == '0' && token.value[1] > '9') {
      base = token.value[1] == 'x' || token.value[1] == 'X'
                 ? 16
                 : (token.value[1] == 'o' || token.value[1] == 'O' ? 8 : 2);
      first += 2;
    }
    int64_t value = 0;
    result = std::from_chars(first, last, value, base);
    literal->value = value;
  }
  if (result.ec != std::errc() || result.ptr != last) {
    fail_unsupported(fmt::format("line {}: number {}", token.line, token.value.substr(0, 80)));
  }
  return literal;
}

ExpressionPtr TokenStream::parse_primary() {
  if (is(TokenType::integer) || is(TokenType::real)) return parse_number();
  const int line = current().line;
  if (is(TokenType::string)) {
    ExpressionPtr literal = node(ExpressionKind::literal, line);
    std::string text;
    while (is(TokenType::string)) text += take().value;
    literal->value = std::move(text);
    return literal;
  }
  if (is(TokenType::name)) {
    const std::string name = take().value;
    ExpressionPtr literal = node(ExpressionKind::literal, line);
    if (name == "true" || name == "True") {
      literal->value = true;
    } else if (name == "false" || name == "False") {
      literal->value = false;
    } else if (name != "none" && name != "None") {
      literal->kind = ExpressionKind::name;
      literal->name = name;
    }
    return literal;
  }
  return parse_brackets();
}

ExpressionPtr TokenStream::parse_brackets() {
  const int line = current().line;
  if (skip_op("(")) {
    if (skip_op(")")) return node(ExpressionKind::tuple, line);
    ExpressionPtr inside = parse_tuple();
    expect_op(")");
    return inside;
  }
  if (skip_op("[")) {
    ExpressionPtr list = node(ExpressionKind::list, line);
    while (!skip_op("]")) {
      if (!list->operands.empty()) {
        expect_op(",");
        if (skip_op("]")) break;
      }
      add(*list, parse_expression());
    }
    return list;
  }
  if (skip_op("{")) {
    ExpressionPtr dict = node(ExpressionKind::dict, line);
    while (!skip_op("}")) {
      if (!dict->operands.empty()) {
        expect_op(",");
        if (skip_op("}")) break;
      }
      add(*dict, parse_expression());
      expect_op(":");
      add(*dict, parse_expression());
    }
    return dict;
  }
  fail_unexpected("an expression");
}

bool TokenStream::ends_tuple() const {
  return is(TokenType::variable_end) || is(TokenType::block_end) || is_op(")") || is_name("in");
}

ExpressionPtr TokenStream::parse_tuple(bool with_conditional) {
  const int line = current().line;
  ExpressionPtr first = parse_expression(with_conditional);
  if (!is_op(",")) return first;
  ExpressionPtr tuple = node(ExpressionKind::tuple, line, std::move(first));
  while (skip_op(",")) {
    if (ends_tuple()) break;
    add(*tuple, parse_expression(with_conditional));
  }
  return tuple;
}

ExpressionPtr TokenStream::parse_postfix(ExpressionPtr operand) {
  for (;;) {
    if (is_op(".") || is_op("[")) {
      operand = parse_subscript(std::move(operand));
    } else if (is_op("(")) {
      ExpressionPtr call = node(ExpressionKind::call, current().line, std::move(operand));
      parse_arguments(*call);
      operand = std::move(call);
    } else {
      return operand;
    }
  }
}

ExpressionPtr TokenStream::parse_subscript(ExpressionPtr operand) {
  const int line = current().line;
  if (skip_op(".")) {
    if (is(TokenType::integer)) {
      ExpressionPtr index = parse_number();
      return node(ExpressionKind::subscript, line, std::move(operand), std::move(index));
    }
    ExpressionPtr attribute = node(ExpressionKind::attribute, line, std::move(operand));
    attribute->name = expect_name();
    return attribute;
  }
  expect_op("[");
  ExpressionPtr first = is_op(":") ? nullptr : parse_expression();
  if (!is_op(":")) {
    if (is_op(",")) fail_unsupported(fmt::format("line {}: a subscript with a comma", line));
    expect_op("]");
    return node(ExpressionKind::subscript, line, std::move(operand), std::move(first));
  }
  take();
  const auto part = [&]() -> ExpressionPtr {
    return is_op(":") || is_op("]") ? nullptr : parse_expression();
  };
  ExpressionPtr stop = part();
  ExpressionPtr step = skip_op(":") ? part() : nullptr;
  expect_op("]");
  return node(ExpressionKind::slice, line, std::move(operand), std::move(first), std::move(stop),
              std::move(step));
}

void TokenStream::parse_arguments(Expression& call) {
  expect_op("(");
  for (bool first = true; !skip_op(")"); first = false) {
    if (!first) {
      expect_op(",");
      if (skip_op(")")) break;
    }
    if (is_op("*") || is_op("**")) {
      fail_unsupported(fmt::format("line {}: {} in a call", current().line, current().value));
    }
    if (is(TokenType::name) && peek().type == TokenType::op && peek().value == "=") {
      std::string name = take().value;
      take();
      ExpressionPtr value = parse_expression();
      call.depth = std::max(call.depth, value->depth + 1);
      call.named.emplace_back(std::move(name), std::move(value));
    } else {
      if (!call.named.empty()) fail_here("an argument without a name after named ones");
      add(call, parse_expression());
    }
  }
}

ExpressionPtr TokenStream::parse_filters_and_tests(ExpressionPtr operand) {
  for (;;) {
    if (is_op("|")) {
      operand = parse_filter(std::move(operand));
    } else if (is_name("is")) {
      operand = parse_test(std::move(operand));
    } else if (is_op("(")) {
      ExpressionPtr call = node(ExpressionKind::call, current().line, std::move(operand));
      parse_arguments(*call);
      operand = std::move(call);
    } else {
      return operand;
    }
  }
}

ExpressionPtr TokenStream::parse_filter(ExpressionPtr operand) {
  const int line = current().line;
  expect_op("|");
  ExpressionPtr filter = node(ExpressionKind::filter, line, std::move(operand));
  filter->name = expect_name();
  if (is_op("(")) parse_arguments(*filter);
  return filter;
}

ExpressionPtr TokenStream::parse_test(ExpressionPtr operand) {
  const int line = take().line;
  const bool negated = skip_name("not");
  ExpressionPtr test = node(ExpressionKind::test, line, std::move(operand));
  test->negated = negated;
  test->name = expect_name();
  if (is_op("(")) {
    parse_arguments(*test);
    return test;
  }
  // One argument may stand without brackets: `is divisibleby 3`.
  const bool literal =
      is(TokenType::string) || is(TokenType::integer) || is(TokenType::real) || is_op("[") || is_op("{");
  const bool name = is(TokenType::name) && !is_name("else") && !is_name("or") && !is_name("and") &&
                    !is_name("if") && !is_name("in") && !is_name("not") && !is_name("is") &&
                    !is_name("recursive");
  if (is_name("is")) fail_here("one test after another");
  if (literal || name) {
    ExpressionPtr argument = parse_primary();
    add(*test, parse_postfix(std::move(argument)));
  }
  return test;
}

}  // namespace keysieve::jinja
