#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>

#include "support/source_folder.h"

namespace keysieve::testing {

namespace detail {
inline std::optional<std::filesystem::path> existing_folder(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(path, ignored)) return std::nullopt;
  return path;
}
}  // namespace detail

// The recorded reference outputs: $KEYSIEVE_GOLDEN, or ../shared/data/golden beside the repository; nullopt
// where neither exists. Tests that need them then skip: if (!golden_dir()) GTEST_SKIP() << "no golden data";
inline std::optional<std::filesystem::path> golden_dir() {
  if (const char* folder = std::getenv("KEYSIEVE_GOLDEN")) return detail::existing_folder(folder);
  return detail::existing_folder(source_folder() / "../shared/data/golden");
}

// Downloaded real models, one folder per short name: $KEYSIEVE_MODELS, or models/ in the repository.
inline std::optional<std::filesystem::path> models_dir() {
  if (const char* folder = std::getenv("KEYSIEVE_MODELS")) return detail::existing_folder(folder);
  return detail::existing_folder(source_folder() / "models");
}

}  // namespace keysieve::testing
