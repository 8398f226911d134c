#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace keysieve {

// -log softmax(row)[token], in nats.
double negative_log_likelihood(std::span<const float> row, int32_t token);
// The first of the largest values.
int32_t greedy_choice(std::span<const float> row);
// KL(softmax(p) || softmax(q)) in nats; both [vocabulary].
double kl_divergence(std::span<const float> p, std::span<const float> q);

// Forgets the process's peak of resident memory, so that peak_resident_bytes() tells of what follows. Does
// nothing where the system does not offer that.
void restart_peak_resident();

}  // namespace keysieve
