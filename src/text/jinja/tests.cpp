#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"

namespace keysieve::jinja {

namespace {

// Tests without an argument.
struct NamedTest {
  std::string_view name;
  bool (*holds)(const Value& value);
};

int64_t integer_of(const Value& value, std::string_view test) {
  if (!value.is_integer()) fail(fmt::format("'is {}' of a {}", test, type_name(value)), "an integer");
  return value.as_integer();
}

constexpr std::array kTests = {
    NamedTest{"boolean", [](const Value& v) { return v.is_bool(); }},
    NamedTest{"callable", [](const Value& v) { return v.function() != nullptr; }},
    NamedTest{"defined", [](const Value& v) { return !v.is_undefined(); }},
    NamedTest{"even", [](const Value& v) { return integer_of(v, "even") % 2 == 0; }},
    NamedTest{"false", [](const Value& v) { return v.is_bool() && !v.as_integer(); }},
    NamedTest{"float", [](const Value& v) { return v.is_float(); }},
    NamedTest{"integer", [](const Value& v) { return v.is_integer() && !v.is_bool(); }},
    NamedTest{"iterable",
              [](const Value& v) { return v.string() || v.list() || v.dict() || v.is_undefined(); }},
    NamedTest{"lower",
              [](const Value& v) {
                Arguments none;
                Budget budget(1000, v.weight() * 2);
                return v.string() && is_true(call_method(v, "islower", none, budget));
              }},
    NamedTest{"mapping", [](const Value& v) { return v.dict() != nullptr; }},
    NamedTest{"none", [](const Value& v) { return v.is_none(); }},
    NamedTest{"number", [](const Value& v) { return v.is_number(); }},
    NamedTest{"odd", [](const Value& v) { return integer_of(v, "odd") % 2 != 0; }},
    NamedTest{"sequence",
              [](const Value& v) { return v.string() || v.list() || v.dict() || v.is_undefined(); }},
    NamedTest{"string", [](const Value& v) { return v.string() != nullptr; }},
    NamedTest{"true", [](const Value& v) { return v.is_bool() && v.as_integer(); }},
    NamedTest{"undefined", [](const Value& v) { return v.is_undefined(); }},
    NamedTest{"upper",
              [](const Value& v) {
                Arguments none;
                Budget budget(1000, v.weight() * 2);
                return v.string() && is_true(call_method(v, "isupper", none, budget));
              }},
};

// Tests that compare with an argument, and the operator they are.
constexpr std::array<std::pair<std::string_view, std::string_view>, 15> kComparisons = {{
    {"equalto", "=="},
    {"eq", "=="},
    {"==", "=="},
    {"ne", "!="},
    {"!=", "!="},
    {"lt", "<"},
    {"lessthan", "<"},
    {"<", "<"},
    {"le", "<="},
    {"<=", "<="},
    {"gt", ">"},
    {"greaterthan", ">"},
    {">", ">"},
    {"ge", ">="},
    {"in", "in"},
}};

}  // namespace

bool apply_test(const std::string& name, const Value& value, Arguments& arguments, Budget& budget) {
  budget.step();
  const auto* test =
      std::find_if(kTests.begin(), kTests.end(), [&](const auto& known) { return known.name == name; });
  if (test != kTests.end()) {
    const Parameters parameters(arguments, "test " + name, {});
    return test->holds(value);
  }
  const auto* comparison = std::find_if(kComparisons.begin(), kComparisons.end(),
                                        [&](const auto& known) { return known.first == name; });
  if (comparison != kComparisons.end()) {
    const Parameters parameters(arguments, "test " + name, {"other"});
    return holds(std::string(comparison->second), value, parameters.require(0), budget);
  }
  if (name == "divisibleby") {
    const Parameters parameters(arguments, "test divisibleby", {"num"});
    return binary("%", Value(integer_of(value, name)), Value(integer_of(parameters.require(0), name)), budget)
               .as_integer() == 0;
  }
  if (name == "sameas") {
    // Identity of small values: what templates use it for (x is sameas false).
    const Parameters parameters(arguments, "test sameas", {"other"});
    return type_name(value) == type_name(parameters.require(0)) &&
           holds("==", value, parameters.require(0), budget);
  }
  if (name == "filter") return value.string() && is_filter(*value.string());
  fail_unsupported(fmt::format("the test '{}'", name));
}

}  // namespace keysieve::jinja
