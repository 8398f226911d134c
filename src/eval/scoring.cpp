#include "eval/scoring.h"

#include <algorithm>
#include <cmath>
#include <fstream>

namespace keysieve {
namespace {

double log_sum_exp(std::span<const float> row) {
  const auto largest = static_cast<double>(*std::max_element(row.begin(), row.end()));
  double sum = 0;
  for (const float value : row) sum += std::exp(static_cast<double>(value) - largest);
  return largest + std::log(sum);
}

}  // namespace

double negative_log_likelihood(std::span<const float> row, int32_t token) {
  return log_sum_exp(row) - static_cast<double>(row[static_cast<size_t>(token)]);
}

int32_t greedy_choice(std::span<const float> row) {
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

double kl_divergence(std::span<const float> p, std::span<const float> q) {
  const double p_sum = log_sum_exp(p);
  const double q_sum = log_sum_exp(q);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double log_p = static_cast<double>(p[i]) - p_sum;
    kl += std::exp(log_p) * (log_p - (static_cast<double>(q[i]) - q_sum));
  }
  return std::max(kl, 0.0);  // rounding may leave -1e-12
}

void restart_peak_resident() {
  std::ofstream control("/proc/self/clear_refs");  // 5: reset VmHWM (man 5 proc)
  control << "5";
}

}  // namespace keysieve
