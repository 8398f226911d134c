// Any bytes as a session file: the header must parse or throw Error, and the state behind it must go into a
// cache of each kind or throw Error; what a cache took must come out again as it went in.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "cache/fixed_cache.h"
#include "cache/full_cache.h"
#include "cache/tiered_cache.h"
#include "generate/session_file.h"
#include "keysieve/error.h"

namespace {

using namespace keysieve;

class BytesReader final : public StateReader {
 public:
  explicit BytesReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  void read(std::span<std::byte> out) override {
    if (out.size() > bytes_.size()) throw Error(ErrorKind::format, "fuzz", "ends early");
    std::copy_n(bytes_.begin(), out.size(), out.begin());
    bytes_ = bytes_.subspan(out.size());
    taken += out.size();
  }
  size_t taken = 0;

 private:
  std::span<const std::byte> bytes_;
};

class BytesWriter final : public StateWriter {
 public:
  void write(std::span<const std::byte> bytes) override { all.insert(all.end(), bytes.begin(), bytes.end()); }
  std::vector<std::byte> all;
};

void try_cache(KvCache& cache, std::span<const std::byte> bytes, size_t tokens) {
  BytesReader in(bytes);
  try {
    cache.load(in, tokens);
  } catch (const Error&) {
    cache.clear();
    return;
  }
  BytesWriter out;
  cache.save(out);
  if (out.all.size() != in.taken || !std::equal(out.all.begin(), out.all.end(), bytes.begin())) std::abort();
}

bool is_header(std::string_view text) {
  try {
    (void)parse_session_header(text, "fuzz.session");
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)is_header({reinterpret_cast<const char*>(data), size});
  if (size < 2) return 0;
  const CacheShape shape{.layers = 2,
                         .kv_heads = 2,
                         .head_dim = 4,
                         .kv_type = data[0] % 2 == 0 ? KvType::f16 : KvType::i8,
                         .capacity = 40,
                         .index_heads = 2,
                         .index_dim = 4,
                         .index_type = IndexKeyType::i8};
  const std::span bytes(reinterpret_cast<const std::byte*>(data + 2), size - 2);
  const size_t tokens = data[1] % (shape.capacity + 1);
  static const std::shared_ptr<const Kernels> kernels = make_kernels("reference");
  FullCache full(shape, kernels);
  try_cache(full, bytes, tokens);
  FixedCache fixed(shape, {.budget = 8, .budgets = {8, 0}, .sinks = 1, .recent = 2, .sets = 2}, kernels);
  try_cache(fixed, bytes, tokens);
  const auto tiered =
      make_tiered_cache(shape, kernels, {.budget = 8, .budgets = {}, .chunk = 4, .sets = 2}, {});
  try_cache(*tiered, bytes, tokens);
  return 0;
}
