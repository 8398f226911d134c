#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace keysieve {

using Json = nlohmann::json;

// Parses `text`; `subject` (a path) names it in errors. Throws Error{format} on bad JSON or nesting deeper
// than 200.
Json parse_json(std::string_view text, std::string_view subject);
Json read_json_file(const std::filesystem::path& path, size_t limit = size_t{1} << 28);

// object[key] converted to T. The first throws Error{format} where the key is missing; both where the type is
// wrong. Numbers are range-checked: a negative or fractional number is no size_t.
template <class T>
T json_require(const Json& object, std::string_view key, std::string_view subject);
template <class T>
T json_value(const Json& object, std::string_view key, T fallback, std::string_view subject);

extern template std::string json_require(const Json&, std::string_view, std::string_view);
extern template bool json_require(const Json&, std::string_view, std::string_view);
extern template size_t json_require(const Json&, std::string_view, std::string_view);
extern template double json_require(const Json&, std::string_view, std::string_view);
extern template float json_require(const Json&, std::string_view, std::string_view);
extern template std::string json_value(const Json&, std::string_view, std::string, std::string_view);
extern template bool json_value(const Json&, std::string_view, bool, std::string_view);
extern template size_t json_value(const Json&, std::string_view, size_t, std::string_view);
extern template double json_value(const Json&, std::string_view, double, std::string_view);
extern template float json_value(const Json&, std::string_view, float, std::string_view);

}  // namespace keysieve
