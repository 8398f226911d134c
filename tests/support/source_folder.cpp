#include "support/source_folder.h"

namespace keysieve::testing {

std::filesystem::path source_folder() { return KEYSIEVE_SOURCE_DIR; }

}  // namespace keysieve::testing
