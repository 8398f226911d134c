#pragma once

#include <string>

#include "text/jinja/value.h"

namespace keysieve::jinja {

// `input | name(arguments)`. Throws Failure{unsupported} for an unknown filter.
Value apply_filter(const std::string& name, const Value& input, Arguments& arguments, Budget& budget);
bool is_filter(const std::string& name);

// `value is name(arguments)`. Throws Failure{unsupported} for an unknown test.
bool apply_test(const std::string& name, const Value& value, Arguments& arguments, Budget& budget);

// Methods of strings and dictionaries.
bool has_method(const Value& self, const std::string& name);
Value call_method(const Value& self, const std::string& name, Arguments& arguments, Budget& budget);

// Shared by filters and methods of the same name.
std::string strip_text(std::string_view text, const std::string* characters, bool left, bool right);
std::string replace_text(std::string_view text, std::string_view from, std::string_view to, int64_t limit,
                         Budget& budget);
std::string upper_text(std::string_view text);
std::string lower_text(std::string_view text);
std::string capitalize_text(std::string_view text);
std::string title_text(std::string_view text);

}  // namespace keysieve::jinja
