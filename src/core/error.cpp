#include "keysieve/error.h"

namespace keysieve {
namespace {

// Names from hostile files may hold anything; an error must stay one readable line.
std::string one_line(std::string_view text) {
  constexpr size_t kMaxPart = 500;
  std::string line(text.substr(0, kMaxPart));
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return line;
}

std::string compose(std::string_view subject, std::string_view found, std::string_view expected,
                    std::string_view way_out) {
  std::string message = one_line(subject) + ": " + one_line(found);
  if (!expected.empty()) message += ", expected " + one_line(expected);
  if (!way_out.empty()) message += "; " + one_line(way_out);
  return message;
}

}  // namespace

std::string_view to_string(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::usage:
      return "usage";
    case ErrorKind::file:
      return "file";
    case ErrorKind::format:
      return "format";
    case ErrorKind::unsupported:
      return "unsupported";
    case ErrorKind::mismatch:
      return "mismatch";
    case ErrorKind::network:
      return "network";
    case ErrorKind::resource:
      return "resource";
  }
  return "unknown";
}

Error::Error(ErrorKind kind, std::string_view subject, std::string_view found, std::string_view expected,
             std::string_view way_out)
    : std::runtime_error(compose(subject, found, expected, way_out)), kind_(kind) {}

}  // namespace keysieve
