#include "core/json.h"

#include <fmt/format.h>

#include <limits>
#include <type_traits>

#include "core/file_io.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr int kMaxDepth =
    200;  // real files nest under 10 deep; printing or walking must not exhaust the stack

template <class T>
T convert(const Json& value, std::string_view key, std::string_view subject) {
  const auto fail = [&](std::string_view expected) {
    throw Error(ErrorKind::format, subject, fmt::format("\"{}\" is {}", key, value.dump().substr(0, 80)),
                expected);
  };
  if constexpr (std::is_same_v<T, std::string>) {
    if (!value.is_string()) fail("a string");
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!value.is_boolean()) fail("true or false");
  } else if constexpr (std::is_same_v<T, size_t>) {
    if (value.is_number_float() && value.get<double>() >= 0 && value.get<double>() <= 9e15 &&
        value.get<double>() == static_cast<double>(static_cast<uint64_t>(value.get<double>()))) {
      return static_cast<size_t>(value.get<double>());
    }
    if (!value.is_number_unsigned()) fail("a whole number of 0 or more");
  } else {
    if (!value.is_number()) fail("a number");
  }
  return value.get<T>();
}

}  // namespace

Json parse_json(std::string_view text, std::string_view subject) {
  try {
    const auto depth_guard = [&](int depth, Json::parse_event_t, Json&) {
      if (depth > kMaxDepth) {
        throw Error(ErrorKind::format, subject, "JSON nested too deep",
                    fmt::format("at most {} levels", kMaxDepth));
      }
      return true;
    };
    return Json::parse(text, depth_guard);
  } catch (const Json::exception& error) {
    throw Error(ErrorKind::format, subject, error.what(), "valid JSON");
  }
}

Json read_json_file(const std::filesystem::path& path, size_t limit) {
  return parse_json(read_text_file(path, limit), path.string());
}

template <class T>
T json_require(const Json& object, std::string_view key, std::string_view subject) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || found == object.end() || found->is_null()) {
    throw Error(ErrorKind::format, subject, fmt::format("no \"{}\"", key));
  }
  return convert<T>(*found, key, subject);
}

template <class T>
T json_value(const Json& object, std::string_view key, T fallback, std::string_view subject) {
  if (!object.is_object()) return fallback;
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return fallback;
  return convert<T>(*found, key, subject);
}

template std::string json_require(const Json&, std::string_view, std::string_view);
template bool json_require(const Json&, std::string_view, std::string_view);
template size_t json_require(const Json&, std::string_view, std::string_view);
template double json_require(const Json&, std::string_view, std::string_view);
template float json_require(const Json&, std::string_view, std::string_view);
template std::string json_value(const Json&, std::string_view, std::string, std::string_view);
template bool json_value(const Json&, std::string_view, bool, std::string_view);
template size_t json_value(const Json&, std::string_view, size_t, std::string_view);
template double json_value(const Json&, std::string_view, double, std::string_view);
template float json_value(const Json&, std::string_view, float, std::string_view);

}  // namespace keysieve
