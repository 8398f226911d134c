#include <cstdlib>
#include <string_view>

#include "generate/handles.h"

namespace keysieve {
namespace {
namespace fs = std::filesystem;

void add_folder(std::vector<fs::path>& folders, const fs::path& folder) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) return;
  for (const fs::path& known : folders) {
    if (fs::equivalent(known, folder, ignored)) return;
  }
  folders.push_back(folder);
}

// The variable's parts, then NAME/ under the working directory, then NAME/ beside the folder the program lies
// in (build/keysieve finds the repository's own).
std::vector<fs::path> default_folders(const char* variable, const char* name) {
  std::vector<fs::path> folders;
  if (const char* value = std::getenv(variable)) {
    std::string_view rest = value;
    while (!rest.empty()) {
      const size_t colon = rest.find(':');
      if (colon != 0) add_folder(folders, rest.substr(0, colon));
      rest.remove_prefix(colon == std::string_view::npos ? rest.size() : colon + 1);
    }
  }
  add_folder(folders, name);
  std::error_code failed;
  const fs::path program = fs::read_symlink("/proc/self/exe", failed);
  if (!failed) add_folder(folders, program.parent_path().parent_path() / name);
  return folders;
}

SearchPaths search(std::span<const fs::path> folders, std::vector<fs::path> defaults) {
  SearchPaths paths;
  paths.folders =
      folders.empty() ? std::move(defaults) : std::vector<fs::path>(folders.begin(), folders.end());
  return paths;
}

}  // namespace

std::vector<fs::path> default_model_folders() { return default_folders("KEYSIEVE_MODELS", "models"); }
std::vector<fs::path> default_indexer_folders() { return default_folders("KEYSIEVE_INDEXERS", "indexers"); }

SearchPaths model_search(std::span<const fs::path> folders) {
  return search(folders, default_model_folders());
}
SearchPaths indexer_search(std::span<const fs::path> folders) {
  return search(folders, default_indexer_folders());
}

}  // namespace keysieve
