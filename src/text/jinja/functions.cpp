#include <fmt/format.h>

#include <array>
#include <ctime>

#include "text/jinja/interpreter.h"
#include "text/jinja/operators.h"

namespace keysieve::jinja {

namespace {

// What Jinja's sandbox allows, as transformers runs it.
constexpr int64_t kLongestRange = 100'000;

Value make_range(Arguments& arguments, Budget& budget) {
  const Parameters parameters(arguments, "range", {"start", "stop", "step"});
  int64_t start = 0;
  int64_t stop = parameters.integer_or(0, 0);
  if (parameters[1]) {
    start = stop;
    stop = parameters.integer_or(1, 0);
  }
  const int64_t step = parameters.integer_or(2, 1);
  if (step == 0) fail("range with step 0");
  std::vector<Value> items;
  for (int64_t at = start; step > 0 ? at < stop : at > stop;) {
    if (std::cmp_greater_equal(items.size(), kLongestRange)) {
      throw Failure{ErrorKind::resource, "a range of more than 100,000 numbers"};
    }
    items.emplace_back(at);
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  budget.bytes(items.size() * sizeof(Value));
  return Value::list(std::move(items));
}

Value make_dict(Arguments& arguments) {
  Dict dict;
  if (arguments.positional.size() > 1) fail("dict with more than one positional argument");
  if (!arguments.positional.empty()) {
    const Dict* first = arguments.positional[0].dict();
    if (!first) fail_unsupported(fmt::format("dict of a {}", type_name(arguments.positional[0])));
    for (const auto& [key, value] : first->entries()) dict.set(key, value);
  }
  for (const auto& [key, value] : arguments.named) dict.set(key, value);
  return Value::dict(std::move(dict));
}

Value make_namespace(Arguments& arguments) {
  const Value initial = make_dict(arguments);
  auto space = std::make_shared<Namespace>();
  for (const auto& [key, value] : initial.dict()->entries()) {
    if (!key.string()) fail(fmt::format("namespace with a {} for a name", type_name(key)), "a string");
    space->attributes[*key.string()] = value;
  }
  return space;
}

Value format_time(std::time_t now, Arguments& arguments) {
  const Parameters parameters(arguments, "strftime_now", {"format"});
  const std::string& format = parameters.require_string(0);
  if (format.size() > 256) fail_unsupported("strftime_now with more than 256 bytes of format");
  // Only the conversions of the C standard: what others do is up to the C library.
  constexpr std::string_view kKnown = "aAbBcCdDeFgGhHIjmMnprRStTuUVwWxXyYzZ%";
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') continue;
    ++i;
    if (i < format.size() && format[i] == '-') ++i;  // no leading zero, as glibc and Python on it do
    if (i >= format.size() || kKnown.find(format[i]) == std::string_view::npos) {
      fail_unsupported(fmt::format("strftime_now with '{}'", format));
    }
  }
  std::tm local{};
  if (!localtime_r(&now, &local)) fail("strftime_now: a time out of range");
  std::array<char, 8192> buffer;  // 256 bytes of %c make 3,072
  const size_t length = std::strftime(buffer.data(), buffer.size(), format.c_str(), &local);
  return std::string(buffer.data(), length);
}

}  // namespace

std::map<std::string, Value, std::less<>> Interpreter::make_functions() {
  std::map<std::string, Value, std::less<>> functions;
  const auto add = [&](const std::string& name, std::function<Value(Arguments&)> call) {
    functions[name] = Function{name, std::move(call)};
  };
  add("range", [this](Arguments& arguments) { return make_range(arguments, budget_); });
  add("dict", make_dict);
  add("namespace", make_namespace);
  add("strftime_now", [this](Arguments& arguments) { return format_time(now_, arguments); });
  add("raise_exception", [](Arguments& arguments) -> Value {
    const Parameters parameters(arguments, "raise_exception", {"message"});
    throw Raised{to_text(parameters.require(0))};
  });
  return functions;
}

}  // namespace keysieve::jinja
