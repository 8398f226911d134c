#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "formats/gguf.h"
#include "formats/hub_folder.h"
#include "kernels/kernels.h"

namespace keysieve {

// The decoder families this build runs. They share one layer; the differences are flags of ModelConfig:
// Llama (arXiv 2302.13971), Qwen2 (2407.10671: biases on q, k, v), Qwen3 (2505.09388: RMS norm on q and k).
enum class Architecture : uint8_t { llama, qwen2, qwen3 };
std::string_view to_string(Architecture architecture);

// How rotary angles are stretched past the context a model was trained on.
//   linear: every frequency / factor                                             (arXiv 2306.15595)
//   llama3: low frequencies / factor, high ones kept, a smooth band between      (Llama 3.1's config.json)
//   yarn:   the same idea with a ramp over pairs, and a magnitude factor         (arXiv 2309.00071)
enum class RopeScaling : uint8_t { none, linear, llama3, yarn };
std::string_view to_string(RopeScaling scaling);

struct RopeConfig {
  double theta = 10000.0;
  size_t rotary_dim = 0;  // leading values of a head that are rotated; even, <= head_dim
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;          // of the context: 4 turns 8192 positions into 32768
  size_t original_context = 0;  // positions before stretching; llama3 and yarn
  // llama3: wavelengths above original_context / low are divided, those below original_context / high are
  // kept.
  double low_frequency_factor = 1.0;
  double high_frequency_factor = 4.0;
  // yarn: pairs that turn more than beta_fast times in original_context are kept, those under beta_slow
  // divided.
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  bool truncate = true;  // round the ends of the ramp to whole pairs
  double magnitude_factor =
      1.0;  // what cosine and sine are multiplied by, worked out when the config is read
  // llama3 GGUF files state their scaling as divisors (`rope_freqs.weight`), then `scaling` is none.
  std::vector<float> pair_divisors;  // [rotary_dim / 2], or empty
};

// The frequency of each pair and the magnitude factor, computed in f64.
RopeTable make_rope_table(const RopeConfig& config);

struct ModelConfig {
  Architecture architecture = Architecture::llama;
  size_t layers = 0;
  size_t hidden = 0;
  size_t heads = 0;     // a multiple of kv_heads
  size_t kv_heads = 0;  // head h reads KV head h / (heads / kv_heads)
  size_t head_dim = 0;
  size_t mlp = 0;
  size_t vocabulary = 0;
  size_t context = 0;  // positions the model claims to be good for
  float rms_norm_eps = 1e-6f;
  RopeConfig rope;
  bool qk_norm = false;      // RMS norm over head_dim on each q and k head, before RoPE
  bool qkv_bias = false;     // biases on q, k and v
  bool output_bias = false;  // bias on the attention's output projection
  bool tied_head = false;    // the output head is the embedding matrix
  std::optional<int32_t> bos;
  std::vector<int32_t> eos;  // every token that ends a text; may be empty

  size_t q_width() const { return heads * head_dim; }
  size_t kv_width() const { return kv_heads * head_dim; }
};

// Turns a model without a stretch of its own into one for `factor` times as many positions by YaRN with its
// usual ramp, as config.json's rope_scaling would (arXiv 2309.00071); config.context grows alike. `original`
// is how many positions the model was trained for, 0: those it claims. Throws Error{usage} for a factor
// outside 1 to 1024, an original past 2^24 or more than 2^26 positions in all, Error{mismatch} naming
// `subject` for a file that stretches already.
void stretch_with_yarn(ModelConfig& config, double factor, size_t original, std::string_view subject);

// What the file says, checked: sizes in sane ranges, heads a multiple of kv_heads, an even rotary_dim. Throws
// Error{format} naming file and key for a missing or absurd value, and Error{unsupported} for another
// architecture, mixture of experts, sliding windows, other activations or other RoPE scalings, saying what is
// supported.
ModelConfig read_config(const GgufFile& file);
ModelConfig read_config(const HubFolder& folder);

}  // namespace keysieve
