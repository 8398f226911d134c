#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace keysieve {

// Where a window of training text came from, for the record an indexer keeps of how it was made.
struct TextSource {
  std::string name;    // file name without folders
  uint64_t bytes = 0;  // of the file
  std::string fnv1a;   // 64-bit FNV-1a of the file, 16 hexadecimal digits: tells texts apart, proves nothing
  size_t windows = 0;  // taken from it
};

struct TextWindows {
  std::vector<std::vector<int32_t>> windows;  // each of the asked length
  std::vector<TextSource> sources;            // [files]
};

// `windows` pieces of `window` tokens: shared out evenly over the files, in each at even distances, none
// overlapping another. The same files in the same order give the same tokens. A .jsonl file is the "text" of
// its lines with an empty line between documents; any other file is plain text. Control tokens spelled in a
// text stay text. Throws Error{file}, Error{format} for a .jsonl line without "text", Error{mismatch} with
// the numbers for a file too short for its share, Error{usage} for no files, windows or tokens.
TextWindows read_text_windows(std::span<const std::filesystem::path> files, const Tokenizer& tokenizer,
                              size_t windows, size_t window);

// The text of one file as described above.
std::string read_training_text(const std::filesystem::path& file);

}  // namespace keysieve
