#pragma once

#include "train/calibrate.h"

namespace keysieve {

// calibrate() for the lightning shape: a key for all KV heads (lightning_maps.h), and for each layer the
// thresholds and gain that bring its scores nearest to the attention of two windows. Throws and returns as
// calibrate() does.
std::optional<Calibration> calibrate_lightning(const std::shared_ptr<const Model>& model,
                                               std::span<const std::vector<int32_t>> windows,
                                               const CalibrationOptions& options);

}  // namespace keysieve
