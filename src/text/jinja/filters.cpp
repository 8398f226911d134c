#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>

#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"
#include "text/utf8.h"

namespace keysieve::jinja {

namespace {

struct Call {
  const std::string& name;
  const Value& input;
  Arguments& arguments;
  Budget& budget;

  Parameters parameters(std::initializer_list<std::string_view> names) const {
    return Parameters(arguments, "filter " + name, names);
  }
  // The input as text: soft_str() of Jinja.
  std::string text() const {
    budget.bytes(input.weight());
    return to_text(input);
  }
};

// "a.b.0": attributes and indexes one after the other, as map(attribute=...) takes them.
Value attribute_path(const Value& value, const Value& path, Budget& budget) {
  if (path.is_integer()) return get_item(value, path, budget);
  if (!path.string()) fail(fmt::format("an attribute named by a {}", type_name(path)), "a string");
  Value current = value;
  std::string_view rest = *path.string();
  for (;;) {
    const size_t dot = rest.find('.');
    const std::string part(rest.substr(0, dot));
    int64_t index = 0;
    const auto number = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index =
        !part.empty() && number.ptr == part.data() + part.size() && number.ec == std::errc();
    current = get_item(current, is_index ? Value(index) : Value(part), budget);
    if (dot == std::string_view::npos) return current;
    rest.remove_prefix(dot + 1);
  }
}

Value filter_trim(const Call& call) {
  const Parameters parameters = call.parameters({"chars"});
  const bool given = parameters[0] && !parameters[0]->is_none();
  return strip_text(call.text(), given ? &parameters.require_string(0) : nullptr, true, true);
}

Value filter_length(const Call& call) {
  call.parameters({});
  return length_of(call.input);
}

Value filter_case(const Call& call) {
  call.parameters({});
  const std::string text = call.text();
  if (call.name == "upper") return upper_text(text);
  if (call.name == "lower") return lower_text(text);
  if (call.name == "capitalize") return capitalize_text(text);
  // The title filter begins words after white space, hyphens and opening brackets only: "it's" becomes
  // "It's".
  std::string out;
  size_t begin = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && std::string_view("- \t\n\r\f\v({[<").find(text[i]) == std::string_view::npos)
      continue;
    out += capitalize_text(std::string_view(text).substr(begin, i - begin));
    if (i < text.size()) out += text[i];
    begin = i + 1;
  }
  return out;
}

Value filter_join(const Call& call) {
  const Parameters parameters = call.parameters({"d", "attribute"});
  const std::string separator = parameters[0] ? to_text(*parameters[0]) : "";
  std::string out;
  bool first = true;
  for (const Value& item : items_of(call.input, call.budget)) {
    const Value value = parameters[1] ? attribute_path(item, *parameters[1], call.budget) : item;
    call.budget.bytes(separator.size() + value.weight());
    if (!first) out += separator;
    first = false;
    out += to_text(value);
  }
  return out;
}

Value filter_default(const Call& call) {
  const Parameters parameters = call.parameters({"default_value", "boolean"});
  const bool missing = call.input.is_undefined() || (parameters.truth_or(1, false) && !is_true(call.input));
  if (!missing) return call.input;
  return parameters[0] ? *parameters[0] : Value("");
}

Value filter_tojson(const Call& call) {
  // The order of transformers' own tojson, not of Jinja's.
  const Parameters parameters = call.parameters({"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = parameters.truth_or(0, false);
  style.sort_keys = parameters.truth_or(3, false);
  style.indent = parameters.integer_or(1, -1);
  if (style.indent > 16) fail_unsupported(fmt::format("tojson with indent {}", style.indent));
  if (style.indent >= 0) style.item_separator = ",";
  if (parameters[2] && !parameters[2]->is_none()) {
    const List* pair = parameters[2]->list();
    if (!pair || pair->items.size() != 2 || !pair->items[0].string() || !pair->items[1].string() ||
        parameters[2]->weight() > 100) {
      fail("tojson separators", "two short strings");
    }
    style.item_separator = *pair->items[0].string();
    style.key_separator = *pair->items[1].string();
  }
  // An item takes at least two bytes of weight, a line break and its indent, the separators, and escapes: of
  // two bytes six with ensure_ascii.
  const auto indent = static_cast<uint64_t>(std::max<int64_t>(style.indent, 0));
  call.budget.bytes(call.input.weight() *
                    ((style.ensure_ascii ? 3 : 2) + indent * static_cast<uint64_t>(call.input.depth()) / 2 +
                     style.item_separator.size() / 2));
  return to_json_text(call.input, style);
}

Value filter_first_last(const Call& call) {
  call.parameters({});
  const std::vector<Value> items = items_of(call.input, call.budget);
  if (items.empty()) return Value::undefined(fmt::format("the {} element of nothing", call.name));
  return call.name == "first" ? items.front() : items.back();
}

Value filter_list(const Call& call) {
  call.parameters({});
  return Value::list(items_of(call.input, call.budget));
}

Value pairs_of(const Call& call) {
  if (call.input.is_undefined()) return Value::list({});
  if (!call.input.dict()) fail(fmt::format("items of a {}", type_name(call.input)), "a dict");
  Arguments none;
  return call_method(call.input, "items", none, call.budget);
}

Value filter_items(const Call& call) {
  call.parameters({});
  return pairs_of(call);
}

// Merge sort by each entry's first value: stable, and safe for orders that are none (NaN), which std::sort is
// not.
std::vector<Value> sorted_by_key(std::vector<std::pair<Value, Value>> keyed, bool reverse) {
  const auto before = [reverse](const auto& a, const auto& b) {
    return reverse ? compare(b.first, a.first) < 0 : compare(a.first, b.first) < 0;
  };
  std::vector<std::pair<Value, Value>> merged(keyed.size());
  for (size_t width = 1; width < keyed.size(); width *= 2) {
    const auto place = [&](size_t at) {
      return keyed.begin() + static_cast<ptrdiff_t>(std::min(at, keyed.size()));
    };
    auto out = merged.begin();
    for (size_t at = 0; at < keyed.size(); at += 2 * width) {
      out = std::merge(place(at), place(at + width), place(at + width), place(at + 2 * width), out, before);
    }
    keyed.swap(merged);
  }
  std::vector<Value> items;
  for (auto& entry : keyed) items.push_back(std::move(entry.second));
  return items;
}

Value filter_dictsort(const Call& call) {
  const Parameters parameters = call.parameters({"case_sensitive", "by", "reverse"});
  const bool by_value = parameters[1] && equals(*parameters[1], Value("value"));
  const bool case_sensitive = parameters.truth_or(0, false);
  const Value pairs = pairs_of(call);
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& pair : pairs.list()->items) {
    Value key = pair.list()->items[by_value ? 1 : 0];
    if (key.string() && !case_sensitive) key = lower_text(*key.string());
    keyed.emplace_back(std::move(key), pair);
  }
  const bool reverse = parameters.truth_or(2, false);
  call.budget.bytes(call.input.weight() * 8);
  return Value::list(sorted_by_key(std::move(keyed), reverse));
}

Value filter_sort(const Call& call) {
  const Parameters parameters = call.parameters({"reverse", "case_sensitive", "attribute"});
  const bool reverse = parameters.truth_or(0, false);
  const bool case_sensitive = parameters.truth_or(1, false);
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : items_of(call.input, call.budget)) {
    Value key =
        parameters[2] && !parameters[2]->is_none() ? attribute_path(item, *parameters[2], call.budget) : item;
    if (key.string() && !case_sensitive) key = lower_text(*key.string());
    call.budget.bytes(key.weight() * 16);  // compared about log2(n) times
    keyed.emplace_back(std::move(key), item);
  }
  return Value::list(sorted_by_key(std::move(keyed), reverse));
}

Value filter_unique(const Call& call) {
  const Parameters parameters = call.parameters({"case_sensitive", "attribute"});
  const bool case_sensitive = parameters.truth_or(0, false);
  std::vector<Value> items;
  std::vector<Value> keys;
  for (const Value& item : items_of(call.input, call.budget)) {
    Value key = parameters[1] ? attribute_path(item, *parameters[1], call.budget) : item;
    if (key.string() && !case_sensitive) key = lower_text(*key.string());
    call.budget.step(keys.size() + 1);
    call.budget.bytes(key.weight() * (keys.size() + 1));
    if (std::any_of(keys.begin(), keys.end(), [&](const Value& other) { return equals(other, key); }))
      continue;
    keys.push_back(std::move(key));
    items.push_back(item);
  }
  return Value::list(std::move(items));
}

Value filter_reverse(const Call& call) {
  call.parameters({});
  const Value minus_one(int64_t{-1});
  if (call.input.string()) return slice(call.input, nullptr, nullptr, &minus_one, call.budget);
  std::vector<Value> items = items_of(call.input, call.budget);
  std::reverse(items.begin(), items.end());
  return Value::list(std::move(items));
}

Value filter_replace(const Call& call) {
  const Parameters parameters = call.parameters({"old", "new", "count"});
  return replace_text(call.text(), to_text(parameters.require(0)), to_text(parameters.require(1)),
                      parameters.integer_or(2, -1), call.budget);
}

Value filter_string(const Call& call) {
  call.parameters({});
  if (call.input.is_markup()) return call.input;
  return call.text();
}

Value filter_int(const Call& call) {
  const Parameters parameters = call.parameters({"default", "base"});
  const Value fallback = parameters[0] ? *parameters[0] : Value(int64_t{0});
  if (call.input.is_integer()) return call.input.as_integer();
  if (call.input.is_float()) {
    const double value = call.input.as_double();
    if (!(std::fabs(value) < 9.2e18)) return fallback;
    return static_cast<int64_t>(value);
  }
  if (!call.input.string()) return fallback;
  const std::string text = strip_text(*call.input.string(), nullptr, true, true);
  const int64_t base = parameters.integer_or(1, 10);
  if (base < 2 || base > 36) fail_unsupported(fmt::format("int with base {}", base));
  std::string_view digits = text;
  if (digits.starts_with('+')) digits.remove_prefix(1);
  int64_t integer = 0;
  const char* end = digits.data() + digits.size();
  const auto result = std::from_chars(digits.data(), end, integer, static_cast<int>(base));
  if (result.ec == std::errc() && result.ptr == end) return integer;
  double real = 0;
  const auto as_real = std::from_chars(digits.data(), end, real);
  if (as_real.ec == std::errc() && as_real.ptr == end && std::fabs(real) < 9.2e18)
    return static_cast<int64_t>(real);
  return fallback;
}

Value filter_float(const Call& call) {
  const Parameters parameters = call.parameters({"default"});
  if (call.input.is_number()) return call.input.as_double();
  if (call.input.string()) {
    const std::string text = strip_text(*call.input.string(), nullptr, true, true);
    double real = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), real);
    if (result.ec == std::errc() && result.ptr == text.data() + text.size()) return real;
  }
  return parameters[0] ? *parameters[0] : Value(0.0);
}

Value filter_escape(const Call& call) {
  call.parameters({});
  if (call.input.is_markup()) return call.input;
  return Value::markup(escape_text(call.text()));
}

Value filter_safe(const Call& call) {
  call.parameters({});
  return Value::markup(call.text());
}

Value filter_sum(const Call& call) {
  const Parameters parameters = call.parameters({"attribute", "start"});
  Value total = parameters[1] ? *parameters[1] : Value(int64_t{0});
  for (const Value& item : items_of(call.input, call.budget)) {
    const bool path = parameters[0] && !parameters[0]->is_none();
    total = binary("+", total, path ? attribute_path(item, *parameters[0], call.budget) : item, call.budget);
  }
  return total;
}

Value filter_min_max(const Call& call) {
  call.parameters({});
  const std::vector<Value> items = items_of(call.input, call.budget);
  if (items.empty()) return Value::undefined(fmt::format("the {} of nothing", call.name));
  call.budget.bytes(call.input.weight());
  const auto less = [](const Value& a, const Value& b) { return compare(a, b) < 0; };
  return call.name == "min" ? *std::min_element(items.begin(), items.end(), less)
                            : *std::max_element(items.begin(), items.end(), less);
}

Value filter_indent(const Call& call) {
  const Parameters parameters = call.parameters({"width", "first", "blank"});
  std::string margin;
  if (parameters[0] && parameters[0]->string()) {
    margin = *parameters[0]->string();
  } else {
    const int64_t width = parameters.integer_or(0, 4);
    if (width < 0 || width > 1000) fail_unsupported(fmt::format("indent by {}", width));
    margin.assign(static_cast<size_t>(width), ' ');
  }
  const bool blank = parameters.truth_or(2, false);
  const std::string text = call.text();
  std::string out = parameters.truth_or(1, false) ? margin : "";
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (at > 0 && (blank || end > at)) {
      call.budget.bytes(margin.size());
      out += margin;
    }
    out.append(text, at, end - at);
    if (end < text.size()) out += '\n';
    at = end + 1;
  }
  return out;
}

Value filter_round(const Call& call) {
  const Parameters parameters = call.parameters({"precision", "method"});
  if (!call.input.is_number()) fail(fmt::format("round of a {}", type_name(call.input)), "a number");
  const int64_t precision = parameters.integer_or(0, 0);
  if (precision < -300 || precision > 300) fail_unsupported(fmt::format("round to {} digits", precision));
  const std::string method = parameters[1] ? parameters.require_string(1) : "common";
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = call.input.as_double() * scale;
  if (method == "ceil") return std::ceil(scaled) / scale;
  if (method == "floor") return std::floor(scaled) / scale;
  if (method != "common") fail(fmt::format("round method '{}'", method), "common, ceil or floor");
  if (call.input.is_integer() && precision >= 0) return call.input.as_integer();
  return std::nearbyint(scaled) / scale;  // halves to even, as Python's round()
}

Value filter_abs(const Call& call) {
  call.parameters({});
  if (call.input.is_float()) return std::fabs(call.input.as_double());
  if (!call.input.is_integer()) fail(fmt::format("abs of a {}", type_name(call.input)), "a number");
  return call.input.as_integer() < 0 ? negate(call.input) : Value(call.input.as_integer());
}

Value filter_wordcount(const Call& call) {
  call.parameters({});
  Arguments none;
  const Value words = call_method(call.text(), "split", none, call.budget);
  return length_of(words);
}

Value filter_format(const Call& call) {
  if (!call.arguments.named.empty()) fail_unsupported("format with named values");
  return percent_format(call.text(), call.arguments.positional, call.budget);
}

Value filter_attr(const Call& call) {
  const Parameters parameters = call.parameters({"name"});
  return get_attribute(call.input, parameters.require_string(0), call.budget);
}

// What map, select and their like go through: in Jinja they take nothing that is false for an empty list.
std::vector<Value> items_if_any(const Call& call) {
  return is_true(call.input) ? items_of(call.input, call.budget) : std::vector<Value>();
}

// map('filter', arguments...) and map(attribute='name', default=...).
Value filter_map(const Call& call) {
  std::vector<Value> items;
  if (call.arguments.positional.empty()) {
    const Parameters parameters = call.parameters({"attribute", "default"});
    for (const Value& item : items_if_any(call)) {
      Value value = attribute_path(item, parameters.require(0), call.budget);
      if (value.is_undefined() && parameters[1]) value = *parameters[1];
      items.push_back(std::move(value));
    }
    return Value::list(std::move(items));
  }
  const std::string* filter = call.arguments.positional[0].string();
  if (!filter) fail("map without a filter's name", "a string");
  for (const Value& item : items_if_any(call)) {
    Arguments rest = call.arguments;
    rest.positional.erase(rest.positional.begin());
    items.push_back(apply_filter(*filter, item, rest, call.budget));
  }
  return Value::list(std::move(items));
}

// select, reject, selectattr, rejectattr: by a test, or by truth.
Value filter_select(const Call& call) {
  const bool by_attribute = call.name.ends_with("attr");
  const bool keep = call.name.starts_with("select");
  const size_t skip = by_attribute ? 1 : 0;
  const auto& given = call.arguments.positional;
  if (given.size() < skip) fail(fmt::format("{} without an attribute", call.name));
  const std::string* test = given.size() > skip ? given[skip].string() : nullptr;
  if (given.size() > skip && !test) fail(fmt::format("{} without a test's name", call.name), "a string");
  std::vector<Value> items;
  for (const Value& item : items_if_any(call)) {
    const Value value = by_attribute ? attribute_path(item, given[0], call.budget) : item;
    bool holds_here = false;
    if (test) {
      Arguments rest;
      rest.positional.assign(given.begin() + static_cast<ptrdiff_t>(skip) + 1, given.end());
      holds_here = apply_test(*test, value, rest, call.budget);
    } else {
      holds_here = is_true(value);
    }
    if (holds_here == keep) items.push_back(item);
  }
  return Value::list(std::move(items));
}

struct NamedFilter {
  std::string_view name;
  Value (*apply)(const Call& call);
};
constexpr std::array kFilters = {
    NamedFilter{"abs", filter_abs},           NamedFilter{"attr", filter_attr},
    NamedFilter{"capitalize", filter_case},   NamedFilter{"count", filter_length},
    NamedFilter{"d", filter_default},         NamedFilter{"default", filter_default},
    NamedFilter{"dictsort", filter_dictsort}, NamedFilter{"e", filter_escape},
    NamedFilter{"escape", filter_escape},     NamedFilter{"first", filter_first_last},
    NamedFilter{"float", filter_float},       NamedFilter{"format", filter_format},
    NamedFilter{"indent", filter_indent},     NamedFilter{"int", filter_int},
    NamedFilter{"items", filter_items},       NamedFilter{"join", filter_join},
    NamedFilter{"last", filter_first_last},   NamedFilter{"length", filter_length},
    NamedFilter{"list", filter_list},         NamedFilter{"lower", filter_case},
    NamedFilter{"map", filter_map},           NamedFilter{"max", filter_min_max},
    NamedFilter{"min", filter_min_max},       NamedFilter{"reject", filter_select},
    NamedFilter{"rejectattr", filter_select}, NamedFilter{"replace", filter_replace},
    NamedFilter{"reverse", filter_reverse},   NamedFilter{"round", filter_round},
    NamedFilter{"safe", filter_safe},         NamedFilter{"select", filter_select},
    NamedFilter{"selectattr", filter_select}, NamedFilter{"sort", filter_sort},
    NamedFilter{"string", filter_string},     NamedFilter{"sum", filter_sum},
    NamedFilter{"title", filter_case},        NamedFilter{"tojson", filter_tojson},
    NamedFilter{"trim", filter_trim},         NamedFilter{"unique", filter_unique},
    NamedFilter{"upper", filter_case},        NamedFilter{"wordcount", filter_wordcount},
};

const NamedFilter* find_filter(std::string_view name) {
  const auto* found =
      std::find_if(kFilters.begin(), kFilters.end(), [&](const auto& f) { return f.name == name; });
  return found == kFilters.end() ? nullptr : found;
}

}  // namespace

bool is_filter(const std::string& name) { return find_filter(name); }

Value apply_filter(const std::string& name, const Value& input, Arguments& arguments, Budget& budget) {
  const NamedFilter* filter = find_filter(name);
  if (!filter) fail_unsupported(fmt::format("the filter '{}'", name));
  budget.step();
  Value result = filter->apply({name, input, arguments, budget});
  if (result.string()) budget.bytes(result.string()->size());
  return result;
}

}  // namespace keysieve::jinja
