#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "keysieve/error.h"

namespace keysieve::jinja {

// What goes wrong inside the evaluator. ChatTemplate turns it into an Error naming the template and the line.
struct Failure {
  ErrorKind kind = ErrorKind::format;
  std::string found;
  std::string expected = {};
};
[[noreturn]] void fail(std::string found, std::string expected = {});
[[noreturn]] void fail_unsupported(std::string construct);

// What one rendering may spend, so that no template hangs or fills the memory. A chat template takes a few
// hundred steps a message, and copies the messages a few times.
class Budget {
 public:
  Budget(uint64_t steps, uint64_t bytes) : steps_(steps), bytes_(bytes) {}
  void step(uint64_t count = 1);  // throws Failure{resource}, as does bytes()
  void bytes(uint64_t count);     // bytes of new strings and lists, whether kept or not

 private:
  uint64_t steps_;
  uint64_t bytes_;
};

class Value;
class Dict;
class Object;
struct Arguments;
struct Function;
struct List;
struct Namespace;
struct Text;

struct Undefined {
  std::string message;  // "'x' is undefined"
};
struct None {};

// A value of the template language: Python's, as far as templates can tell. Strings, lists and dictionaries
// are immutable and shared, so copying a value is cheap.
class Value {
 public:
  using Data =
      std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>,
                   std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
                   std::shared_ptr<const Object>, std::shared_ptr<const Function>>;

  Value() : data_(None{}) {}
  Value(bool value) : data_(value) {}
  Value(int64_t value) : data_(value) {}
  Value(size_t value) : data_(static_cast<int64_t>(value)) {}
  Value(double value) : data_(value) {}
  Value(std::string value);
  Value(std::string_view value) : Value(std::string(value)) {}
  Value(const char* value) : Value(std::string(value)) {}
  Value(std::shared_ptr<Namespace> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Object> value) : data_(std::move(value)) {}
  Value(Function value);

  static Value undefined(std::string message);
  static Value markup(std::string text);
  // These throw Failure for items that are functions or namespaces, for nesting deeper than 100 and for more
  // weight than 64 MB.
  static Value list(std::vector<Value> items, bool is_tuple = false);
  static Value dict(Dict dict);
  static Value from_json(const nlohmann::ordered_json& json);

  template <class T>
  const T* get() const {
    return std::get_if<T>(&data_);
  }
  bool is_undefined() const { return get<Undefined>(); }
  bool is_none() const { return get<None>(); }
  bool is_bool() const { return get<bool>(); }
  bool is_integer() const { return get<int64_t>() || is_bool(); }  // True is 1, as in Python
  bool is_float() const { return get<double>(); }
  bool is_number() const { return is_integer() || is_float(); }
  const std::string* string() const;
  bool is_markup() const;
  const List* list() const;
  const Dict* dict() const;
  const std::shared_ptr<Namespace>* name_space() const { return get<std::shared_ptr<Namespace>>(); }
  const Object* object() const;
  const Function* function() const;

  // Of an integer or bool; of any number.
  int64_t as_integer() const;
  double as_double() const;
  // Containers: levels of nesting; plain values: 0. Functions, namespaces and objects are no data.
  bool is_data() const;
  int depth() const;
  // About the bytes of its printed form. A list may hold one value many times, so this may far exceed its
  // memory; it bounds what walking the value costs.
  uint64_t weight() const;

 private:
  Data data_;
};

struct Text {
  std::string text;
  bool is_markup;  // of `safe` or `escape`: what is added to it is escaped
};

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  int depth = 1;        // 1 + the deepest item's
  uint64_t weight = 1;  // see Value::weight
};

// Filled once, then only read. Keys are strings and, apart from them, integers (True is 1).
class Dict {
 public:
  using Entry = std::pair<Value, Value>;
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;  // null for a key that no dict has, such as a list
  // Throws Failure for a key of another type, and as Value::list() for the value.
  void set(Value key, Value value);
  const std::vector<Entry>& entries() const { return entries_; }
  size_t size() const { return entries_.size(); }
  int depth() const { return depth_; }
  uint64_t weight() const { return weight_; }

 private:
  std::vector<Entry> entries_;  // in order of insertion
  std::map<std::string, size_t, std::less<>> index_;
  std::map<int64_t, size_t> integers_;
  int depth_ = 1;
  uint64_t weight_ = 1;
};

// namespace(): the one mutable object. It holds data only (no functions, no namespaces), so nothing can refer
// to itself.
struct Namespace {
  std::map<std::string, Value, std::less<>> attributes;
};

// Objects that the evaluator itself provides: `loop`.
class Object {
 public:
  virtual ~Object() = default;
  virtual Value attribute(const std::string& name) const = 0;
};

// Call arguments.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct Function {
  std::string name;
  std::function<Value(Arguments&)> call;
};

// Arguments matched to parameter names; throws Failure for more or other arguments than named.
class Parameters {
 public:
  Parameters(const Arguments& arguments, std::string_view function,
             std::initializer_list<std::string_view> names);
  const Value* operator[](size_t index) const { return values_[index]; }  // null: not given
  const Value& require(size_t index) const;
  const std::string& require_string(size_t index) const;
  int64_t integer_or(size_t index, int64_t fallback) const;  // None counts as not given
  bool truth_or(size_t index, bool fallback) const;

 private:
  std::string function_;
  std::vector<const Value*> values_;
};

std::string type_name(const Value& value);  // Python's: "str", "list", "NoneType"
bool is_true(const Value& value);
bool equals(const Value& a, const Value& b);
// -1, 0 or 1; throws Failure for types without an order between them.
int compare(const Value& a, const Value& b);
std::string to_text(const Value& value);  // str()
std::string to_repr(const Value& value);  // repr()
std::string format_double(double value);  // repr() of a float

// json.dumps(); indent < 0 is the one-line form.
struct JsonStyle {
  bool ensure_ascii = false;
  int64_t indent = -1;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
std::string to_json_text(const Value& value, const JsonStyle& style);

}  // namespace keysieve::jinja
