#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
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

// One file and its documents: the "text" of each line of a .jsonl, else the whole file. `source.windows` is
// 0.
struct TrainingText {
  TextSource source;
  std::vector<std::string> documents;
};
TrainingText read_training_text(const std::filesystem::path& file);

// Whether a character starts at this byte of UTF-8.
inline bool starts_character(char c) { return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u; }

// Where to begin reading near byte `at`: after the first line break at or past it, or at the next character
// where there is none within 2,000 bytes.
size_t next_start(std::string_view text, size_t at);

}  // namespace keysieve
