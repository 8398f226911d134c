#include <fmt/format.h>

#include "text/jinja/builtins.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/operators.h"

namespace keysieve::jinja {

Value Interpreter::eval(const Expression& expression, Scope& scope) {
  const Deeper deeper(*this);
  budget_.step();
  line_ = expression.line;
  return eval_kind(expression, scope);
}

Value Interpreter::eval_kind(const Expression& expression, Scope& scope) {
  const auto operand = [&](size_t index) { return eval(*expression.operands[index], scope); };
  switch (expression.kind) {
    case ExpressionKind::literal:
      return expression.value;
    case ExpressionKind::name:
      return eval_name(expression.name, scope);
    case ExpressionKind::list:
    case ExpressionKind::tuple:
    case ExpressionKind::dict:
      return eval_container(expression, scope);
    case ExpressionKind::negative:
      return negate(operand(0));
    case ExpressionKind::positive: {
      const Value value = operand(0);
      if (value.is_float()) return value;
      return negate(negate(value));
    }
    case ExpressionKind::logical_not:
      return !is_true(operand(0));
    case ExpressionKind::logical_and: {
      Value left = operand(0);
      return is_true(left) ? operand(1) : left;
    }
    case ExpressionKind::logical_or: {
      Value left = operand(0);
      return is_true(left) ? left : operand(1);
    }
    case ExpressionKind::binary: {
      const Value left = operand(0);
      const Value right = operand(1);
      line_ = expression.line;
      return binary(expression.name, left, right, budget_);
    }
    case ExpressionKind::comparison:
      return eval_comparison(expression, scope);
    case ExpressionKind::conditional:
      if (is_true(operand(1))) return operand(0);
      if (expression.operands[2]) return operand(2);
      return Value::undefined("an inline if without else was false");
    case ExpressionKind::attribute:
      return get_attribute(operand(0), expression.name, budget_);
    case ExpressionKind::subscript: {
      const Value container = operand(0);
      return get_item(container, operand(1), budget_);
    }
    case ExpressionKind::slice:
      return eval_slice(expression, scope);
    case ExpressionKind::call:
      return eval_call(expression, scope);
    case ExpressionKind::filter:
      return eval_filter(expression, operand(0), scope);
    case ExpressionKind::test:
      return eval_test(expression, scope);
  }
  return {};
}

Value Interpreter::eval_name(const std::string& name, const Scope& scope) {
  for (const Scope* at = &scope; at; at = at->parent) {
    const auto found = at->variables.find(name);
    if (found != at->variables.end()) return found->second;
  }
  return Value::undefined(fmt::format("'{}' is undefined", name.substr(0, 100)));
}

Value Interpreter::eval_comparison(const Expression& expression, Scope& scope) {
  Value left = eval(*expression.operands[0], scope);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = eval(*expression.operands[i + 1], scope);
    line_ = expression.line;
    if (!holds(expression.operators[i], left, right, budget_)) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::eval_container(const Expression& expression, Scope& scope) {
  if (expression.kind == ExpressionKind::dict) {
    Dict dict;
    for (size_t i = 0; i < expression.operands.size(); i += 2) {
      Value key = eval(*expression.operands[i], scope);
      dict.set(std::move(key), eval(*expression.operands[i + 1], scope));
    }
    return Value::dict(std::move(dict));
  }
  std::vector<Value> items;
  for (const ExpressionPtr& item : expression.operands) items.push_back(eval(*item, scope));
  return Value::list(std::move(items), expression.kind == ExpressionKind::tuple);
}

Value Interpreter::eval_slice(const Expression& expression, Scope& scope) {
  Value parts[4];
  for (size_t i = 0; i < 4; ++i) {
    if (expression.operands[i]) parts[i] = eval(*expression.operands[i], scope);
  }
  const auto bound = [&](size_t i) { return expression.operands[i] ? &parts[i] : nullptr; };
  return slice(parts[0], bound(1), bound(2), bound(3), budget_);
}

Arguments Interpreter::eval_arguments(const Expression& expression, Scope& scope) {
  Arguments arguments;
  for (size_t i = 1; i < expression.operands.size(); ++i) {
    arguments.positional.push_back(eval(*expression.operands[i], scope));
  }
  for (const auto& [name, value] : expression.named) arguments.named.emplace_back(name, eval(*value, scope));
  return arguments;
}

Value Interpreter::eval_call(const Expression& expression, Scope& scope, const Value* caller) {
  const Expression& callee = *expression.operands[0];
  const Value function = eval(callee, scope);
  Arguments arguments = eval_arguments(expression, scope);
  line_ = expression.line;
  if (!function.function()) {
    if (function.is_undefined()) {
      const std::string name = callee.name.empty() ? "what is called" : callee.name;
      fail_unsupported(fmt::format("a call of '{}', which is undefined", name));
    }
    fail(fmt::format("a call of a {}", type_name(function)), "a function");
  }
  if (caller) arguments.named.emplace_back("caller", *caller);
  return function.function()->call(arguments);
}

Value Interpreter::eval_filter(const Expression& expression, const Value& input, Scope& scope) {
  Arguments arguments = eval_arguments(expression, scope);
  line_ = expression.line;
  return apply_filter(expression.name, input, arguments, budget_);
}

Value Interpreter::eval_test(const Expression& expression, Scope& scope) {
  const Value value = eval(*expression.operands[0], scope);
  Arguments arguments = eval_arguments(expression, scope);
  line_ = expression.line;
  return apply_test(expression.name, value, arguments, budget_) != expression.negated;
}

}  // namespace keysieve::jinja
