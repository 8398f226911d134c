#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace keysieve::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class ExpressionKind {
  literal,      // value
  name,         // name
  list,         // operands
  tuple,        // operands
  dict,         // operands: key, value, key, value, ...
  negative,     // operands[0]
  positive,     // operands[0]
  logical_not,  // operands[0]
  logical_and,  // operands[0], operands[1]
  logical_or,
  binary,       // name is the operator: + - * / // % ** ~
  comparison,   // operands[0] operators[0] operands[1] operators[1] operands[2] ...: a chain
  conditional,  // operands: value, condition, other value (or null)
  attribute,    // operands[0].name
  subscript,    // operands[0][operands[1]]
  slice,        // operands[0][operands[1]:operands[2]:operands[3]], each but the first may be null
  call,         // operands[0](operands[1...], named...)
  filter,       // operands[0] | name(operands[1...], named...); operands[0] is null in {% filter %}
  test,         // operands[0] is name(operands[1...]), `negated` for `is not`
};

struct Expression {
  ExpressionKind kind = ExpressionKind::literal;
  int line = 1;
  int depth = 1;  // levels of the tree below and including this node
  bool negated = false;
  Value value;
  std::string name;
  std::vector<ExpressionPtr> operands;
  std::vector<std::string> operators;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

// What {% set %} and {% for %} assign to: names, ns.attribute, or a tuple of them.
struct Target {
  std::string name;
  std::string attribute;      // of the namespace `name`; empty for a plain name
  std::vector<Target> tuple;  // not empty: a tuple, and the two above are not used
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

enum class StatementKind {
  text,          // text
  output,        // expression
  condition,     // branches, otherwise
  loop,          // target, expression, condition (or null), body, otherwise
  set,           // target, expression
  set_block,     // target, filters, body
  macro,         // name, parameters, body
  call_block,    // parameters of caller, expression is the call, body
  filter_block,  // filters, body
  with,          // bindings, body
  scope,         // body: {% generation %}
  loop_break,
  loop_continue,
};

struct Statement {
  StatementKind kind = StatementKind::text;
  int line = 1;
  std::string text;  // the text, or a macro's name
  Target target;
  ExpressionPtr expression;
  ExpressionPtr condition;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  std::vector<ExpressionPtr> filters;                             // applied in order
  std::vector<std::pair<std::string, ExpressionPtr>> parameters;  // a null default: none
  std::vector<std::pair<Target, ExpressionPtr>> bindings;
  Block body;
  Block otherwise;
};

}  // namespace keysieve::jinja
