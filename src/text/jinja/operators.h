#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/value.h"

namespace keysieve::jinja {

// The operations of the language, as Python and Jinja define them. All throw Failure where Python raises.

// + - * / // % ** ~
Value binary(const std::string& op, const Value& a, const Value& b, Budget& budget);
Value negate(const Value& value);
// == != < <= > >= in, not in
bool holds(const std::string& op, const Value& a, const Value& b, Budget& budget);

// a.name: a method or what the object provides, else the dict's entry, else undefined.
Value get_attribute(const Value& value, const std::string& name, Budget& budget);
// a[key]: the element or entry, else the attribute of that name, else undefined.
Value get_item(const Value& value, const Value& key, Budget& budget);
// Null bounds are left out.
Value slice(const Value& value, const Value* start, const Value* stop, const Value* step, Budget& budget);

// What iterating gives: elements, characters, keys; nothing for an undefined value.
std::vector<Value> items_of(const Value& value, Budget& budget);
int64_t length_of(const Value& value);

// %-formatting with %s, %d, %f and %r.
std::string percent_format(std::string_view format, const std::vector<Value>& values, Budget& budget);

// & < > ' " as HTML writes them.
std::string escape_text(std::string_view text);

std::vector<std::string_view> characters_of(std::string_view text);
// Where `needle` begins in `text` at or after `from`, or npos; charges long searches.
size_t find_text(std::string_view text, std::string_view needle, size_t from, Budget& budget);

}  // namespace keysieve::jinja
