#include "text/jinja/operators.h"

#include <fmt/format.h>
#include <fmt/printf.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "text/jinja/builtins.h"
#include "text/utf8.h"

namespace keysieve::jinja {

namespace {

[[noreturn]] void fail_types(const std::string& op, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b}) {
    if (value->is_undefined()) fail(value->get<Undefined>()->message);
  }
  fail(fmt::format("{} {} {}", type_name(a), op, type_name(b)), "types that the operator takes");
}

[[noreturn]] void fail_overflow() { fail_unsupported("an integer beyond 64 bits"); }

Value repeat(const Value& what, int64_t count, Budget& budget) {
  count = std::max<int64_t>(count, 0);
  if (const std::string* text = what.string()) {
    if (!text->empty() && count > std::numeric_limits<int64_t>::max() / static_cast<int64_t>(text->size())) {
      fail_overflow();
    }
    budget.bytes(static_cast<uint64_t>(count) * text->size());
    std::string out;
    for (int64_t i = 0; i < count && !text->empty(); ++i) out += *text;
    return what.is_markup() ? Value::markup(std::move(out)) : Value(std::move(out));
  }
  const List& list = *what.list();
  const auto size = static_cast<int64_t>(std::max<size_t>(list.items.size(), 1));
  if (count > std::numeric_limits<int64_t>::max() / size / static_cast<int64_t>(sizeof(Value)))
    fail_overflow();
  budget.bytes(static_cast<uint64_t>(count * size) * sizeof(Value));
  std::vector<Value> items;
  for (int64_t i = 0; i < count && !list.items.empty(); ++i) {
    items.insert(items.end(), list.items.begin(), list.items.end());
  }
  return Value::list(std::move(items), list.is_tuple);
}

Value integer_power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  // At most 63 rounds for any base but 0 and +-1, which never overflow.
  if (base == 0) return int64_t{exponent == 0 ? 1 : 0};
  if (base == 1) return int64_t{1};
  if (base == -1) return int64_t{exponent % 2 == 0 ? 1 : -1};
  for (int64_t i = 0; i < exponent; ++i) {
    if (__builtin_mul_overflow(result, base, &result)) fail_overflow();
  }
  return result;
}

Value integer_arithmetic(char op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case '+':
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case '-':
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case '*':
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    default: {  // // and %: towards minus infinity, the remainder with the divisor's sign
      if (b == 0) fail("a division by zero");
      if (b == -1) {
        if (op == '%') return int64_t{0};
        overflow = __builtin_sub_overflow(int64_t{0}, a, &result);
        break;
      }
      int64_t quotient = a / b;
      int64_t remainder = a % b;
      if (remainder != 0 && (remainder < 0) != (b < 0)) {
        --quotient;
        remainder += b;
      }
      result = op == '%' ? remainder : quotient;
    }
  }
  if (overflow) fail_overflow();
  return result;
}

Value float_arithmetic(const std::string& op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") return std::pow(a, b);
  if (b == 0) fail("a division by zero");
  if (op == "/") return a / b;
  const double remainder = std::fmod(a, b);
  const double positive = remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
  if (op == "%") return positive;
  return std::floor((a - positive) / b + 0.5);
}

Value concatenate_texts(const Value& a, const Value& b, Budget& budget) {
  const bool markup = a.is_markup() || b.is_markup();
  // An escaped character takes up to six bytes.
  budget.bytes((a.string()->size() + b.string()->size()) * (markup ? 6 : 1));
  if (!markup) return *a.string() + *b.string();
  const auto escaped = [](const Value& text) {
    return text.is_markup() ? *text.string() : escape_text(*text.string());
  };
  return Value::markup(escaped(a) + escaped(b));
}

Value concatenate_lists(const List& a, const List& b, Budget& budget) {
  budget.bytes((a.items.size() + b.items.size()) * sizeof(Value));
  std::vector<Value> items = a.items;
  items.insert(items.end(), b.items.begin(), b.items.end());
  return Value::list(std::move(items), a.is_tuple);
}

}  // namespace

Value binary(const std::string& op, const Value& a, const Value& b, Budget& budget) {
  if (op == "~") {
    budget.bytes(a.weight() + b.weight());
    return to_text(a) + to_text(b);
  }
  if (a.is_integer() && b.is_integer()) {
    if (op == "/") {
      if (b.as_integer() == 0) fail("a division by zero");
      return a.as_double() / b.as_double();
    }
    if (op == "**") {
      if (b.as_integer() < 0) return std::pow(a.as_double(), b.as_double());
      return integer_power(a.as_integer(), b.as_integer());
    }
    return integer_arithmetic(op == "//" ? '/' : op[0], a.as_integer(), b.as_integer());
  }
  if (a.is_number() && b.is_number()) return float_arithmetic(op, a.as_double(), b.as_double());
  if (op == "+" && a.string() && b.string()) return concatenate_texts(a, b, budget);
  if (op == "+" && a.list() && b.list() && a.list()->is_tuple == b.list()->is_tuple) {
    return concatenate_lists(*a.list(), *b.list(), budget);
  }
  if (op == "*" && (a.string() || a.list()) && b.is_integer()) return repeat(a, b.as_integer(), budget);
  if (op == "*" && (b.string() || b.list()) && a.is_integer()) return repeat(b, a.as_integer(), budget);
  if (op == "%" && a.string()) {
    const bool tuple = b.list() && b.list()->is_tuple;
    return percent_format(*a.string(), tuple ? b.list()->items : std::vector<Value>{b}, budget);
  }
  fail_types(op, a, b);
}

Value negate(const Value& value) {
  if (value.is_integer()) return integer_arithmetic('-', 0, value.as_integer());
  if (value.is_float()) return -value.as_double();
  if (value.is_undefined()) fail(value.get<Undefined>()->message);
  fail(fmt::format("minus {}", type_name(value)), "a number");
}

namespace {

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (const std::string* text = container.string()) {
    if (!item.string()) {
      fail(item.is_undefined() ? item.get<Undefined>()->message : fmt::format("{} in str", type_name(item)),
           "a string");
    }
    return find_text(*text, *item.string(), 0, budget) != std::string::npos;
  }
  if (const Dict* dict = container.dict()) return dict->find(item);
  if (const List* list = container.list()) {
    budget.bytes(std::min(list->weight, list->items.size() * (item.weight() + 1)));
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& other) { return equals(other, item); });
  }
  if (container.is_undefined()) return false;
  fail(fmt::format("{} in {}", type_name(item), type_name(container)), "a container");
}

}  // namespace

bool holds(const std::string& op, const Value& a, const Value& b, Budget& budget) {
  if (op == "in") return contains(b, a, budget);
  if (op == "not in") return !contains(b, a, budget);
  budget.bytes(std::min(a.weight(), b.weight()));
  if (op == "==") return equals(a, b);
  if (op == "!=") return !equals(a, b);
  const int order = compare(a, b);
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  if (op == ">") return order > 0;
  return order >= 0;
}

namespace {

Value missing(const Value& value, const std::string& name) {
  if (value.is_undefined()) fail(value.get<Undefined>()->message);
  return Value::undefined(
      fmt::format("'{} object' has no attribute '{}'", type_name(value), name.substr(0, 100)));
}

Value entry_of(const Value& value, const std::string& name) {
  if (const Dict* dict = value.dict()) {
    if (const Value* entry = dict->find(std::string_view(name))) return *entry;
  }
  return missing(value, name);
}

Value method_of(const Value& self, const std::string& name, Budget& budget) {
  return Function{name, [self, name, &budget](Arguments& arguments) {
                    return call_method(self, name, arguments, budget);
                  }};
}

}  // namespace

Value get_attribute(const Value& value, const std::string& name, Budget& budget) {
  if (const auto* space = value.name_space()) {
    const auto found = (*space)->attributes.find(name);
    return found == (*space)->attributes.end() ? missing(value, name) : found->second;
  }
  if (value.object()) return value.object()->attribute(name);
  if (has_method(value, name)) return method_of(value, name, budget);
  return entry_of(value, name);
}

Value get_item(const Value& value, const Value& key, Budget& budget) {
  if (const Value* entry = value.dict() ? value.dict()->find(key) : nullptr) return *entry;
  if (key.string()) return get_attribute(value, *key.string(), budget);
  if (key.is_integer() && (value.list() || value.string())) {
    int64_t index = key.as_integer();
    if (const List* list = value.list()) {
      const auto size = static_cast<int64_t>(list->items.size());
      if (index < 0) index += size;
      if (index >= 0 && index < size) return list->items[static_cast<size_t>(index)];
    } else {
      budget.bytes(value.string()->size() / 8);
      const std::vector<std::string_view> characters = characters_of(*value.string());
      const auto size = static_cast<int64_t>(characters.size());
      if (index < 0) index += size;
      if (index >= 0 && index < size) return characters[static_cast<size_t>(index)];
    }
    return Value::undefined(fmt::format("{} has no element {}", type_name(value), key.as_integer()));
  }
  return missing(value, to_text(key));
}

Value slice(const Value& value, const Value* start, const Value* stop, const Value* step, Budget& budget) {
  const auto bound = [](const Value* given) -> std::optional<int64_t> {
    if (!given || given->is_none()) return std::nullopt;
    if (!given->is_integer()) fail(fmt::format("a slice with a {}", type_name(*given)), "an integer");
    return given->as_integer();
  };
  if (value.is_undefined()) fail(value.get<Undefined>()->message);
  if (!value.string() && !value.list())
    fail(fmt::format("a slice of a {}", type_name(value)), "a string or a list");
  budget.bytes(value.string() ? value.string()->size() : value.list()->items.size() * sizeof(Value));
  std::vector<std::string_view> characters;
  if (value.string()) characters = characters_of(*value.string());
  const auto size = static_cast<int64_t>(value.string() ? characters.size() : value.list()->items.size());

  // slice.indices() of Python.
  const int64_t stride = bound(step).value_or(1);
  if (stride == 0) fail("a slice with step 0");
  const auto clamp = [&](std::optional<int64_t> at, int64_t fallback) {
    if (!at) return fallback;
    if (*at < 0) return std::max(*at + size, stride < 0 ? int64_t{-1} : int64_t{0});
    return std::min(*at, stride < 0 ? size - 1 : size);
  };
  const int64_t first = clamp(bound(start), stride < 0 ? size - 1 : 0);
  const int64_t last = clamp(bound(stop), stride < 0 ? -1 : size);
  std::string text;
  std::vector<Value> items;
  for (int64_t at = first; stride > 0 ? at < last : at > last;) {
    if (value.string()) {
      text += characters[static_cast<size_t>(at)];
    } else {
      items.push_back(value.list()->items[static_cast<size_t>(at)]);
    }
    if (__builtin_add_overflow(at, stride, &at)) break;
  }
  if (value.string()) return text;
  return Value::list(std::move(items), value.list()->is_tuple);
}

std::vector<Value> items_of(const Value& value, Budget& budget) {
  if (value.is_undefined()) return {};
  if (const List* list = value.list()) {
    budget.bytes(list->items.size() * sizeof(Value));
    return list->items;
  }
  std::vector<Value> items;
  if (const Dict* dict = value.dict()) {
    for (const auto& [key, entry] : dict->entries()) {
      budget.bytes(sizeof(Value));
      items.push_back(key);
    }
    return items;
  }
  if (const std::string* text = value.string()) {
    budget.bytes(text->size() * sizeof(std::string));
    for (const std::string_view character : characters_of(*text)) items.emplace_back(character);
    return items;
  }
  fail(fmt::format("a {}", type_name(value)), "something to iterate over");
}

int64_t length_of(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.list()) return static_cast<int64_t>(value.list()->items.size());
  if (value.dict()) return static_cast<int64_t>(value.dict()->size());
  if (const std::string* text = value.string()) {
    return std::count_if(text->begin(), text->end(),
                         [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
  }
  fail(fmt::format("the length of a {}", type_name(value)), "a string, list or dict");
}

namespace {

std::string format_one(char kind, const std::string& flags, const Value& value) {
  if (kind == 's' || kind == 'r') {
    return fmt::sprintf("%" + flags + "s", kind == 's' ? to_text(value) : to_repr(value));
  }
  if (!value.is_number()) fail(fmt::format("%{} of a {}", kind, type_name(value)), "a number");
  if (kind == 'f') return fmt::sprintf("%" + flags + "f", value.as_double());
  if (value.is_float() && !(std::fabs(value.as_double()) < 9e18)) fail_overflow();
  const int64_t integer = value.is_float() ? static_cast<int64_t>(value.as_double()) : value.as_integer();
  return fmt::sprintf("%" + flags + "d", integer);
}

}  // namespace

std::string percent_format(std::string_view format, const std::vector<Value>& values, Budget& budget) {
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    const size_t begin = i++;
    while (i < format.size() && std::string_view("0123456789.-+ ").find(format[i]) != std::string_view::npos)
      ++i;
    const std::string flags(format.substr(begin + 1, i - begin - 1));
    const char kind = i < format.size() ? format[i] : '\0';
    if (kind == '%' && flags.empty()) {
      out += '%';
      continue;
    }
    if (std::string_view("sdifr").find(kind) == std::string_view::npos || kind == '\0' || flags.size() > 6) {
      fail_unsupported(fmt::format("the format %{}{}", flags, kind == '\0' ? ' ' : kind));
    }
    if (next >= values.size()) fail("fewer values than the format names");
    const Value& value = values[next++];
    // Six digits of width at most: charged before it is built.
    budget.bytes(value.weight() + (flags.empty() ? 0 : 1'000'000));
    try {
      out += format_one(kind, flags, value);
    } catch (const fmt::format_error&) {
      fail_unsupported(fmt::format("the format %{}{}", flags, kind));
    }
  }
  if (next < values.size()) fail("more values than the format names");
  return out;
}

std::string escape_text(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::vector<std::string_view> characters_of(std::string_view text) {
  std::vector<std::string_view> characters;
  characters.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_step(text, i).length;
    characters.push_back(text.substr(i, length));
    i += length;
  }
  return characters;
}

size_t find_text(std::string_view text, std::string_view needle, size_t from, Budget& budget) {
  if (from > text.size()) return std::string_view::npos;
  // The search compares the whole needle at each place where its first byte occurs: at worst the product of
  // both lengths. Needles of templates have a few bytes, so only long ones pay.
  const uint64_t rounds = 1 + needle.size() / 64;
  const size_t found = needle.size() < 64 ? text.find(needle, from) : std::string_view::npos;
  if (needle.size() < 64) {
    budget.bytes(((found == std::string_view::npos ? text.size() : found) - from) / 8 + 1);
    return found;
  }
  budget.bytes((text.size() - from) / 8 * rounds + 1);
  return text.find(needle, from);
}

}  // namespace keysieve::jinja
