#pragma once

#include <string>
#include <string_view>

#include "model/config.h"

namespace keysieve {

// Shared by the two readers of configs. `subject` is the path of the file, for errors.

// "llama", "qwen2" or "qwen3"; Error{unsupported} for anything else.
Architecture parse_architecture(std::string_view name, std::string_view subject);

// Ranges and divisibility; Error{format}.
void check_config(const ModelConfig& config, std::string_view subject);

// YaRN's default magnitude factor, 0.1 * mscale * ln(factor) + 1, or 1 where the factor does not stretch.
double yarn_magnitude(double factor, double mscale);

}  // namespace keysieve
