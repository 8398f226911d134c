#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/file_io.h"
#include "formats/safetensors.h"
#include "indexer/indexer.h"
#include "indexer/selectors.h"
#include "kernels/kernels.h"
#include "keysieve/error.h"

namespace keysieve::testing {

// A folder of its own that goes with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "keysieve-indexer-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  AtomicFileWriter file(path);
  file.write(text);
  file.commit();
}

inline std::vector<float> random_floats(size_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// The model that the recorded indexers were made for.
inline ModelShape golden_model() {
  return {.layers = 2,
          .hidden = 128,
          .heads = 6,
          .kv_heads = 2,
          .head_dim = 32,
          .rope_theta = 1e6,
          .rms_norm_eps = 1e-6f,
          .fingerprint = {}};
}

// One layer, 8 wide.
inline ModelShape narrow_model() {
  return {.layers = 1,
          .hidden = 8,
          .heads = 4,
          .kv_heads = 2,
          .head_dim = 4,
          .rope_theta = 1e4,
          .rms_norm_eps = 1e-6f,
          .fingerprint = {}};
}

// Threads, scratch and kernels of one test.
struct Bench {
  explicit Bench(std::string_view family = "reference", int thread_count = 2)
      : kernels(make_kernels(family)), threads(thread_count), scratch(threads) {}
  std::shared_ptr<const Kernels> kernels;
  Threads threads;
  KernelScratch scratch;
  KernelContext context{*kernels, threads, scratch};
};

// Index keys of one key head in the kernels' layout.
struct StoredKeys {
  StoredKeys(IndexKeyType key_type, size_t key_dim, size_t slots)
      : type(key_type),
        dim(key_dim),
        bytes(index_key_bytes(key_type, key_dim, slots)),
        scales((slots + kIndexBlock - 1) / kIndexBlock * kIndexBlock * index_scale_bytes(key_type)) {}
  void store(size_t slot, const float* key) {
    store_index_key(bytes.data(), scales.data(), type, dim, slot, key);
  }
  IndexKeyView view() const { return {bytes.data(), scales.data(), type, dim}; }

  IndexKeyType type;
  size_t dim;
  AlignedArray<std::byte> bytes;
  AlignedArray<std::byte> scales;
};

// The kind of error `action` throws and its message; {} and an empty message if it throws none.
template <class Action>
std::pair<ErrorKind, std::string> error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return {error.kind(), error.what()};
  }
  return {ErrorKind::resource, "nothing was thrown"};
}

// The .npy members of a stored (not compressed) .npz as files in `folder`, by name without ".npy".
inline std::map<std::string, std::filesystem::path> unpack_npz(const std::filesystem::path& npz,
                                                               const std::filesystem::path& folder) {
  const std::string bytes = read_text_file(npz);
  std::map<std::string, std::filesystem::path> members;
  const auto number = [&](size_t offset, size_t width) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + offset, width);
    return value;
  };
  // The central directory knows the sizes; a local header may leave them to a ZIP64 field.
  for (size_t at = bytes.find("PK\x01\x02"); at != std::string::npos; at = bytes.find("PK\x01\x02", at + 4)) {
    const size_t size = number(at + 20, 4);
    const size_t name_length = number(at + 28, 2);
    const size_t local = number(at + 42, 4);
    const std::string name = bytes.substr(at + 46, name_length);
    const size_t data = local + 30 + number(local + 26, 2) + number(local + 28, 2);
    const std::filesystem::path target = folder / name;
    write_text(target, std::string_view(bytes).substr(data, size));
    members[target.stem().string()] = target;
  }
  return members;
}

}  // namespace keysieve::testing
