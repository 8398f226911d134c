#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "text/tokenizer.h"
#include "train/retrieval.h"
#include "train/text_windows.h"

namespace keysieve {

struct PackingOptions {
  size_t window = 4096;     // tokens of a step, at most
  size_t shortest = 1024;   // tokens a sequence must have: shorter ones leave little to choose from
  double retrieval = 0.25;  // share of sequences turned into retrieval tasks
  uint64_t seed = 1;
};

// Cuts texts into the sequences of training steps. Each sequence is (a piece of) one document and starts at
// position 0 of an empty cache: no query ever sees another document's keys, which a plain packing of
// documents into one window would allow. Pieces are drawn in a random order without repetition, then in
// another. Everything follows from the seed and the cursor, so that a cursor is all a checkpoint needs.
class TextPacker {
 public:
  // Throws as read_training_text, Error{mismatch} where no document is long enough. `tokenizer` must outlive
  // the object.
  TextPacker(std::span<const std::filesystem::path> files, const Tokenizer& tokenizer,
             const PackingOptions& options);

  // Sequences of `shortest` to `window` tokens, together at most `window` and at least one; moves the cursor
  // past the pieces it read. Throws Error{mismatch} where a whole round holds no sequence long enough.
  std::vector<TrainingSequence> next(uint64_t& cursor) const;

  size_t pieces() const { return pieces_.size(); }
  uint64_t bytes() const;                                              // of the texts, which stay in memory
  const std::vector<TextSource>& sources() const { return sources_; }  // windows: pieces of the file

 private:
  struct Piece {
    size_t document;
    size_t begin;  // bytes
    size_t end;
  };
  const Piece& piece(uint64_t cursor) const;

  const Tokenizer& tokenizer_;
  PackingOptions options_;
  std::vector<TextSource> sources_;
  std::vector<std::string> documents_;
  std::vector<Piece> pieces_;
};

}  // namespace keysieve
