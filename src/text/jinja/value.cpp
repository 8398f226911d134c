#include "text/jinja/value.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cmath>

#include "text/utf8.h"

namespace keysieve::jinja {

namespace {
// Deeper than any tool schema; keeps recursion over values (printing, freeing) shallow.
constexpr int kDeepestValue = 100;
constexpr uint64_t kHeaviestValue = uint64_t{64} << 20;

[[noreturn]] void fail_depth() { throw Failure{ErrorKind::resource, "a value nested deeper than 100"}; }
void check_weight(uint64_t weight) {
  if (weight > kHeaviestValue) throw Failure{ErrorKind::resource, "a value of more than 64 MB"};
}
}  // namespace

void fail(std::string found, std::string expected) {
  throw Failure{ErrorKind::format, std::move(found), std::move(expected)};
}
void fail_unsupported(std::string construct) { throw Failure{ErrorKind::unsupported, std::move(construct)}; }

void Budget::step(uint64_t count) {
  if (count > steps_) throw Failure{ErrorKind::resource, "the template takes too many steps"};
  steps_ -= count;
}
void Budget::bytes(uint64_t count) {
  if (count > bytes_) throw Failure{ErrorKind::resource, "the template builds too much text"};
  bytes_ -= count;
}

const Value* Dict::find(std::string_view key) const {
  const auto found = index_.find(key);
  return found == index_.end() ? nullptr : &entries_[found->second].second;
}

const Value* Dict::find(const Value& key) const {
  if (key.string()) return find(std::string_view(*key.string()));
  if (!key.is_integer()) return nullptr;
  const auto found = integers_.find(key.as_integer());
  return found == integers_.end() ? nullptr : &entries_[found->second].second;
}

void Dict::set(Value key, Value value) {
  if (!value.is_data()) fail_unsupported(fmt::format("a {} inside a dict", type_name(value)));
  if (!key.string() && !key.is_integer()) {
    fail_unsupported(fmt::format("a dict key of type {}", type_name(key)));
  }
  depth_ = std::max(depth_, value.depth() + 1);
  weight_ += key.weight() + value.weight() + 2;
  if (depth_ > kDeepestValue) fail_depth();
  check_weight(weight_);
  const size_t next = entries_.size();
  const size_t place = key.string() ? index_.try_emplace(*key.string(), next).first->second
                                    : integers_.try_emplace(key.as_integer(), next).first->second;
  if (place == next) {
    entries_.emplace_back(std::move(key), std::move(value));
  } else {
    entries_[place].second = std::move(value);
  }
}

Value::Value(std::string value) : data_(std::make_shared<const Text>(Text{std::move(value), false})) {}
Value::Value(Function value) : data_(std::make_shared<const Function>(std::move(value))) {}

Value Value::undefined(std::string message) {
  Value value;
  value.data_ = Undefined{std::move(message)};
  return value;
}

Value Value::markup(std::string text) {
  Value value;
  value.data_ = std::make_shared<const Text>(Text{std::move(text), true});
  return value;
}

Value Value::list(std::vector<Value> items, bool is_tuple) {
  int depth = 1;
  uint64_t weight = 1;
  for (const Value& item : items) {
    if (!item.is_data()) fail_unsupported(fmt::format("a {} inside a list", type_name(item)));
    depth = std::max(depth, item.depth() + 1);
    weight += item.weight() + 2;
    check_weight(weight);
  }
  if (depth > kDeepestValue) fail_depth();
  Value value;
  value.data_ = std::make_shared<const List>(List{std::move(items), is_tuple, depth, weight});
  return value;
}

Value Value::dict(Dict dict) {
  Value value;
  value.data_ = std::make_shared<const Dict>(std::move(dict));
  return value;
}

namespace {

Value convert_json(const nlohmann::ordered_json& json, int depth) {
  if (depth > kDeepestValue) fail_depth();
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean:
      return json.get<bool>();
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return json.get<double>();
      return json.get<int64_t>();
    case nlohmann::ordered_json::value_t::number_integer:
      return json.get<int64_t>();
    case nlohmann::ordered_json::value_t::number_float:
      return json.get<double>();
    case nlohmann::ordered_json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      return is_valid_utf8(text) ? text : replace_invalid_utf8(text);
    }
    case nlohmann::ordered_json::value_t::array: {
      std::vector<Value> items;
      for (const auto& item : json) items.push_back(convert_json(item, depth + 1));
      return Value::list(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      Dict dict;
      for (const auto& [key, item] : json.items()) dict.set(key, convert_json(item, depth + 1));
      return Value::dict(std::move(dict));
    }
    default:
      return {};
  }
}

}  // namespace

Value Value::from_json(const nlohmann::ordered_json& json) { return convert_json(json, 1); }

const std::string* Value::string() const {
  const auto* text = get<std::shared_ptr<const Text>>();
  return text ? &(*text)->text : nullptr;
}
bool Value::is_markup() const {
  const auto* text = get<std::shared_ptr<const Text>>();
  return text && (*text)->is_markup;
}
const List* Value::list() const {
  const auto* list = get<std::shared_ptr<const List>>();
  return list ? list->get() : nullptr;
}
const Dict* Value::dict() const {
  const auto* dict = get<std::shared_ptr<const Dict>>();
  return dict ? dict->get() : nullptr;
}
const Object* Value::object() const {
  const auto* object = get<std::shared_ptr<const Object>>();
  return object ? object->get() : nullptr;
}
const Function* Value::function() const {
  const auto* function = get<std::shared_ptr<const Function>>();
  return function ? function->get() : nullptr;
}

int64_t Value::as_integer() const {
  if (const bool* truth = get<bool>()) return *truth;
  return *get<int64_t>();
}
double Value::as_double() const { return is_float() ? *get<double>() : static_cast<double>(as_integer()); }

bool Value::is_data() const { return !name_space() && !object() && !function(); }
int Value::depth() const {
  if (const List* items = list()) return items->depth;
  if (const Dict* entries = dict()) return entries->depth();
  return 0;
}

uint64_t Value::weight() const {
  if (const std::string* text = string()) return text->size() + 2;
  if (const List* items = list()) return items->weight;
  if (const Dict* entries = dict()) return entries->weight();
  return 8;
}

Parameters::Parameters(const Arguments& arguments, std::string_view function,
                       std::initializer_list<std::string_view> names)
    : function_(function), values_(names.size()) {
  if (arguments.positional.size() > names.size()) {
    fail(fmt::format("{} called with {} arguments", function, arguments.positional.size()),
         fmt::format("at most {}", names.size()));
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto* known = std::find(names.begin(), names.end(), name);
    if (known == names.end()) fail_unsupported(fmt::format("argument '{}' of {}", name, function));
    const Value*& slot = values_[static_cast<size_t>(known - names.begin())];
    if (slot) fail(fmt::format("{} got two values for '{}'", function, name));
    slot = &value;
  }
}

const Value& Parameters::require(size_t index) const {
  if (!values_[index]) fail(fmt::format("{} lacks argument {}", function_, index + 1));
  return *values_[index];
}
const std::string& Parameters::require_string(size_t index) const {
  const std::string* text = require(index).string();
  if (!text) fail(fmt::format("{} got a {}", function_, type_name(require(index))), "a string");
  return *text;
}
int64_t Parameters::integer_or(size_t index, int64_t fallback) const {
  if (!values_[index] || values_[index]->is_none()) return fallback;
  if (!values_[index]->is_integer()) {
    fail(fmt::format("{} got a {}", function_, type_name(*values_[index])), "an integer");
  }
  return values_[index]->as_integer();
}
bool Parameters::truth_or(size_t index, bool fallback) const {
  return values_[index] ? is_true(*values_[index]) : fallback;
}

std::string type_name(const Value& value) {
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "NoneType";
  if (value.is_bool()) return "bool";
  if (value.is_integer()) return "int";
  if (value.is_float()) return "float";
  if (value.string()) return "str";
  if (value.list()) return value.list()->is_tuple ? "tuple" : "list";
  if (value.dict()) return "dict";
  if (value.name_space()) return "namespace";
  if (value.function()) return "function";
  return "loop";
}

bool is_true(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_integer()) return value.as_integer() != 0;
  if (value.is_float()) return value.as_double() != 0;
  if (value.string()) return !value.string()->empty();
  if (value.list()) return !value.list()->items.empty();
  if (value.dict()) return value.dict()->size() > 0;
  return true;
}

bool equals(const Value& a, const Value& b) {
  if (a.is_integer() && b.is_integer()) return a.as_integer() == b.as_integer();
  if (a.is_number() && b.is_number()) return a.as_double() == b.as_double();
  if (a.string() && b.string()) return *a.string() == *b.string();
  if (a.list() && b.list()) {
    return a.list()->is_tuple == b.list()->is_tuple &&
           std::equal(a.list()->items.begin(), a.list()->items.end(), b.list()->items.begin(),
                      b.list()->items.end(), equals);
  }
  if (a.dict() && b.dict()) {
    if (a.dict()->size() != b.dict()->size()) return false;
    for (const auto& [key, value] : a.dict()->entries()) {
      const Value* other = b.dict()->find(key);
      if (!other || !equals(value, *other)) return false;
    }
    return true;
  }
  if (a.name_space() && b.name_space()) return *a.name_space() == *b.name_space();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

int compare(const Value& a, const Value& b) {
  const auto order = [](const auto& x, const auto& y) { return x < y ? -1 : (y < x ? 1 : 0); };
  if (a.is_integer() && b.is_integer()) return order(a.as_integer(), b.as_integer());
  if (a.is_number() && b.is_number()) return order(a.as_double(), b.as_double());
  if (a.string() && b.string()) return order(*a.string(), *b.string());
  if (a.list() && b.list() && a.list()->is_tuple == b.list()->is_tuple) {
    const auto& x = a.list()->items;
    const auto& y = b.list()->items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equals(x[i], y[i])) return compare(x[i], y[i]);
    }
    return order(x.size(), y.size());
  }
  if (a.is_undefined()) fail(a.get<Undefined>()->message);
  if (b.is_undefined()) fail(b.get<Undefined>()->message);
  fail(fmt::format("no order between {} and {}", type_name(a), type_name(b)));
}

std::string format_double(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string to_text(const Value& value) {
  if (value.is_undefined()) return {};
  if (value.string()) return *value.string();
  return to_repr(value);
}

namespace {

// str.isprintable() of Python: neither separators (but for the space) nor control, format, private or
// unassigned.
bool is_printable(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

std::string repr_of_string(std::string_view text) {
  // Python quotes with ' unless the text has a ' and no ".
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    const char32_t c = step.code_point;
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      out += '\\';
      out += text[i];
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (!is_printable(c)) {
      const auto code = static_cast<uint32_t>(c);
      out += code < 0x100     ? fmt::format("\\x{:02x}", code)
             : code < 0x10000 ? fmt::format("\\u{:04x}", code)
                              : fmt::format("\\U{:08x}", code);
    } else {
      out += text.substr(i, step.length);
    }
    i += step.length;
  }
  return out + quote;
}

}  // namespace

std::string to_repr(const Value& value) {
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "None";
  if (value.is_bool()) return value.as_integer() ? "True" : "False";
  if (value.is_integer()) return fmt::format("{}", value.as_integer());
  if (value.is_float()) return format_double(value.as_double());
  if (value.string()) return repr_of_string(*value.string());
  if (const List* list = value.list()) {
    std::string out(1, list->is_tuple ? '(' : '[');
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out += ", ";
      out += to_repr(list->items[i]);
    }
    if (list->is_tuple && list->items.size() == 1) out += ',';
    return out + (list->is_tuple ? ')' : ']');
  }
  if (const Dict* dict = value.dict()) {
    std::string out = "{";
    for (const auto& [key, item] : dict->entries()) {
      if (out.size() > 1) out += ", ";
      out += to_repr(key) + ": " + to_repr(item);
    }
    return out + "}";
  }
  fail_unsupported(fmt::format("printing a {}", type_name(value)));
}

namespace {

// In UTF-16, as JSON's escapes are.
void append_escaped(std::string& out, char32_t c) {
  const auto code = static_cast<uint32_t>(c);
  if (code >= 0x10000) {
    out += fmt::format("\\u{:04x}\\u{:04x}", 0xd7c0 + (code >> 10), 0xdc00 + (code & 0x3ff));
  } else {
    out += fmt::format("\\u{:04x}", code);
  }
}

void append_json_string(std::string& out, std::string_view text, bool ensure_ascii) {
  out += '"';
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          append_escaped(out, static_cast<unsigned char>(c));
        } else if (ensure_ascii && static_cast<unsigned char>(c) >= 0x7f) {
          const Utf8Step step = utf8_step(text, i);
          append_escaped(out, step.code_point);
          i += step.length - 1;
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

void append_json(std::string& out, const Value& value, const JsonStyle& style, int64_t level);

template <class Items, class Append>
void append_json_items(std::string& out, std::string_view brackets, const Items& items,
                       const JsonStyle& style, int64_t level, Append append) {
  out += brackets[0];
  bool first = true;
  const auto new_line = [&](int64_t depth) {
    if (style.indent >= 0) out.append(1, '\n').append(static_cast<size_t>(style.indent * depth), ' ');
  };
  for (const auto& item : items) {
    if (!first) out += style.item_separator;
    first = false;
    new_line(level + 1);
    append(item);
  }
  if (!first) new_line(level);
  out += brackets[1];
}

void append_json(std::string& out, const Value& value, const JsonStyle& style, int64_t level) {
  if (value.is_none()) {
    out += "null";
  } else if (value.is_bool()) {
    out += value.as_integer() ? "true" : "false";
  } else if (value.is_float() && !std::isfinite(value.as_double())) {
    out += std::isnan(value.as_double()) ? "NaN" : (value.as_double() < 0 ? "-Infinity" : "Infinity");
  } else if (value.is_number()) {
    out += to_repr(value);
  } else if (value.string()) {
    append_json_string(out, *value.string(), style.ensure_ascii);
  } else if (const List* list = value.list()) {
    append_json_items(out, "[]", list->items, style, level,
                      [&](const Value& item) { append_json(out, item, style, level + 1); });
  } else if (const Dict* dict = value.dict()) {
    std::vector<const Dict::Entry*> entries;
    for (const Dict::Entry& entry : dict->entries()) entries.push_back(&entry);
    if (style.sort_keys) {
      std::sort(entries.begin(), entries.end(),
                [](auto* a, auto* b) { return compare(a->first, b->first) < 0; });
    }
    append_json_items(out, "{}", entries, style, level, [&](const Dict::Entry* entry) {
      std::string key;
      append_json(key, entry->first, style, level);
      out += entry->first.string() ? key : '"' + key + '"';
      out += style.key_separator;
      append_json(out, entry->second, style, level + 1);
    });
  } else {
    fail(fmt::format("tojson of a {}", type_name(value)), "data");
  }
}

}  // namespace

std::string to_json_text(const Value& value, const JsonStyle& style) {
  std::string out;
  append_json(out, value, style, 0);
  return out;
}

}  // namespace keysieve::jinja
