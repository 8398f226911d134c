// Decoding of GGUF metadata: the typed getters of GgufFile and the JSON form for display.
#include <fmt/format.h>

#include <concepts>
#include <limits>
#include <type_traits>
#include <utility>

#include "formats/byte_reader.h"
#include "formats/gguf.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

std::string_view type_name(GgufType type) {
  switch (type) {
    case GgufType::u8:
      return "u8";
    case GgufType::i8:
      return "i8";
    case GgufType::u16:
      return "u16";
    case GgufType::i16:
      return "i16";
    case GgufType::u32:
      return "u32";
    case GgufType::i32:
      return "i32";
    case GgufType::f32:
      return "f32";
    case GgufType::boolean:
      return "bool";
    case GgufType::string:
      return "string";
    case GgufType::array:
      return "array";
    case GgufType::u64:
      return "u64";
    case GgufType::i64:
      return "i64";
    case GgufType::f64:
      return "f64";
  }
  return "unknown";
}

// Calls `visit` with each element in its own C++ type.
template <class T, class Visit>
void visit_scalars(std::span<const std::byte> data, Visit&& visit) {
  for (size_t at = 0; at + sizeof(T) <= data.size(); at += sizeof(T)) visit(load<T>(data.subspan(at)));
}

template <class Visit>
void visit_elements(const GgufEntry& entry, Visit&& visit) {
  switch (entry.type) {
    case GgufType::u8:
      return visit_scalars<uint8_t>(entry.data, visit);
    case GgufType::i8:
      return visit_scalars<int8_t>(entry.data, visit);
    case GgufType::u16:
      return visit_scalars<uint16_t>(entry.data, visit);
    case GgufType::i16:
      return visit_scalars<int16_t>(entry.data, visit);
    case GgufType::u32:
      return visit_scalars<uint32_t>(entry.data, visit);
    case GgufType::i32:
      return visit_scalars<int32_t>(entry.data, visit);
    case GgufType::f32:
      return visit_scalars<float>(entry.data, visit);
    case GgufType::u64:
      return visit_scalars<uint64_t>(entry.data, visit);
    case GgufType::i64:
      return visit_scalars<int64_t>(entry.data, visit);
    case GgufType::f64:
      return visit_scalars<double>(entry.data, visit);
    case GgufType::boolean:
      for (const std::byte value : entry.data) visit(value != std::byte{0});
      return;
    case GgufType::string: {
      ByteReader reader(entry.data, entry.key);  // the bounds were checked when the file was opened
      for (uint64_t i = 0; i < entry.count; ++i) visit(reader.read_string(entry.key));
      return;
    }
    case GgufType::array:
      return;
  }
}

template <class T>
constexpr std::string_view wanted() {
  if constexpr (std::same_as<T, std::string_view>) return "string";
  if constexpr (std::same_as<T, bool>) return "bool";
  if constexpr (std::same_as<T, uint32_t>) return "whole number of 0 to 2^32 - 1";
  if constexpr (std::same_as<T, uint64_t>) return "whole number of 0 to 2^64 - 1";
  if constexpr (std::same_as<T, int32_t>) return "whole number that fits 32 bits";
  if constexpr (std::same_as<T, int64_t>) return "whole number that fits 64 bits";
  return "number";
}

// Converts one element, or says no.
template <class T, class Stored>
bool convert(Stored stored, T& value) {
  if constexpr (std::same_as<T, Stored>) {
    value = stored;
    return true;
  } else if constexpr (std::same_as<T, bool> || std::same_as<Stored, bool> ||
                       std::same_as<T, std::string_view> || std::same_as<Stored, std::string_view>) {
    return false;
  } else if constexpr (std::floating_point<T>) {
    value = static_cast<T>(stored);
    return true;
  } else if constexpr (std::integral<Stored>) {
    value = static_cast<T>(stored);
    return std::in_range<T>(stored);
  } else {
    return false;
  }
}

template <class T>
struct ElementOf {
  using type = T;
  static constexpr bool is_array = false;
};
template <class T>
struct ElementOf<std::vector<T>> {
  using type = T;
  static constexpr bool is_array = true;
};

template <class T>
T decode(const GgufEntry& entry, std::string_view subject) {
  using Element = typename ElementOf<T>::type;
  constexpr bool kWantArray = ElementOf<T>::is_array;
  const auto fail = [&](std::string_view problem) {
    throw Error(
        ErrorKind::format, subject,
        fmt::format("metadata {} is {} {}{}", entry.key, entry.is_array ? "an array of" : "a value of type",
                    type_name(entry.type), problem),
        fmt::format("{} {}", kWantArray ? "an array, each a" : "a", wanted<Element>()));
  };
  if (entry.is_array != kWantArray) fail("");
  T result{};
  if constexpr (kWantArray) result.reserve(entry.count);
  visit_elements(entry, [&](auto stored) {
    Element value{};
    if (!convert(stored, value)) fail(std::integral<decltype(stored)> ? " out of range" : "");
    if constexpr (kWantArray) {
      result.push_back(value);
    } else {
      result = value;
    }
  });
  return result;
}

}  // namespace

const GgufEntry* GgufFile::entry(std::string_view key) const {
  const auto found = entry_index_.find(key);
  return found == entry_index_.end() ? nullptr : &entries_[found->second];
}

template <class T>
std::optional<T> GgufFile::get(std::string_view key) const {
  const GgufEntry* found = entry(key);
  if (found == nullptr) return std::nullopt;
  return decode<T>(*found, subject_);
}

template <class T>
T GgufFile::require(std::string_view key) const {
  const GgufEntry* found = entry(key);
  if (found == nullptr) throw Error(ErrorKind::format, subject_, fmt::format("no metadata {}", key));
  return decode<T>(*found, subject_);
}

#define KEYSIEVE_GGUF_VALUE(...)                                                 \
  template std::optional<__VA_ARGS__> GgufFile::get(std::string_view key) const; \
  template __VA_ARGS__ GgufFile::require(std::string_view key) const
KEYSIEVE_GGUF_VALUE(std::string_view);
KEYSIEVE_GGUF_VALUE(bool);
KEYSIEVE_GGUF_VALUE(uint32_t);
KEYSIEVE_GGUF_VALUE(uint64_t);
KEYSIEVE_GGUF_VALUE(int32_t);
KEYSIEVE_GGUF_VALUE(int64_t);
KEYSIEVE_GGUF_VALUE(float);
KEYSIEVE_GGUF_VALUE(double);
KEYSIEVE_GGUF_VALUE(std::vector<std::string_view>);
KEYSIEVE_GGUF_VALUE(std::vector<uint32_t>);
KEYSIEVE_GGUF_VALUE(std::vector<int32_t>);
KEYSIEVE_GGUF_VALUE(std::vector<float>);
#undef KEYSIEVE_GGUF_VALUE

Json to_json(const GgufEntry& entry, size_t max_elements) {
  Json elements = Json::array();
  // Cuts the data of scalar arrays first, so that a long array costs no more than what is shown of it.
  GgufEntry shown = entry;
  if (entry.is_array && entry.count > max_elements) {
    if (entry.type != GgufType::string)
      shown.data = entry.data.first(entry.data.size() / entry.count * max_elements);
    shown.count = max_elements;
  }
  visit_elements(shown, [&](auto value) { elements.push_back(value); });
  if (entry.is_array) return elements;
  return elements.at(0);
}

}  // namespace keysieve
