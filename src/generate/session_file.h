#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cache/kv_cache.h"
#include "core/checksum.h"
#include "core/file_io.h"
#include "core/json.h"
#include "core/state_stream.h"

namespace keysieve {

// A session file: 8 bytes "keysieve", u32 version, u32 length of the header, the header (JSON, this struct),
// the token ids [positions] as i32, the state (SequenceState::save), and the XXH64 of all bytes before it as
// u64. Numbers are little-endian. What the state holds follows from the header, so nothing in the
// file says how much to read or to allocate but `positions`, which is held to the context first.
struct SessionHeader {
  std::string model;       // fingerprints
  std::string indexer;     // empty: dense
  std::string cache;       // KvCache::state_format()
  std::string kv_type;     // "f32", "f16", "i8"
  std::string index_type;  // "f32", "i8", "i4"; empty without index keys
  size_t layers = 0;
  size_t kv_heads = 0;
  size_t head_dim = 0;
  size_t index_heads = 0;
  size_t index_dim = 0;
  size_t sets = 1;
  std::vector<size_t> budgets;  // [layers], of a cache that drops; else empty
  size_t positions = 0;
};

Json to_json(const SessionHeader& header);
// Throws Error{format} where a key is missing or of a wrong type.
SessionHeader parse_session_header(std::string_view text, std::string_view subject);
// Throws Error{mismatch} naming the first thing in which the file differs from the session, positions apart.
void require_equal(const SessionHeader& file, const SessionHeader& session, std::string_view subject);
SessionHeader describe_cache(const KvCache& cache);

// Counts and checks what passes through on its way into a file.
class SessionFileWriter final : public StateWriter {
 public:
  // Throws Error{file}.
  SessionFileWriter(const std::filesystem::path& path, const SessionHeader& header);
  void write(std::span<const std::byte> bytes) override;
  void commit();  // adds the checksum; the file appears whole

 private:
  AtomicFileWriter file_;
  Checksum checksum_;
};

class SessionFileReader final : public StateReader {
 public:
  // Reads the header. Throws Error{file}; Error{format} for another kind of file or a damaged header,
  // Error{unsupported} for another version.
  explicit SessionFileReader(const std::filesystem::path& path);
  ~SessionFileReader() override;
  const SessionHeader& header() const { return header_; }
  const std::string& subject() const { return subject_; }
  void read(std::span<std::byte> bytes) override;
  void finish();  // throws Error{format} unless the checksum follows, agrees, and is the end

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const;
  };
  std::string subject_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  Checksum checksum_;
  SessionHeader header_;
};

}  // namespace keysieve
