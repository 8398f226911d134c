#include "keysieve/roofline.h"

#include "core/machine_peaks.h"
#include "generate/handles.h"

namespace keysieve {

MachinePeaks measure_peaks(const LanguageModel& model) {
  // Four times the largest cache of the machines this was written on; filling more takes longer than reading.
  constexpr size_t kReadBytes = size_t{128} << 20;
  const Model& inner = *model.impl()->model;
  const ReadStretch stretch(kReadBytes, inner.threads());
  return {measure_int8_dots(model.info().kernels, inner.threads()), measure_read(stretch, inner.threads())};
}

Roofline roofline(const PhaseStatistics& phase, const MachinePeaks& peaks) {
  Roofline line;
  if (phase.seconds <= 0) return line;
  line.tokens_per_second = phase.tokens_per_second();
  line.bytes_per_second = static_cast<double>(phase.memory_bytes_read) / phase.seconds;
  line.multiply_adds_per_second = static_cast<double>(phase.multiply_adds) / phase.seconds;
  if (peaks.read_bytes_per_second > 0) line.read_share = line.bytes_per_second / peaks.read_bytes_per_second;
  if (peaks.multiply_adds_per_second > 0) {
    line.multiply_add_share = line.multiply_adds_per_second / peaks.multiply_adds_per_second;
  }
  return line;
}

}  // namespace keysieve
