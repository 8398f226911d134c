#pragma once

#include <ctime>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/value.h"

namespace keysieve::jinja {

// Limits of one rendering.
struct Limits {
  uint64_t steps = 10'000'000;           // expressions and statements
  uint64_t bytes = uint64_t{256} << 20;  // of strings and lists built on the way
  size_t output = size_t{64} << 20;      // bytes
};

// What raise_exception() throws: the template's own words.
struct Raised {
  std::string message;
};

// Runs one parsed template once. Not reusable.
class Interpreter {
 public:
  // `now` is what strftime_now formats, in local time.
  Interpreter(std::map<std::string, Value, std::less<>> variables, std::time_t now, const Limits& limits);
  ~Interpreter();

  // Throws Failure, or Raised; line() is then where.
  std::string run(const Block& block);
  int line() const { return line_; }

 private:
  enum class Flow { normal, loop_break, loop_continue };
  struct Scope {
    std::map<std::string, Value, std::less<>> variables;
    const Scope* parent = nullptr;
  };
  class Deeper;
  class LoopState;

  // eval.cpp
  Value eval(const Expression& expression, Scope& scope);
  Value eval_kind(const Expression& expression, Scope& scope);
  Value eval_name(const std::string& name, const Scope& scope);
  Value eval_comparison(const Expression& expression, Scope& scope);
  Value eval_container(const Expression& expression, Scope& scope);
  Value eval_slice(const Expression& expression, Scope& scope);
  Value eval_call(const Expression& expression, Scope& scope, const Value* caller = nullptr);
  Value eval_filter(const Expression& expression, const Value& input, Scope& scope);
  Value eval_test(const Expression& expression, Scope& scope);
  Arguments eval_arguments(const Expression& expression, Scope& scope);

  // interpreter.cpp
  Flow exec(const Block& block, Scope& scope);
  Flow exec_statement(const Statement& statement, Scope& scope);
  Flow exec_condition(const Statement& statement, Scope& scope);
  Flow exec_loop(const Statement& statement, Scope& scope);
  Flow exec_with(const Statement& statement, Scope& scope);
  void exec_call_block(const Statement& statement, Scope& scope);
  std::string captured(const Block& block, Scope& scope);  // what the block would print
  Value filtered(const Statement& statement, Value value, Scope& scope);
  void assign(const Target& target, Value value, Scope& scope);
  Value make_macro(const Statement& statement, Scope& scope, const std::string& name);
  Value call_macro(const Statement& statement, Scope& closure, const std::string& name, Arguments& arguments);
  void print(std::string_view text);

  // functions.cpp
  std::map<std::string, Value, std::less<>> make_functions();

  Limits limits_;
  Budget budget_;
  std::time_t now_;
  Scope variables_;  // what the caller passed and the functions; the template's own scope is its child
  std::string output_;
  size_t printed_ = 0;  // into output_ or captures
  int depth_ = 0;
  int line_ = 1;
};

// Counts nested evaluation, so that neither deep trees nor macros calling themselves exhaust the machine
// stack. A level takes about 1 KB, three to five times that under sanitizers.
class Interpreter::Deeper {
 public:
  explicit Deeper(Interpreter& interpreter);
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;
  ~Deeper() { --interpreter_.depth_; }

 private:
  Interpreter& interpreter_;
};

}  // namespace keysieve::jinja
