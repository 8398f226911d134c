#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "eval/attention_mode.h"
#include "eval/partial_results.h"

namespace keysieve {

// Which predictions of a window count.
enum class CountedTokens {
  last_quarter,  // where there is most to leave out: earlier positions drop little or nothing
  whole,         // to compare kernels, not selections
  second_half,   // of all but the half's first token: as llama.cpp's perplexity tool does
};

struct PerplexityOptions {
  std::vector<AttentionMode> modes;   // beside dense, which always runs
  std::vector<size_t> budgets = {};   // each mode runs at each of them; empty: the setting's
  PartialResults* partial = nullptr;  // what is done already, and where to put the rest
  CountedTokens counted = CountedTokens::last_quarter;
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(size_t done, size_t total)> on_progress = {};  // runs: windows x (1 + budgets x modes)
};

// One mode compared with dense on the same tokens.
struct PerplexityRow {
  AttentionMode mode = AttentionMode::dense;
  size_t budget = 0;
  double perplexity = 0;
  double delta_percent = 0;                        // 100 (exp(mean paired NLL difference) - 1)
  std::array<double, 2> delta_ci95_percent{0, 0};  // bootstrap of that mean
  std::vector<double> window_delta_percent;        // [windows]
};

struct PerplexityResult {
  double perplexity_dense = 0;
  std::vector<PerplexityRow> rows;  // [budgets, modes]
  size_t tokens = 0;                // predictions counted
  std::string_view interval;        // what the bootstrap draws: "windows", or "blocks of 128 tokens"
};

// Perplexity of the counted part of each window. The interval comes from whole windows where there
// are at least 8 (texts differ more than their tokens do), else from blocks of 128 tokens, which is then too
// narrow a view of other texts. nullopt: cancelled. Throws Error{usage} for no windows, and as
// EvalSetting::require.
std::optional<PerplexityResult> run_perplexity(const EvalSetting& setting,
                                               std::span<const std::vector<int32_t>> windows,
                                               const PerplexityOptions& options);

struct AgreementOptions {
  PartialResults* partial = nullptr;  // what is done already, and where to put the rest
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(size_t done, size_t total)> on_progress = {};  // windows
};

struct AgreementResult {
  double top1_agreement = 0;  // share of positions with the same greedy choice
  double kl_mean = 0;         // KL(dense || mode), nats
  double kl_max = 0;
  size_t tokens = 0;
};

// How far a mode's next-token distributions are from dense attention's, over the last quarter of each window.
// Both run side by side, 64 tokens at a time, so that no more than 64 rows of logits are held. nullopt:
// cancelled. Throws Error{usage} for no windows, and as EvalSetting::require.
std::optional<AgreementResult> run_agreement(const EvalSetting& setting, AttentionMode mode,
                                             std::span<const std::vector<int32_t>> windows,
                                             const AgreementOptions& options);

}  // namespace keysieve
