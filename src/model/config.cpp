#include "model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "keysieve/error.h"
#include "model/config_checks.h"

namespace keysieve {

std::string_view to_string(Architecture architecture) {
  switch (architecture) {
    case Architecture::llama:
      return "llama";
    case Architecture::qwen2:
      return "qwen2";
    case Architecture::qwen3:
      return "qwen3";
  }
  return "unknown";
}

std::string_view to_string(RopeScaling scaling) {
  switch (scaling) {
    case RopeScaling::none:
      return "none";
    case RopeScaling::linear:
      return "linear";
    case RopeScaling::llama3:
      return "llama3";
    case RopeScaling::yarn:
      return "yarn";
  }
  return "unknown";
}

Architecture parse_architecture(std::string_view name, std::string_view subject) {
  for (const Architecture known : {Architecture::llama, Architecture::qwen2, Architecture::qwen3}) {
    if (name == to_string(known)) return known;
  }
  throw Error(ErrorKind::unsupported, subject, fmt::format("architecture '{}'", name),
              "llama, qwen2 or qwen3", "choose a dense Llama, Qwen2 or Qwen3 model");
}

namespace {

void check_size(std::string_view subject, std::string_view name, size_t value, size_t low, size_t high) {
  if (value >= low && value <= high) return;
  throw Error(ErrorKind::format, subject, fmt::format("{} is {}", name, value),
              fmt::format("{} to {}", low, high), "the file is damaged or not a language model");
}

void check_number(std::string_view subject, std::string_view name, double value, double low, double high) {
  if (value >= low && value <= high) return;  // NaN fails both
  throw Error(ErrorKind::format, subject, fmt::format("{} is {}", name, value),
              fmt::format("{} to {}", low, high), "the file is damaged or not a language model");
}

void check_rope(const RopeConfig& rope, size_t head_dim, std::string_view subject) {
  check_size(subject, "rotary dimension", rope.rotary_dim, 2, head_dim);
  if (rope.rotary_dim % 2 != 0) {
    throw Error(ErrorKind::format, subject, fmt::format("rotary dimension is {}", rope.rotary_dim),
                "an even number", "rotary pairs need two values each");
  }
  // Below 2 the logarithms of YaRN lose their meaning; published models use 1e4 to 1e9.
  check_number(subject, "rope theta", rope.theta, 2.0, 1e12);
  if (!rope.pair_divisors.empty()) {
    if (rope.pair_divisors.size() != rope.rotary_dim / 2) {
      throw Error(ErrorKind::mismatch, fmt::format("{}, tensor rope_freqs.weight", subject),
                  fmt::format("{} values", rope.pair_divisors.size()),
                  fmt::format("{}", rope.rotary_dim / 2));
    }
    for (const float divisor : rope.pair_divisors)
      check_number(subject, "rope_freqs.weight", divisor, 1e-3, 1e6);
  }
  if (rope.scaling == RopeScaling::none) return;
  check_number(subject, "rope scaling factor", rope.factor, 1.0 / 1024, 1024.0);
  check_number(subject, "rope magnitude factor", rope.magnitude_factor, 0.01, 100.0);
  if (rope.scaling == RopeScaling::linear) return;
  check_size(subject, "rope original context", rope.original_context, 1, size_t{1} << 24);
  if (rope.scaling == RopeScaling::llama3) {
    check_number(subject, "rope low_freq_factor", rope.low_frequency_factor, 1e-3, 1e3);
    if (!(rope.high_frequency_factor > rope.low_frequency_factor)) {
      throw Error(ErrorKind::format, subject,
                  fmt::format("rope high_freq_factor is {}", rope.high_frequency_factor),
                  fmt::format("more than low_freq_factor ({})", rope.low_frequency_factor));
    }
    return;
  }
  check_number(subject, "rope beta_slow", rope.beta_slow, 1e-3, 1e4);
  check_number(subject, "rope beta_fast", rope.beta_fast, rope.beta_slow, 1e4);
}

// How YaRN divides the frequencies: 0 keeps a pair, 1 divides it by the factor (Hugging Face's
// _compute_yarn_parameters, equations 22 and 23 of arXiv 2309.00071).
std::vector<double> yarn_ramp(const RopeConfig& config) {
  const auto pair_turning = [&](double turns) {
    // The (fractional) pair whose wavelength fits `turns` times into the original context.
    return static_cast<double>(config.rotary_dim) *
           std::log(static_cast<double>(config.original_context) / (turns * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(config.theta));
  };
  double low = pair_turning(config.beta_fast);
  double high = pair_turning(config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.rotary_dim - 1));
  if (low == high) high += 0.001;
  std::vector<double> ramp(config.rotary_dim / 2);
  for (size_t pair = 0; pair < ramp.size(); ++pair) {
    ramp[pair] = std::clamp((static_cast<double>(pair) - low) / (high - low), 0.0, 1.0);
  }
  return ramp;
}

double llama3_frequency(const RopeConfig& config, double frequency) {
  const double turns = static_cast<double>(config.original_context) * frequency / (2.0 * std::numbers::pi);
  if (turns < config.low_frequency_factor) return frequency / config.factor;
  if (turns > config.high_frequency_factor) return frequency;
  const double smooth =
      (turns - config.low_frequency_factor) / (config.high_frequency_factor - config.low_frequency_factor);
  return (1.0 - smooth) * frequency / config.factor + smooth * frequency;
}

}  // namespace

double yarn_magnitude(double factor, double mscale) {
  return factor > 1.0 ? 0.1 * mscale * std::log(factor) + 1.0 : 1.0;
}

void stretch_with_yarn(ModelConfig& config, double factor, size_t original, std::string_view subject) {
  RopeConfig& rope = config.rope;
  if (factor == 0 && original != 0) {
    throw Error(ErrorKind::usage, "YaRN's factor",
                fmt::format("none beside an original context of {} positions", original), "1 to 1024",
                "give --yarn beside --yarn-original, or neither");
  }
  if (!(factor >= 1.0 && factor <= 1024.0)) {
    throw Error(ErrorKind::usage, "YaRN's factor", fmt::format("{}", factor), "1 to 1024");
  }
  if (original > size_t{1} << 24) {
    throw Error(ErrorKind::usage, "YaRN's original context", fmt::format("{}", original), "1 to 16777216");
  }
  constexpr double kMostPositions = 1 << 26;  // as in check_config
  const size_t trained = original != 0 ? original : config.context;
  if (static_cast<double>(trained) * factor > kMostPositions) {
    throw Error(ErrorKind::usage, "YaRN", fmt::format("{} times {} positions", factor, trained),
                fmt::format("{} in all", kMostPositions));
  }
  if (rope.scaling != RopeScaling::none || !rope.pair_divisors.empty()) {
    throw Error(ErrorKind::mismatch, subject,
                rope.pair_divisors.empty()
                    ? fmt::format("positions stretched already ({})", to_string(rope.scaling))
                    : "positions stretched already (rope_freqs.weight)",
                "a model without RoPE scaling", "leave YaRN out: the file's own stretch is used");
  }
  rope.scaling = RopeScaling::yarn;
  rope.factor = factor;
  rope.original_context = trained;
  rope.magnitude_factor = yarn_magnitude(factor, 1.0);
  config.context = static_cast<size_t>(static_cast<double>(rope.original_context) * factor);
}

RopeTable make_rope_table(const RopeConfig& config) {
  RopeTable table;
  table.frequency.resize(config.rotary_dim / 2);
  table.scale = static_cast<float>(config.magnitude_factor);
  const std::vector<double> ramp =
      config.scaling == RopeScaling::yarn ? yarn_ramp(config) : std::vector<double>{};
  for (size_t pair = 0; pair < table.frequency.size(); ++pair) {
    double frequency =
        std::pow(config.theta, -2.0 * static_cast<double>(pair) / static_cast<double>(config.rotary_dim));
    switch (config.scaling) {
      case RopeScaling::none:
        break;
      case RopeScaling::linear:
        frequency /= config.factor;
        break;
      case RopeScaling::llama3:
        frequency = llama3_frequency(config, frequency);
        break;
      case RopeScaling::yarn:
        frequency = frequency / config.factor * ramp[pair] + frequency * (1.0 - ramp[pair]);
        break;
    }
    if (!config.pair_divisors.empty()) frequency /= static_cast<double>(config.pair_divisors[pair]);
    table.frequency[pair] = frequency;
  }
  return table;
}

// The upper ends are several times the largest published model; they keep every later product (rows *
// columns, positions * width) far inside 64 bits.
void check_config(const ModelConfig& config, std::string_view subject) {
  check_size(subject, "number of layers", config.layers, 1, 1024);
  check_size(subject, "hidden size", config.hidden, 1, 65536);
  check_size(subject, "number of heads", config.heads, 1, 1024);
  check_size(subject, "number of KV heads", config.kv_heads, 1, 1024);
  check_size(subject, "head dimension", config.head_dim, 2, 1024);
  check_size(subject, "MLP size", config.mlp, 1, size_t{1} << 20);
  check_size(subject, "vocabulary", config.vocabulary, 1, size_t{1} << 22);
  check_size(subject, "context", config.context, 1, size_t{1} << 26);
  check_number(subject, "RMS norm epsilon", config.rms_norm_eps, 1e-12, 0.1);
  if (config.heads % config.kv_heads != 0) {
    throw Error(ErrorKind::format, subject,
                fmt::format("{} heads and {} KV heads", config.heads, config.kv_heads), "a multiple",
                "each KV head serves the same number of query heads");
  }
  check_rope(config.rope, config.head_dim, subject);
}

}  // namespace keysieve
