#include "text/jinja/interpreter.h"

#include <fmt/format.h>

#include <utility>

#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"

namespace keysieve::jinja {

namespace {
constexpr int kDeepestEvaluation = 700;
}

Interpreter::Deeper::Deeper(Interpreter& interpreter) : interpreter_(interpreter) {
  if (++interpreter_.depth_ > kDeepestEvaluation) {
    --interpreter_.depth_;
    throw Failure{ErrorKind::resource, "the template nests too deeply (a macro that calls itself?)"};
  }
}

// The `loop` variable.
class Interpreter::LoopState final : public Object {
 public:
  explicit LoopState(const std::vector<Value>& items, int depth) : items_(items), depth_(depth) {}
  void move_to(size_t index) { index_ = index; }

  Value attribute(const std::string& name) const override {
    if (name == "index") return index_ + 1;
    if (name == "index0") return index_;
    if (name == "revindex") return items_.size() - index_;
    if (name == "revindex0") return items_.size() - index_ - 1;
    if (name == "first") return index_ == 0;
    if (name == "last") return index_ + 1 == items_.size();
    if (name == "length") return items_.size();
    if (name == "depth") return int64_t{depth_};
    if (name == "depth0") return int64_t{depth_ - 1};
    if (name == "previtem")
      return index_ > 0 ? items_[index_ - 1] : Value::undefined("there is no previous item");
    if (name == "nextitem") {
      return index_ + 1 < items_.size() ? items_[index_ + 1] : Value::undefined("there is no next item");
    }
    if (name == "cycle") {
      return Function{name, [index = index_](Arguments& arguments) {
                        if (arguments.positional.empty()) fail("loop.cycle without values");
                        return arguments.positional[index % arguments.positional.size()];
                      }};
    }
    if (name == "changed") fail_unsupported("loop.changed");
    return Value::undefined(fmt::format("loop has no attribute '{}'", name.substr(0, 100)));
  }

 private:
  std::vector<Value> items_;  // its own, as `loop` may outlive the statement in a macro's argument
  int depth_;
  size_t index_ = 0;
};

Interpreter::Interpreter(std::map<std::string, Value, std::less<>> variables, std::time_t now,
                         const Limits& limits)
    : limits_(limits), budget_(limits.steps, limits.bytes), now_(now) {
  variables_.variables = make_functions();
  for (auto& [name, value] : variables) variables_.variables[name] = std::move(value);
}
Interpreter::~Interpreter() = default;

std::string Interpreter::run(const Block& block) {
  Scope scope;
  scope.parent = &variables_;
  exec(block, scope);
  return std::move(output_);
}

void Interpreter::print(std::string_view text) {
  printed_ += text.size();
  if (printed_ > limits_.output) throw Failure{ErrorKind::resource, "the template prints too much"};
  output_ += text;
}

Interpreter::Flow Interpreter::exec(const Block& block, Scope& scope) {
  const Deeper deeper(*this);
  for (const auto& statement : block) {
    const Flow flow = exec_statement(*statement, scope);
    if (flow != Flow::normal) return flow;
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::exec_statement(const Statement& statement, Scope& scope) {
  budget_.step();
  line_ = statement.line;
  switch (statement.kind) {
    case StatementKind::text:
      print(statement.text);
      break;
    case StatementKind::output: {
      const Value value = eval(*statement.expression, scope);
      if (value.string()) {
        print(*value.string());
      } else {
        budget_.bytes(value.weight());
        print(to_text(value));
      }
      break;
    }
    case StatementKind::condition:
      return exec_condition(statement, scope);
    case StatementKind::loop:
      return exec_loop(statement, scope);
    case StatementKind::set:
      assign(statement.target, eval(*statement.expression, scope), scope);
      break;
    case StatementKind::set_block: {
      Scope inner;
      inner.parent = &scope;
      Value text = captured(statement.body, inner);
      assign(statement.target, filtered(statement, std::move(text), scope), scope);
      break;
    }
    case StatementKind::macro:
      scope.variables[statement.text] = make_macro(statement, scope, statement.text);
      break;
    case StatementKind::call_block:
      exec_call_block(statement, scope);
      break;
    case StatementKind::filter_block: {
      Scope inner;
      inner.parent = &scope;
      Value text = captured(statement.body, inner);
      print(to_text(filtered(statement, std::move(text), scope)));
      break;
    }
    case StatementKind::with:
      return exec_with(statement, scope);
    case StatementKind::scope: {
      Scope inner;
      inner.parent = &scope;
      return exec(statement.body, inner);
    }
    case StatementKind::loop_break:
      return Flow::loop_break;
    case StatementKind::loop_continue:
      return Flow::loop_continue;
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::exec_condition(const Statement& statement, Scope& scope) {
  for (const auto& [condition, body] : statement.branches) {
    if (is_true(eval(*condition, scope))) return exec(body, scope);
  }
  return exec(statement.otherwise, scope);
}

Interpreter::Flow Interpreter::exec_loop(const Statement& statement, Scope& scope) {
  const Value iterated = eval(*statement.expression, scope);
  std::vector<Value> items = items_of(iterated, budget_);
  if (statement.condition) {
    std::vector<Value> chosen;
    for (Value& item : items) {
      Scope inner;
      inner.parent = &scope;
      assign(statement.target, item, inner);
      if (is_true(eval(*statement.condition, inner))) chosen.push_back(std::move(item));
    }
    items = std::move(chosen);
  }
  if (items.empty()) {
    Scope inner;
    inner.parent = &scope;
    return exec(statement.otherwise, inner);
  }
  budget_.bytes(items.size() * sizeof(Value));
  const auto state = std::make_shared<LoopState>(items, 1);
  for (size_t i = 0; i < items.size(); ++i) {
    // A scope for each round: what the body sets is gone in the next.
    Scope inner;
    inner.parent = &scope;
    state->move_to(i);
    inner.variables["loop"] = std::shared_ptr<const Object>(state);
    assign(statement.target, items[i], inner);
    if (exec(statement.body, inner) == Flow::loop_break) break;
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::exec_with(const Statement& statement, Scope& scope) {
  Scope inner;
  inner.parent = &scope;
  for (const auto& [target, expression] : statement.bindings) assign(target, eval(*expression, scope), inner);
  return exec(statement.body, inner);
}

std::string Interpreter::captured(const Block& block, Scope& scope) {
  std::string outer = std::exchange(output_, {});
  try {
    exec(block, scope);
  } catch (...) {
    output_ = std::move(outer);
    throw;
  }
  return std::exchange(output_, std::move(outer));
}

Value Interpreter::filtered(const Statement& statement, Value value, Scope& scope) {
  for (const ExpressionPtr& filter : statement.filters) value = eval_filter(*filter, value, scope);
  return value;
}

void Interpreter::assign(const Target& target, Value value, Scope& scope) {
  if (!target.tuple.empty()) {
    const std::vector<Value> items = items_of(value, budget_);
    if (items.size() != target.tuple.size()) {
      fail(fmt::format("{} values to unpack", items.size()), fmt::format("{}", target.tuple.size()));
    }
    for (size_t i = 0; i < items.size(); ++i) assign(target.tuple[i], items[i], scope);
    return;
  }
  if (target.attribute.empty()) {
    scope.variables[target.name] = std::move(value);
    return;
  }
  const Value object = eval_name(target.name, scope);
  if (!object.name_space()) {
    fail(fmt::format("an attribute set on '{}', a {}", target.name, type_name(object)), "a namespace");
  }
  if (!value.is_data()) fail_unsupported(fmt::format("a {} inside a namespace", type_name(value)));
  (*object.name_space())->attributes[target.attribute] = std::move(value);
}

Value Interpreter::make_macro(const Statement& statement, Scope& scope, const std::string& name) {
  // The macro's scope outlives it: functions are never stored in lists, dicts or namespaces, and {% set %}
  // only reaches the innermost scope.
  return Function{name, [this, &statement, &scope, name](Arguments& arguments) {
                    return call_macro(statement, scope, name, arguments);
                  }};
}

Value Interpreter::call_macro(const Statement& statement, Scope& closure, const std::string& name,
                              Arguments& arguments) {
  const Deeper deeper(*this);
  Scope inner;
  inner.parent = &closure;
  const auto& parameters = statement.parameters;
  if (arguments.positional.size() > parameters.size()) {
    fail(fmt::format("macro {} called with {} arguments", name, arguments.positional.size()),
         fmt::format("at most {}", parameters.size()));
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    inner.variables[parameters[i].first] = std::move(arguments.positional[i]);
  }
  for (auto& [key, value] : arguments.named) {
    bool known = key == "caller";
    for (const auto& parameter : parameters) known |= parameter.first == key;
    if (!known) fail(fmt::format("macro {} has no parameter '{}'", name, key));
    if (inner.variables.contains(key)) fail(fmt::format("macro {} got two values for '{}'", name, key));
    inner.variables[key] = std::move(value);
  }
  for (const auto& [key, fallback] : parameters) {
    if (inner.variables.contains(key)) continue;
    Value value = fallback
                      ? eval(*fallback, inner)
                      : Value::undefined(fmt::format("parameter '{}' was not provided", key.substr(0, 100)));
    inner.variables[key] = std::move(value);
  }
  std::string text = captured(statement.body, inner);
  budget_.bytes(text.size());
  return text;
}

void Interpreter::exec_call_block(const Statement& statement, Scope& scope) {
  const Value caller = make_macro(statement, scope, "caller");
  print(to_text(eval_call(*statement.expression, scope, &caller)));
}

}  // namespace keysieve::jinja
