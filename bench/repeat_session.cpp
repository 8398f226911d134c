// Makes a long session out of a short one: what the cache holds of its tokens, again and again. Decoding from
// it is the work of decoding after a prompt of that length, which at full size would take hours to read; what
// the model says there is noise, as all that a model with random weights says. A benchmark tool, and no part
// of keysieve.
//
//   repeat_session IN OUT TOKENS VOCABULARY
//
// IN is a session file of a full cache. Its tokens past the last whole block of 16 are left out; the last
// repetition ends where OUT has TOKENS of them, a multiple of 16. VOCABULARY: logits of the model.

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "generate/session_file.h"
#include "kernels/index_keys.h"
#include "keysieve/error.h"
#include "parse_size.h"

namespace keysieve {
namespace {
namespace fs = std::filesystem;

IndexKeyType index_type(const SessionHeader& header) {
  if (header.index_type == "f32") return IndexKeyType::f32;
  return header.index_type == "i8" ? IndexKeyType::i8 : IndexKeyType::i4;
}

// Bytes of one token in one layer without its index keys: a key and a value for each KV head, rows padded as
// in memory.
size_t record_bytes(const SessionHeader& header) {
  const KvType type = header.kv_type == "f32"   ? KvType::f32
                      : header.kv_type == "f16" ? KvType::f16
                                                : KvType::i8;
  return 2 * header.kv_heads * kv_row_bytes(type, header.head_dim);
}

class Repeater {
 public:
  Repeater(const fs::path& in, const fs::path& out, size_t tokens)
      : in_(in), all_(in_.header().positions), kept_(all_ / kIndexBlock * kIndexBlock), wanted_(tokens) {
    if (tokens % kIndexBlock != 0)
      throw Error(ErrorKind::usage, "TOKENS", fmt::format("{}", tokens),
                  fmt::format("a multiple of {}", kIndexBlock));
    if (in_.header().cache != "full" || kept_ == 0)
      throw Error(ErrorKind::usage, in_.subject(),
                  fmt::format("{} tokens of a {} cache", all_, in_.header().cache),
                  fmt::format("at least {} of a full one", kIndexBlock));
    SessionHeader header = in_.header();
    header.positions = wanted_;
    out_.emplace(out, header);
  }

  void run(size_t logits) {
    const SessionHeader& header = in_.header();
    repeat(sizeof(int32_t));  // the tokens
    const auto has_logits = in_.value<uint8_t>();
    out_->value(has_logits);
    if (has_logits != 0) {
      bytes_.resize(logits * sizeof(float));
      in_.read(bytes_);
      out_->write(bytes_);
    }
    for (size_t layer = 0; layer < header.layers; ++layer) {
      repeat(record_bytes(header));
      for (size_t head = 0; head < header.index_heads; ++head) {
        const IndexKeyType type = index_type(header);
        bytes_.resize(index_key_bytes(type, header.index_dim, all_));
        in_.read(bytes_);
        write_again(index_key_bytes(type, header.index_dim, kept_),
                    index_key_bytes(type, header.index_dim, wanted_));
        repeat(index_scale_bytes(type));
      }
    }
    in_.finish();
    out_->commit();
  }

 private:
  void repeat(size_t bytes_of_one) {
    bytes_.resize(all_ * bytes_of_one);
    in_.read(bytes_);
    write_again(kept_ * bytes_of_one, wanted_ * bytes_of_one);
  }
  // The first `count` of bytes_ over and over, `total` in all.
  void write_again(size_t count, size_t total) {
    for (size_t done = 0; done < total; done += count) {
      out_->write(std::span(bytes_).first(std::min(count, total - done)));
    }
  }

  SessionFileReader in_;
  std::optional<SessionFileWriter> out_;
  size_t all_;     // tokens of IN
  size_t kept_;    // of these, what is repeated
  size_t wanted_;  // tokens of OUT
  std::vector<std::byte> bytes_;
};

}  // namespace
}  // namespace keysieve

int main(int argc, char** argv) {
  try {
    if (argc != 5) {
      std::fputs("repeat_session: IN OUT TOKENS VOCABULARY\n", stderr);
      return 2;
    }
    keysieve::Repeater(argv[1], argv[2], keysieve::parse_size("TOKENS", argv[3]))
        .run(keysieve::parse_size("VOCABULARY", argv[4]));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "repeat_session: %s\n", error.what());
    return 1;
  }
}
