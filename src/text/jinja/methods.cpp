#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"
#include "text/utf8.h"

namespace keysieve::jinja {

std::string strip_text(std::string_view text, const std::string* characters, bool left, bool right) {
  std::vector<std::string_view> set;
  if (characters) {
    // Every stripped character is looked up in the set: keep it short.
    if (characters->size() > 256) fail_unsupported("strip with more than 256 bytes of characters");
    set = characters_of(*characters);
  }
  const auto stripped = [&](std::string_view character) {
    if (!characters) return is_python_space(utf8_step(character, 0).code_point);
    return std::find(set.begin(), set.end(), character) != set.end();
  };
  while (left && !text.empty()) {
    const size_t length = utf8_step(text, 0).length;
    if (!stripped(text.substr(0, length))) break;
    text.remove_prefix(length);
  }
  while (right && !text.empty()) {
    size_t at = text.size() - 1;
    while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
    if (!stripped(text.substr(at))) break;
    text.remove_suffix(text.size() - at);
  }
  return std::string(text);
}

std::string replace_text(std::string_view text, std::string_view from, std::string_view to, int64_t limit,
                         Budget& budget) {
  std::string out;
  size_t at = 0;
  for (int64_t count = 0; limit < 0 || count < limit; ++count) {
    if (from.empty()) {  // between all characters, as Python does
      budget.bytes(to.size() + 1);
      out += to;
      if (at >= text.size()) break;
      const size_t length = utf8_step(text, at).length;
      out += text.substr(at, length);
      at += length;
      continue;
    }
    const size_t found = find_text(text, from, at, budget);
    if (found == std::string_view::npos) break;
    budget.bytes(to.size() + 1);
    out.append(text.substr(at, found - at)).append(to);
    at = found + from.size();
  }
  if (at < text.size()) out += text.substr(at);
  return out;
}

namespace {

template <class Map>
std::string map_characters(std::string_view text, Map map) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    append_utf8(out, static_cast<char32_t>(map(static_cast<utf8proc_int32_t>(step.code_point))));
    i += step.length;
  }
  return out;
}

bool is_letter(utf8proc_int32_t c) {
  const utf8proc_category_t category = utf8proc_category(c);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

}  // namespace

// Simple case mappings, one character to one: "ß" stays in upper case where Python writes "SS".
std::string upper_text(std::string_view text) {
  return map_characters(text, [](utf8proc_int32_t c) { return utf8proc_toupper(c); });
}
std::string lower_text(std::string_view text) {
  return map_characters(text, [](utf8proc_int32_t c) { return utf8proc_tolower(c); });
}
std::string capitalize_text(std::string_view text) {
  bool first = true;
  return map_characters(text, [&first](utf8proc_int32_t c) {
    const auto mapped = first ? utf8proc_totitle(c) : utf8proc_tolower(c);
    first = false;
    return mapped;
  });
}
std::string title_text(std::string_view text) {
  bool inside = false;
  return map_characters(text, [&inside](utf8proc_int32_t c) {
    const auto mapped = inside ? utf8proc_tolower(c) : utf8proc_totitle(c);
    inside = is_letter(c);
    return mapped;
  });
}

namespace {

const std::string* characters_argument(const Parameters& parameters) {
  if (!parameters[0] || parameters[0]->is_none()) return nullptr;
  return &parameters.require_string(0);
}

Value strings_to_list(const std::vector<std::string_view>& parts) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const std::string_view part : parts) items.emplace_back(part);
  return Value::list(std::move(items));
}

// split() and rsplit(): by white space if no separator is given.
Value split_text(std::string_view text, const Parameters& parameters, bool from_right, Budget& budget) {
  const std::string* separator = characters_argument(parameters);
  const int64_t limit = parameters.integer_or(1, -1);
  if (separator && separator->empty()) fail("split with an empty separator");
  budget.bytes(text.size());
  std::vector<std::string_view> parts;
  if (separator) {
    size_t at = 0;
    for (;;) {
      const size_t found = find_text(text, *separator, at, budget);
      if (found == std::string_view::npos ||
          (!from_right && limit >= 0 && std::cmp_greater_equal(parts.size(), limit))) {
        break;
      }
      parts.push_back(text.substr(at, found - at));
      at = found + separator->size();
    }
    parts.push_back(text.substr(at));
    if (from_right && limit >= 0 && std::cmp_greater(parts.size(), limit + 1)) {
      const size_t joined = parts.size() - static_cast<size_t>(limit);
      const auto length =
          static_cast<size_t>(parts[joined - 1].data() + parts[joined - 1].size() - text.data());
      parts.erase(parts.begin() + 1, parts.begin() + static_cast<ptrdiff_t>(joined));
      parts[0] = text.substr(0, length);
    }
  } else {
    if (from_right && limit >= 0) fail_unsupported("rsplit with a limit and no separator");
    size_t begin = std::string_view::npos;
    for (size_t i = 0; i < text.size();) {
      const Utf8Step step = utf8_step(text, i);
      if (!is_python_space(step.code_point)) {
        if (begin == std::string_view::npos) begin = i;
        if (limit >= 0 && std::cmp_greater_equal(parts.size(), limit)) break;  // the rest is one part
      } else if (begin != std::string_view::npos) {
        parts.push_back(text.substr(begin, i - begin));
        begin = std::string_view::npos;
      }
      i += step.length;
    }
    if (begin != std::string_view::npos) {
      std::string_view rest = text.substr(begin);
      const std::string kept = strip_text(rest, nullptr, false, true);
      parts.push_back(rest.substr(0, kept.size()));
    }
  }
  budget.bytes(parts.size() * (sizeof(Value) + sizeof(std::string)));
  return strings_to_list(parts);
}

Value split_lines(std::string_view text, Budget& budget) {
  std::vector<std::string_view> parts;
  size_t at = 0;
  while (at < text.size()) {
    size_t end = text.find_first_of("\r\n", at);
    if (end == std::string_view::npos) end = text.size();
    parts.push_back(text.substr(at, end - at));
    at = end + (text.substr(end, 2) == "\r\n" ? 2 : 1);
  }
  budget.bytes(text.size() + parts.size() * (sizeof(Value) + sizeof(std::string)));
  return strings_to_list(parts);
}

// startswith and endswith take a string or a tuple of them.
template <class Matches>
bool matches_any(const Parameters& parameters, Matches matches) {
  const List* list = parameters.require(0).list();
  if (!list) return matches(parameters.require_string(0));
  return std::any_of(list->items.begin(), list->items.end(), [&](const Value& item) {
    if (!item.string()) fail("startswith or endswith of a list with other things than strings");
    return matches(*item.string());
  });
}

int64_t character_index(std::string_view text, size_t byte) {
  if (byte == std::string_view::npos) return -1;
  return length_of(Value(text.substr(0, byte)));
}

Value join_text(const std::string& separator, const Value& sequence, Budget& budget) {
  std::string out;
  bool first = true;
  for (const Value& item : items_of(sequence, budget)) {
    if (!item.string()) fail(fmt::format("join of a {}", type_name(item)), "strings");
    budget.bytes(separator.size() + item.string()->size());
    if (!first) out += separator;
    first = false;
    out += *item.string();
  }
  return out;
}

// str.format with {}, {0} and {name}.
std::string brace_format(std::string_view format, const Arguments& arguments, Budget& budget) {
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    const char c = format[i];
    if ((c == '{' || c == '}') && format.substr(i + 1, 1) == std::string_view(&c, 1)) {
      out += c;
      ++i;
      continue;
    }
    if (c != '{') {
      out += c;
      continue;
    }
    const size_t end = format.find('}', i);
    if (end == std::string_view::npos) fail("format: a '{' without '}'");
    const std::string field(format.substr(i + 1, end - i - 1));
    const Value* value = nullptr;
    size_t index = next;
    const auto number = std::from_chars(field.data(), field.data() + field.size(), index);
    if (field.empty() || (number.ec == std::errc() && number.ptr == field.data() + field.size())) {
      if (field.empty()) ++next;
      if (index < arguments.positional.size()) value = &arguments.positional[index];
    } else {
      for (const auto& [name, named] : arguments.named) {
        if (name == field) value = &named;
      }
      if (!value && field.find_first_of(":!.[") != std::string::npos) {
        fail_unsupported(fmt::format("the format field {{{}}}", field));
      }
    }
    if (!value) fail(fmt::format("format: no value for {{{}}}", field));
    budget.bytes(value->weight());
    out += to_text(*value);
    i = end;
  }
  return out;
}

template <class Test>
bool all_characters(std::string_view text, Test test) {
  bool any = false;
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    if (!test(static_cast<utf8proc_int32_t>(step.code_point))) return false;
    any = true;
    i += step.length;
  }
  return any;
}

using StringMethod = Value (*)(const std::string& self, const std::string& name, Arguments& arguments,
                               Budget& budget);

Value strip_method(const std::string& self, const std::string& name, Arguments& arguments, Budget&) {
  const Parameters parameters(arguments, name, {"chars"});
  return strip_text(self, characters_argument(parameters), name != "rstrip", name != "lstrip");
}
Value case_method(const std::string& self, const std::string& name, Arguments& arguments, Budget&) {
  const Parameters parameters(arguments, name, {});
  if (name == "upper") return upper_text(self);
  if (name == "lower") return lower_text(self);
  return name == "title" ? title_text(self) : capitalize_text(self);
}
Value split_method(const std::string& self, const std::string& name, Arguments& arguments, Budget& budget) {
  const Parameters parameters(arguments, name, {"sep", "maxsplit"});
  return split_text(self, parameters, name == "rsplit", budget);
}
Value affix_method(const std::string& self, const std::string& name, Arguments& arguments, Budget&) {
  const Parameters parameters(arguments, name, {"prefix"});
  if (name == "startswith")
    return matches_any(parameters, [&](auto& affix) { return self.starts_with(affix); });
  if (name == "endswith") return matches_any(parameters, [&](auto& affix) { return self.ends_with(affix); });
  const std::string& affix = parameters.require_string(0);
  if (name == "removeprefix") return self.starts_with(affix) ? self.substr(affix.size()) : self;
  return self.ends_with(affix) ? self.substr(0, self.size() - affix.size()) : self;
}
Value replace_method(const std::string& self, const std::string& name, Arguments& arguments, Budget& budget) {
  const Parameters parameters(arguments, name, {"old", "new", "count"});
  return replace_text(self, parameters.require_string(0), parameters.require_string(1),
                      parameters.integer_or(2, -1), budget);
}
Value find_method(const std::string& self, const std::string& name, Arguments& arguments, Budget& budget) {
  const Parameters parameters(arguments, name, {"sub"});
  const std::string& needle = parameters.require_string(0);
  budget.bytes(self.size() / 8 * (1 + needle.size() / 64));
  if (name == "count") {
    int64_t count = 0;
    if (needle.empty()) return length_of(Value(self)) + 1;
    for (size_t at = self.find(needle); at != std::string::npos; at = self.find(needle, at + needle.size()))
      ++count;
    return count;
  }
  const int64_t index = character_index(self, name[0] == 'r' ? self.rfind(needle) : self.find(needle));
  if (index < 0 && name.ends_with("index")) fail(fmt::format("{}: no such text", name));
  return index;
}
Value join_method(const std::string& self, const std::string& name, Arguments& arguments, Budget& budget) {
  const Parameters parameters(arguments, name, {"iterable"});
  return join_text(self, parameters.require(0), budget);
}
Value format_method(const std::string& self, const std::string&, Arguments& arguments, Budget& budget) {
  return brace_format(self, arguments, budget);
}
Value lines_method(const std::string& self, const std::string& name, Arguments& arguments, Budget& budget) {
  const Parameters parameters(arguments, name, {});
  return split_lines(self, budget);
}
Value partition_method(const std::string& self, const std::string& name, Arguments& arguments,
                       Budget& budget) {
  const Parameters parameters(arguments, name, {"sep"});
  const std::string& separator = parameters.require_string(0);
  if (separator.empty()) fail("partition with an empty separator");
  budget.bytes(self.size() * (1 + separator.size() / 64));
  const bool right = name == "rpartition";
  const size_t found = right ? self.rfind(separator) : self.find(separator);
  if (found == std::string::npos) {
    if (right) return Value::list({"", "", self}, true);
    return Value::list({self, "", ""}, true);
  }
  return Value::list({self.substr(0, found), separator, self.substr(found + separator.size())}, true);
}
Value property_method(const std::string& self, const std::string& name, Arguments& arguments, Budget&) {
  const Parameters parameters(arguments, name, {});
  if (name == "isspace")
    return all_characters(self, [](auto c) { return is_python_space(static_cast<char32_t>(c)); });
  if (name == "isalpha") return all_characters(self, is_letter);
  const auto is_digit = [](utf8proc_int32_t c) { return utf8proc_category(c) == UTF8PROC_CATEGORY_ND; };
  if (name == "isdigit" || name == "isnumeric" || name == "isdecimal") return all_characters(self, is_digit);
  if (name == "isalnum") return all_characters(self, [&](auto c) { return is_letter(c) || is_digit(c); });
  const bool upper = name == "isupper";
  bool cased = false;
  for (size_t i = 0; i < self.size();) {
    const Utf8Step step = utf8_step(self, i);
    const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(step.code_point));
    if (category == (upper ? UTF8PROC_CATEGORY_LL : UTF8PROC_CATEGORY_LU)) return false;
    cased |= category == (upper ? UTF8PROC_CATEGORY_LU : UTF8PROC_CATEGORY_LL);
    i += step.length;
  }
  return cased;
}

struct NamedMethod {
  std::string_view name;
  StringMethod call;
};
constexpr std::array kStringMethods = {
    NamedMethod{"strip", strip_method},         NamedMethod{"lstrip", strip_method},
    NamedMethod{"rstrip", strip_method},        NamedMethod{"upper", case_method},
    NamedMethod{"lower", case_method},          NamedMethod{"title", case_method},
    NamedMethod{"capitalize", case_method},     NamedMethod{"split", split_method},
    NamedMethod{"rsplit", split_method},        NamedMethod{"startswith", affix_method},
    NamedMethod{"endswith", affix_method},      NamedMethod{"removeprefix", affix_method},
    NamedMethod{"removesuffix", affix_method},  NamedMethod{"replace", replace_method},
    NamedMethod{"find", find_method},           NamedMethod{"rfind", find_method},
    NamedMethod{"index", find_method},          NamedMethod{"rindex", find_method},
    NamedMethod{"count", find_method},          NamedMethod{"join", join_method},
    NamedMethod{"format", format_method},       NamedMethod{"splitlines", lines_method},
    NamedMethod{"partition", partition_method}, NamedMethod{"rpartition", partition_method},
    NamedMethod{"isspace", property_method},    NamedMethod{"isalpha", property_method},
    NamedMethod{"isdigit", property_method},    NamedMethod{"isnumeric", property_method},
    NamedMethod{"isdecimal", property_method},  NamedMethod{"isalnum", property_method},
    NamedMethod{"isupper", property_method},    NamedMethod{"islower", property_method},
};

constexpr std::array<std::string_view, 4> kDictMethods = {"items", "keys", "values", "get"};
constexpr std::array<std::string_view, 2> kListMethods = {"index", "count"};

template <class Names>
bool is_among(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Value call_dict_method(const Dict& self, const std::string& name, Arguments& arguments, Budget& budget) {
  if (name == "get") {
    const Parameters parameters(arguments, name, {"key", "default"});
    const Value& key = parameters.require(0);
    if (const Value* entry = self.find(key)) return *entry;
    return parameters[1] ? *parameters[1] : Value();
  }
  const Parameters parameters(arguments, name, {});
  std::vector<Value> items;
  for (const auto& [key, value] : self.entries()) {
    budget.bytes(4 * sizeof(Value));
    if (name == "values") {
      items.push_back(value);
    } else if (name == "keys") {
      items.push_back(key);
    } else {
      items.push_back(Value::list({key, value}, true));
    }
  }
  return Value::list(std::move(items));
}

Value call_list_method(const List& self, const std::string& name, Arguments& arguments, Budget& budget) {
  const Parameters parameters(arguments, name, {"value"});
  budget.bytes(self.weight);
  const auto equal = [&](const Value& item) { return equals(item, parameters.require(0)); };
  if (name == "count")
    return static_cast<int64_t>(std::count_if(self.items.begin(), self.items.end(), equal));
  const auto found = std::find_if(self.items.begin(), self.items.end(), equal);
  if (found == self.items.end()) fail("index: not in the list");
  return static_cast<int64_t>(found - self.items.begin());
}

}  // namespace

bool has_method(const Value& self, const std::string& name) {
  if (self.string()) {
    return std::any_of(kStringMethods.begin(), kStringMethods.end(),
                       [&](const auto& method) { return method.name == name; });
  }
  if (self.dict()) return is_among(kDictMethods, name);
  return self.list() && is_among(kListMethods, name);
}

Value call_method(const Value& self, const std::string& name, Arguments& arguments, Budget& budget) {
  if (self.dict()) return call_dict_method(*self.dict(), name, arguments, budget);
  if (self.list()) return call_list_method(*self.list(), name, arguments, budget);
  const auto method = std::find_if(kStringMethods.begin(), kStringMethods.end(),
                                   [&](const auto& known) { return known.name == name; });
  budget.bytes(self.string()->size() / 8);
  Value result = method->call(*self.string(), name, arguments, budget);
  if (result.string()) budget.bytes(result.string()->size());
  return result;
}

}  // namespace keysieve::jinja
