#include "model/weights.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <optional>
#include <string>
#include <string_view>

#include "formats/matrix.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

// What each format calls a module; layer modules get the layer's prefix.
struct ModuleName {
  std::string_view gguf;  // "blk.3." + name + ".weight"
  std::string_view hub;   // "model.layers.3." + name + ".weight"
};
constexpr ModuleName kEmbedding{"token_embd", "model.embed_tokens"};
constexpr ModuleName kFinalNorm{"output_norm", "model.norm"};
constexpr ModuleName kHead{"output", "lm_head"};
constexpr ModuleName kAttentionNorm{"attn_norm", "input_layernorm"};
constexpr ModuleName kQuery{"attn_q", "self_attn.q_proj"};
constexpr ModuleName kKey{"attn_k", "self_attn.k_proj"};
constexpr ModuleName kValue{"attn_v", "self_attn.v_proj"};
constexpr ModuleName kQueryNorm{"attn_q_norm", "self_attn.q_norm"};
constexpr ModuleName kKeyNorm{"attn_k_norm", "self_attn.k_norm"};
constexpr ModuleName kOutput{"attn_output", "self_attn.o_proj"};
constexpr ModuleName kMlpNorm{"ffn_norm", "post_attention_layernorm"};
constexpr ModuleName kGate{"ffn_gate", "mlp.gate_proj"};
constexpr ModuleName kUp{"ffn_up", "mlp.up_proj"};
constexpr ModuleName kDown{"ffn_down", "mlp.down_proj"};

using Layer = std::optional<size_t>;  // nullopt: a module outside the layers

// The two formats behind one face: tensors by module name, shapes checked.
class WeightReader {
 public:
  virtual ~WeightReader() = default;
  virtual std::unique_ptr<MatrixSource> matrix(Layer layer, ModuleName module, size_t rows,
                                               size_t columns) const = 0;
  // `part` is "weight" or "bias".
  virtual std::vector<float> vector(Layer layer, ModuleName module, std::string_view part,
                                    size_t size) const = 0;
  virtual bool interleaved_rope() const = 0;
};

class GgufReader : public WeightReader {
 public:
  GgufReader(const GgufFile& file, const ModelConfig& config)
      : file_(file), interleaved_(config.architecture == Architecture::llama) {}

  std::unique_ptr<MatrixSource> matrix(Layer layer, ModuleName module, size_t rows,
                                       size_t columns) const override {
    const TensorInfo& tensor = file_.require_tensor(name(layer, module, "weight"));
    require_shape(tensor, std::array<uint64_t, 2>{rows, columns});
    return make_matrix(tensor);
  }
  std::vector<float> vector(Layer layer, ModuleName module, std::string_view part,
                            size_t size) const override {
    const TensorInfo& tensor = file_.require_tensor(name(layer, module, part));
    require_shape(tensor, std::array<uint64_t, 1>{size});
    return read_vector(tensor);
  }
  // llama.cpp's converter reorders q and k of this architecture, and of no other we run.
  bool interleaved_rope() const override { return interleaved_; }

 private:
  static std::string name(Layer layer, ModuleName module, std::string_view part) {
    return layer ? fmt::format("blk.{}.{}.{}", *layer, module.gguf, part)
                 : fmt::format("{}.{}", module.gguf, part);
  }
  const GgufFile& file_;
  bool interleaved_;
};

class HubReader : public WeightReader {
 public:
  explicit HubReader(const HubFolder& folder) : folder_(folder) {}

  std::unique_ptr<MatrixSource> matrix(Layer layer, ModuleName module, size_t rows,
                                       size_t columns) const override {
    const std::string full_name = name(layer, module);
    std::unique_ptr<MatrixSource> source = make_matrix(folder_, full_name);
    if (source->rows() != rows || source->columns() != columns) {
      // A quantised module's tensor is narrower than the matrix it holds, so the matrix is what we name.
      throw Error(ErrorKind::mismatch, folder_.require_tensor(full_name + ".weight").subject(),
                  fmt::format("[{}, {}]", source->rows(), source->columns()),
                  fmt::format("[{}, {}]", rows, columns),
                  "config.json and the weights belong to different models");
    }
    return source;
  }
  std::vector<float> vector(Layer layer, ModuleName module, std::string_view part,
                            size_t size) const override {
    const TensorInfo& tensor = folder_.require_tensor(fmt::format("{}.{}", name(layer, module), part));
    require_shape(tensor, std::array<uint64_t, 1>{size});
    return read_vector(tensor);
  }
  bool interleaved_rope() const override { return false; }

 private:
  static std::string name(Layer layer, ModuleName module) {
    return layer ? fmt::format("model.layers.{}.{}", *layer, module.hub) : std::string(module.hub);
  }
  const HubFolder& folder_;
};

// FNV-1a over 32-bit words, 64-bit state (http://www.isthe.com/chongo/tech/comp/fnv/).
class Fingerprint {
 public:
  void add(uint64_t value) {
    for (int shift = 0; shift < 64; shift += 32) add_word(static_cast<uint32_t>(value >> shift));
  }
  void add_rows(const MatrixSource& source) {
    row_.resize(source.columns());
    for (const size_t row : {size_t{0}, source.rows() / 2, source.rows() - 1}) {
      source.read_values(row, row_);
      for (const float value : row_) add_word(std::bit_cast<uint32_t>(value));
    }
  }
  uint64_t value() const { return hash_; }

 private:
  void add_word(uint32_t word) { hash_ = (hash_ ^ word) * 0x100000001b3ull; }
  uint64_t hash_ = 0xcbf29ce484222325ull;
  std::vector<float> row_;
};

// A matrix as the f32 values that its codes stand for; one without codes as it is.
class DequantizedSource final : public MatrixSource {
 public:
  explicit DequantizedSource(const MatrixSource& source) : source_(source) {}
  size_t rows() const override { return source_.rows(); }
  size_t columns() const override { return source_.columns(); }
  uint64_t file_bytes() const override { return source_.file_bytes(); }
  std::optional<AffineFormat> affine() const override { return std::nullopt; }
  DType plain_dtype() const override { return source_.affine() ? DType::f32 : source_.plain_dtype(); }
  void read_codes(size_t row, std::span<uint8_t> codes, std::span<float> scales,
                  std::span<float> biases) const override {
    source_.read_codes(row, codes, scales, biases);
  }
  void read_values(size_t row, std::span<float> values) const override { source_.read_values(row, values); }
  void release(size_t first, size_t count) const override { source_.release(first, count); }

 private:
  const MatrixSource& source_;
};

// Reads and packs, keeping count of bytes and of what is quantised.
class Loader {
 public:
  Loader(const WeightReader& reader, const ModelConfig& config, const Kernels& kernels,
         const Threads& threads, bool dequantize)
      : reader_(reader), config_(config), kernels_(kernels), threads_(threads), dequantize_(dequantize) {}

  ModelWeights load();

 private:
  LayerWeights load_layer(size_t layer);
  std::unique_ptr<PackedMatrix> pack(const MatrixSource& source, std::span<const uint32_t> row_order = {}) {
    const DequantizedSource values(source);
    const MatrixSource& packed_from = dequantize_ ? values : source;
    std::unique_ptr<PackedMatrix> packed = kernels_.pack(packed_from, row_order, threads_, &weights_.memory);
    weights_.bytes += packed->bytes();
    return packed;
  }
  std::unique_ptr<PackedMatrix> layer_matrix(Layer layer, ModuleName module, size_t rows, size_t columns,
                                             std::span<const uint32_t> row_order = {}, bool sampled = false) {
    const std::unique_ptr<MatrixSource> source = reader_.matrix(layer, module, rows, columns);
    weights_.quantized |= !dequantize_ && source->affine().has_value();
    if (sampled) fingerprint_.add_rows(*source);
    weights_.layer_multiply_adds += uint64_t{rows} * columns;
    return pack(*source, row_order);
  }
  std::vector<float> vector(Layer layer, ModuleName module, std::string_view part, size_t size,
                            std::span<const uint32_t> row_order = {}) {
    std::vector<float> values = reader_.vector(layer, module, part, size);
    weights_.bytes += values.size() * sizeof(float);
    if (row_order.empty()) return values;
    std::vector<float> ordered(values.size());
    for (size_t i = 0; i < values.size(); ++i) ordered[i] = values[row_order[i]];
    return ordered;
  }

  const WeightReader& reader_;
  const ModelConfig& config_;
  const Kernels& kernels_;
  const Threads& threads_;
  bool dequantize_;
  ModelWeights weights_;
  Fingerprint fingerprint_;
  std::vector<uint32_t> q_order_;  // [heads * head_dim], or empty
  std::vector<uint32_t> k_order_;  // [kv_heads * head_dim], or empty
};

LayerWeights Loader::load_layer(size_t layer) {
  const ModelConfig& c = config_;
  LayerWeights w;
  w.attention_norm = vector(layer, kAttentionNorm, "weight", c.hidden);
  w.q = layer_matrix(layer, kQuery, c.q_width(), c.hidden, q_order_);
  w.k = layer_matrix(layer, kKey, c.kv_width(), c.hidden, k_order_, true);
  w.v = layer_matrix(layer, kValue, c.kv_width(), c.hidden);
  if (c.qkv_bias) {
    w.q_bias = vector(layer, kQuery, "bias", c.q_width(), q_order_);
    w.k_bias = vector(layer, kKey, "bias", c.kv_width(), k_order_);
    w.v_bias = vector(layer, kValue, "bias", c.kv_width());
  }
  if (c.qk_norm) {
    w.q_norm = vector(layer, kQueryNorm, "weight", c.head_dim);
    w.k_norm = vector(layer, kKeyNorm, "weight", c.head_dim);
  }
  w.output = layer_matrix(layer, kOutput, c.hidden, c.q_width());
  if (c.output_bias) w.output_bias = vector(layer, kOutput, "bias", c.hidden);
  w.mlp_norm = vector(layer, kMlpNorm, "weight", c.hidden);
  w.gate = layer_matrix(layer, kGate, c.mlp, c.hidden);
  w.up = layer_matrix(layer, kUp, c.mlp, c.hidden);
  w.down = layer_matrix(layer, kDown, c.hidden, c.mlp, {}, true);
  return w;
}

ModelWeights Loader::load() {
  const ModelConfig& c = config_;
  if (reader_.interleaved_rope()) {
    q_order_ = half_split_row_order(c.heads, c.head_dim, c.rope.rotary_dim);
    k_order_ = half_split_row_order(c.kv_heads, c.head_dim, c.rope.rotary_dim);
  }
  for (const uint64_t size : {static_cast<uint64_t>(c.architecture), c.layers, c.hidden, c.heads, c.kv_heads,
                              c.head_dim, c.mlp, c.vocabulary}) {
    fingerprint_.add(size);
  }
  weights_.embedding = reader_.matrix(std::nullopt, kEmbedding, c.vocabulary, c.hidden);
  fingerprint_.add_rows(*weights_.embedding);
  // Every shape is known before the long work, but a wrong head must not wait for all layers either.
  const std::unique_ptr<MatrixSource> head =
      c.tied_head ? nullptr : reader_.matrix(std::nullopt, kHead, c.vocabulary, c.hidden);
  weights_.final_norm = vector(std::nullopt, kFinalNorm, "weight", c.hidden);
  for (size_t layer = 0; layer < c.layers; ++layer) weights_.layers.push_back(load_layer(layer));
  weights_.head = pack(head ? *head : *weights_.embedding);
  weights_.fingerprint = fingerprint_.value();
  return std::move(weights_);
}

}  // namespace

std::vector<uint32_t> half_split_row_order(size_t heads, size_t head_dim, size_t rotary_dim) {
  std::vector<uint32_t> order(heads * head_dim);
  const size_t half = rotary_dim / 2;
  for (size_t row = 0; row < order.size(); ++row) {
    const size_t start = row / head_dim * head_dim;
    const size_t i = row - start;
    size_t source = i;
    if (i < half) {
      source = 2 * i;
    } else if (i < rotary_dim) {
      source = 2 * (i - half) + 1;
    }
    order[row] = static_cast<uint32_t>(start + source);
  }
  return order;
}

ModelWeights load_weights(const GgufFile& file, const ModelConfig& config, const Kernels& kernels,
                          const Threads& threads, bool dequantize) {
  return Loader(GgufReader(file, config), config, kernels, threads, dequantize).load();
}

ModelWeights load_weights(const HubFolder& folder, const ModelConfig& config, const Kernels& kernels,
                          const Threads& threads, bool dequantize) {
  return Loader(HubReader(folder), config, kernels, threads, dequantize).load();
}

}  // namespace keysieve
