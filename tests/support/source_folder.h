#pragma once

#include <filesystem>

namespace keysieve::testing {

// The repository. Only source_folder.cpp is compiled with its path, so that a compiler cache knows every
// other test again in another clone.
std::filesystem::path source_folder();

}  // namespace keysieve::testing
