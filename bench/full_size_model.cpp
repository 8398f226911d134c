// Writes a model of Qwen3-8B's shape with random weights, for measuring at full size where the real weights
// cannot be had: the work is the same, what it says is noise. A benchmark tool, and no part of keysieve.
//
//   full_size_model OUT --tokenizer FILE.gguf [--layers 36] [--vocabulary 151936] [--no-gguf]
//
// OUT/mlx        config.json, 2 shards with their index, tokenizer.json: as mlx-lm writes 4-bit groups of 64
// OUT/indexer    a random indexer of the published card's shape: 6 heads of 69, one shared key, bf16
// OUT/model-Q4_1.gguf   the same weights bit for bit (two blocks of 32 for a group of 64), for other programs
//
// The tokenizer is the one of FILE.gguf, a model of the same family (Qwen2.5 and Qwen3 share their
// vocabulary).

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/file_io.h"
#include "core/half.h"
#include "core/json.h"
#include "core/split_mix.h"
#include "formats/gguf.h"
#include "keysieve/error.h"
#include "parse_size.h"

namespace keysieve {
namespace {
namespace fs = std::filesystem;

struct Shape {
  size_t layers = 36, hidden = 4096, heads = 32, kv_heads = 8, head_dim = 128, mlp = 12288,
         vocabulary = 151936;
  size_t context = 40960;
};
constexpr size_t kGroup = 64;  // columns that share a scale and a bias
constexpr size_t kBlock = 32;  // of Q4_1

// One module's weights, rows made one by one from its own seed: both files get the same without keeping them.
struct Matrix {
  std::string mlx;   // model.layers.0.self_attn.q_proj
  std::string gguf;  // blk.0.attn_q.weight
  size_t rows;
  size_t columns;
  uint64_t seed;
};
struct Norm {
  std::string mlx;
  std::string gguf;
  size_t size;
};

struct Row {
  std::vector<uint32_t> words;   // [columns / 8] eight codes each, the first in the low bits
  std::vector<BFloat16> scales;  // [columns / 64]
  std::vector<BFloat16> biases;  // [columns / 64]
};

// Codes are uniform; w = scale * code + bias has mean 0 and deviation about 0.02 * s, s in [0.5, 1.5) a
// group.
void make_row(Row& row, const Matrix& matrix, size_t index) {
  SplitMix random(matrix.seed * 0x10001 + index);
  row.words.resize(matrix.columns / 8);
  for (size_t i = 0; i + 1 < row.words.size(); i += 2) {
    const uint64_t bits = random.next();
    row.words[i] = static_cast<uint32_t>(bits);
    row.words[i + 1] = static_cast<uint32_t>(bits >> 32);
  }
  row.scales.resize(matrix.columns / kGroup);
  row.biases.resize(matrix.columns / kGroup);
  for (size_t g = 0; g < row.scales.size(); ++g) {
    const float scale = to_float(to_bfloat16(0.0043f * (0.5f + static_cast<float>(random.unit()))));
    row.scales[g] = to_bfloat16(scale);
    row.biases[g] = to_bfloat16(-7.5f * scale);
  }
}

std::vector<Matrix> matrices_of(const Shape& shape) {
  std::vector<Matrix> all;
  const auto add = [&](std::string mlx, std::string gguf, size_t rows, size_t columns) {
    all.push_back({std::move(mlx), std::move(gguf), rows, columns, all.size() + 1});
  };
  add("model.embed_tokens", "token_embd.weight", shape.vocabulary, shape.hidden);
  for (size_t i = 0; i < shape.layers; ++i) {
    const std::string mlx = fmt::format("model.layers.{}.", i);
    const std::string gguf = fmt::format("blk.{}.", i);
    const size_t q = shape.heads * shape.head_dim;
    const size_t kv = shape.kv_heads * shape.head_dim;
    add(mlx + "self_attn.q_proj", gguf + "attn_q.weight", q, shape.hidden);
    add(mlx + "self_attn.k_proj", gguf + "attn_k.weight", kv, shape.hidden);
    add(mlx + "self_attn.v_proj", gguf + "attn_v.weight", kv, shape.hidden);
    add(mlx + "self_attn.o_proj", gguf + "attn_output.weight", shape.hidden, q);
    add(mlx + "mlp.gate_proj", gguf + "ffn_gate.weight", shape.mlp, shape.hidden);
    add(mlx + "mlp.up_proj", gguf + "ffn_up.weight", shape.mlp, shape.hidden);
    add(mlx + "mlp.down_proj", gguf + "ffn_down.weight", shape.hidden, shape.mlp);
  }
  add("lm_head", "output.weight", shape.vocabulary, shape.hidden);
  return all;
}

std::vector<Norm> norms_of(const Shape& shape) {
  std::vector<Norm> all;
  for (size_t i = 0; i < shape.layers; ++i) {
    const std::string mlx = fmt::format("model.layers.{}.", i);
    const std::string gguf = fmt::format("blk.{}.", i);
    all.push_back({mlx + "input_layernorm.weight", gguf + "attn_norm.weight", shape.hidden});
    all.push_back({mlx + "post_attention_layernorm.weight", gguf + "ffn_norm.weight", shape.hidden});
    all.push_back({mlx + "self_attn.q_norm.weight", gguf + "attn_q_norm.weight", shape.head_dim});
    all.push_back({mlx + "self_attn.k_norm.weight", gguf + "attn_k_norm.weight", shape.head_dim});
  }
  all.push_back({"model.norm.weight", "output_norm.weight", shape.hidden});
  return all;
}

// ---- safetensors
// ------------------------------------------------------------------------------------------------

// A tensor and what writes its bytes, in pieces.
struct StreamedTensor {
  std::string name;
  std::string dtype;  // "U32", "BF16", "F32"
  std::vector<size_t> shape;
  size_t bytes;
  std::function<void(AtomicFileWriter&)> write;
};

template <class T>
void write_values(AtomicFileWriter& file, const std::vector<T>& values) {
  file.write(std::as_bytes(std::span(values)));
}

void write_safetensors_streamed(const fs::path& path, const std::vector<StreamedTensor>& tensors) {
  Json header = {{"__metadata__", {{"format", "mlx"}}}};
  size_t offset = 0;
  for (const StreamedTensor& tensor : tensors) {
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + tensor.bytes}}};
    offset += tensor.bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  AtomicFileWriter file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(text);
  for (const StreamedTensor& tensor : tensors) tensor.write(file);
  file.commit();
}

void add_mlx(std::vector<StreamedTensor>& tensors, const Matrix& matrix) {
  const auto rows = [matrix](auto member) {
    return [matrix, member](AtomicFileWriter& file) {
      Row row;
      for (size_t r = 0; r < matrix.rows; ++r) {
        make_row(row, matrix, r);
        write_values(file, row.*member);
      }
    };
  };
  const size_t words = matrix.columns / 8;
  const size_t groups = matrix.columns / kGroup;
  tensors.push_back(
      {matrix.mlx + ".weight", "U32", {matrix.rows, words}, matrix.rows * words * 4, rows(&Row::words)});
  tensors.push_back(
      {matrix.mlx + ".scales", "BF16", {matrix.rows, groups}, matrix.rows * groups * 2, rows(&Row::scales)});
  tensors.push_back(
      {matrix.mlx + ".biases", "BF16", {matrix.rows, groups}, matrix.rows * groups * 2, rows(&Row::biases)});
}

void write_mlx(const fs::path& folder, const Shape& shape) {
  std::vector<StreamedTensor> tensors;
  for (const Matrix& matrix : matrices_of(shape)) add_mlx(tensors, matrix);
  for (const Norm& norm : norms_of(shape)) {
    tensors.push_back(
        {norm.mlx, "BF16", {norm.size}, norm.size * 2, [size = norm.size](AtomicFileWriter& file) {
           write_values(file, std::vector<BFloat16>(size, to_bfloat16(1)));
         }});
  }
  size_t total = 0;
  for (const StreamedTensor& tensor : tensors) total += tensor.bytes;
  // Two shards, as the published model has.
  std::array<std::vector<StreamedTensor>, 2> shards;
  Json map = Json::object();
  size_t written = 0;
  for (StreamedTensor& tensor : tensors) {
    const size_t shard = written < total / 2 ? 0 : 1;
    written += tensor.bytes;
    map[tensor.name] = fmt::format("model-0000{}-of-00002.safetensors", shard + 1);
    shards[shard].push_back(std::move(tensor));
  }
  for (size_t s = 0; s < 2; ++s) {
    std::ranges::sort(shards[s], {}, &StreamedTensor::name);
    write_safetensors_streamed(folder / fmt::format("model-0000{}-of-00002.safetensors", s + 1), shards[s]);
  }
  AtomicFileWriter index(folder / "model.safetensors.index.json");
  index.write(Json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(1));
  index.commit();
  const Json quantization = {{"group_size", kGroup}, {"bits", 4}};
  AtomicFileWriter config(folder / "config.json");
  config.write(Json{{"architectures", {"Qwen3ForCausalLM"}},
                    {"model_type", "qwen3"},
                    {"hidden_size", shape.hidden},
                    {"intermediate_size", shape.mlp},
                    {"num_hidden_layers", shape.layers},
                    {"num_attention_heads", shape.heads},
                    {"num_key_value_heads", shape.kv_heads},
                    {"head_dim", shape.head_dim},
                    {"vocab_size", shape.vocabulary},
                    {"max_position_embeddings", shape.context},
                    {"rope_theta", 1000000},
                    {"rope_scaling", nullptr},
                    {"rms_norm_eps", 1e-6},
                    {"hidden_act", "silu"},
                    {"attention_bias", false},
                    {"use_sliding_window", false},
                    {"tie_word_embeddings", false},
                    {"bos_token_id", 151643},
                    {"eos_token_id", 151645},
                    {"torch_dtype", "bfloat16"},
                    {"quantization", quantization},
                    {"quantization_config", quantization}}
                   .dump(1));
  config.commit();
}

void write_indexer(const fs::path& folder, const Shape& shape) {
  constexpr size_t kHeads = 6;
  constexpr size_t kDim = 69;
  std::vector<StreamedTensor> tensors;
  uint64_t seed = 1000;
  const auto add = [&](std::string name, std::vector<size_t> extents) {
    size_t count = 1;
    for (const size_t extent : extents) count *= extent;
    const float spread = 1.0f / std::sqrt(static_cast<float>(extents.back()));
    tensors.push_back({std::move(name), "BF16", std::move(extents), count * 2,
                       [count, spread, at = ++seed](AtomicFileWriter& file) {
                         SplitMix random(at);
                         std::vector<BFloat16> values(count);
                         for (BFloat16& value : values)
                           value = to_bfloat16(spread * 3.4f * (static_cast<float>(random.unit()) - 0.5f));
                         write_values(file, values);
                       }});
  };
  for (size_t i = 0; i < shape.layers; ++i) {
    const std::string base = fmt::format("layers.{}.indexer.", i);
    add(base + "wq.weight", {kHeads * kDim, shape.hidden});
    add(base + "wk.weight", {kDim, shape.hidden});
    add(base + "weights_proj.weight", {kHeads, shape.hidden});
    add(base + "wq.bias", {kHeads * kDim});
    add(base + "wk.bias", {kDim});
  }
  write_safetensors_streamed(folder / "lightning_indexer_best_assembled.safetensors", tensors);
  AtomicFileWriter config(folder / "run_config.json");
  config.write(Json{{"metadata", {{"hidden_size", shape.hidden}}},
                    {"proj_dim", kDim},
                    {"indexer_heads", kHeads},
                    {"rope_dim", 64},
                    {"top_k", 2048}}
                   .dump(1));
  config.commit();
}

// ---- the tokenizer
// ----------------------------------------------------------------------------------------------

// tokenizer.json of the family from the GGUF's lists: ordinary tokens are the vocabulary, the rest is added.
void write_tokenizer(const fs::path& folder, const GgufFile& source, size_t vocabulary) {
  const auto tokens = source.require<std::vector<std::string_view>>("tokenizer.ggml.tokens");
  const auto types = source.require<std::vector<int32_t>>("tokenizer.ggml.token_type");
  constexpr int32_t kNormal = 1;
  constexpr int32_t kControl = 3;
  constexpr int32_t kUnused = 5;
  Json vocab = Json::object();
  Json added = Json::array();
  for (size_t i = 0; i < std::min(tokens.size(), vocabulary); ++i) {
    if (types[i] == kNormal) vocab[std::string(tokens[i])] = i;
    if (types[i] == kNormal || types[i] == kUnused) continue;
    added.push_back({{"id", i},
                     {"content", tokens[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", types[i] == kControl}});
  }
  Json merges = Json::array();
  if (vocabulary >= tokens.size()) {
    for (const std::string_view merge :
         source.require<std::vector<std::string_view>>("tokenizer.ggml.merges"))
      merges.push_back(merge);
  }
  const char* pattern =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  const Json split = {
      {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  AtomicFileWriter file(folder / "tokenizer.json");
  file.write(Json{{"version", "1.0"},
                  {"added_tokens", added},
                  {"normalizer", {{"type", "NFC"}}},
                  {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, byte_level}}}},
                  {"post_processor", byte_level},
                  {"decoder", byte_level},
                  {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}}
                 .dump());
  file.commit();
  AtomicFileWriter config(folder / "tokenizer_config.json");
  config.write(Json{{"eos_token", "<|im_end|>"},
                    {"chat_template", source.get<std::string_view>("tokenizer.chat_template").value_or("")}}
                   .dump());
  config.commit();
}

// ---- GGUF
// -------------------------------------------------------------------------------------------------------

template <class T>
void put(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
void put_text(std::string& bytes, std::string_view text) {
  put<uint64_t>(bytes, text.size());
  bytes += text;
}
void put_key(std::string& bytes, std::string_view key, GgufType type) {
  put_text(bytes, key);
  put(bytes, static_cast<uint32_t>(type));
}

// Keys and their number.
std::pair<std::string, uint64_t> gguf_metadata(const Shape& shape, const GgufFile& source) {
  std::string bytes;
  uint64_t count = 0;
  const auto text = [&](std::string_view key, std::string_view value) {
    put_key(bytes, key, GgufType::string);
    put_text(bytes, value);
    ++count;
  };
  const auto number = [&](std::string_view key, size_t value) {
    put_key(bytes, key, GgufType::u32);
    put(bytes, static_cast<uint32_t>(value));
    ++count;
  };
  const auto real = [&](std::string_view key, float value) {
    put_key(bytes, key, GgufType::f32);
    put(bytes, value);
    ++count;
  };
  text("general.architecture", "qwen3");
  text("general.name", "random weights of Qwen3-8B's shape");
  number("general.file_type", 3);  // mostly Q4_1
  number("qwen3.block_count", shape.layers);
  number("qwen3.context_length", shape.context);
  number("qwen3.embedding_length", shape.hidden);
  number("qwen3.feed_forward_length", shape.mlp);
  number("qwen3.attention.head_count", shape.heads);
  number("qwen3.attention.head_count_kv", shape.kv_heads);
  number("qwen3.attention.key_length", shape.head_dim);
  number("qwen3.attention.value_length", shape.head_dim);
  real("qwen3.rope.freq_base", 1e6f);
  real("qwen3.attention.layer_norm_rms_epsilon", 1e-6f);
  for (const GgufEntry& entry : source.metadata()) {
    if (!entry.key.starts_with("tokenizer.")) continue;
    put_key(bytes, entry.key, entry.is_array ? GgufType::array : entry.type);
    if (entry.is_array) {
      put(bytes, static_cast<uint32_t>(entry.type));
      put<uint64_t>(bytes, entry.count);
    }
    bytes.append(reinterpret_cast<const char*>(entry.data.data()), entry.data.size());
    ++count;
  }
  return {std::move(bytes), count};
}

// Q4_1: scale and bias as f16, then 16 bytes; byte j holds element j low and element j + 16 high. Scales and
// biases are bf16 of 8 bits in f16's range, so f16 has them exactly.
void put_q4_1(std::string& bytes, const Row& row) {
  for (size_t first = 0; first < row.words.size() * 8; first += kBlock) {
    put(bytes, to_half(to_float(row.scales[first / kGroup])));
    put(bytes, to_half(to_float(row.biases[first / kGroup])));
    const auto code = [&](size_t element) {
      return (row.words[(first + element) / 8] >> (4 * (element % 8))) & 15u;
    };
    for (size_t j = 0; j < kBlock / 2; ++j) bytes += static_cast<char>(code(j) | (code(j + kBlock / 2) << 4));
  }
}

void write_gguf(const fs::path& path, const Shape& shape, const GgufFile& source) {
  constexpr uint32_t kF32 = 0;
  constexpr uint32_t kQ4_1 = 3;
  constexpr size_t kAlignment = 32;
  const auto matrices = matrices_of(shape);
  const auto norms = norms_of(shape);
  const auto [metadata, keys] = gguf_metadata(shape, source);
  std::string head = "GGUF";
  put<uint32_t>(head, 3);
  put<uint64_t>(head, matrices.size() + norms.size());
  put<uint64_t>(head, keys);
  head += metadata;
  uint64_t offset = 0;
  const auto add = [&](const std::string& name, std::initializer_list<uint64_t> extents, uint32_t type,
                       uint64_t bytes) {
    put_text(head, name);
    put(head, static_cast<uint32_t>(extents.size()));
    for (const uint64_t extent : extents) put(head, extent);  // the columns come first
    put(head, type);
    put(head, offset);
    offset += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  };
  for (const Matrix& matrix : matrices)
    add(matrix.gguf, {matrix.columns, matrix.rows}, kQ4_1, matrix.rows * matrix.columns / kBlock * 20);
  for (const Norm& norm : norms) add(norm.gguf, {norm.size}, kF32, norm.size * 4);
  head.append((kAlignment - head.size() % kAlignment) % kAlignment, '\0');
  AtomicFileWriter file(path);
  file.write(head);
  Row row;
  std::string bytes;
  for (const Matrix& matrix : matrices) {
    size_t written = 0;
    for (size_t r = 0; r < matrix.rows; ++r) {
      bytes.clear();
      make_row(row, matrix, r);
      put_q4_1(bytes, row);
      file.write(bytes);
      written += bytes.size();
    }
    file.write(std::string((kAlignment - written % kAlignment) % kAlignment, '\0'));
  }
  for (const Norm& norm : norms) write_values(file, std::vector<float>((norm.size + 7) / 8 * 8, 1.0f));
  file.commit();
}

struct Options {
  fs::path out;
  fs::path tokenizer;
  Shape shape;
  bool gguf = true;
};

Options parse(std::span<char* const> arguments) {
  Options options;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view name = arguments[i];
    const auto value = [&]() -> std::string_view {
      if (i + 1 >= arguments.size()) throw Error(ErrorKind::usage, name, "no value", "one");
      return arguments[++i];
    };
    if (name == "--tokenizer") {
      options.tokenizer = value();
    } else if (name == "--layers") {
      options.shape.layers = parse_size(name, value());
    } else if (name == "--vocabulary") {
      options.shape.vocabulary = parse_size(name, value());
    } else if (name == "--no-gguf") {
      options.gguf = false;
    } else if (options.out.empty() && !name.starts_with("--")) {
      options.out = name;
    } else {
      throw Error(ErrorKind::usage, name, "not known",
                  "OUT --tokenizer FILE.gguf [--layers N] [--vocabulary N] [--no-gguf]");
    }
  }
  if (options.out.empty() || options.tokenizer.empty())
    throw Error(ErrorKind::usage, "arguments", "no OUT or no --tokenizer", "OUT --tokenizer FILE.gguf");
  return options;
}

void run(const Options& options) {
  const GgufFile source(options.tokenizer);
  fs::create_directories(options.out / "mlx");
  fs::create_directories(options.out / "indexer");
  write_tokenizer(options.out / "mlx", source, options.shape.vocabulary);
  write_mlx(options.out / "mlx", options.shape);
  write_indexer(options.out / "indexer", options.shape);
  if (options.gguf) write_gguf(options.out / "model-Q4_1.gguf", options.shape, source);
}

}  // namespace
}  // namespace keysieve

int main(int argc, char** argv) {
  try {
    keysieve::run(keysieve::parse(std::span(argv + 1, static_cast<size_t>(argc - 1))));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "full_size_model: %s\n", error.what());
    return 1;
  }
}
