#pragma once

#include "keysieve/model.h"
#include "keysieve/session.h"

namespace keysieve {

// How near a phase of work comes to what the machine can do (the roofline model: Williams, Waterman,
// Patterson, CACM 2009).

struct MachinePeaks {
  // int8 dot products from registers, by the instruction of the model's kernel family, on the model's
  // threads. 0: the family has none (reference).
  double multiply_adds_per_second = 0;
  double read_bytes_per_second = 0;  // of memory that no cache holds, by the model's threads
};

// Measures for about 40 ms, with 128 MB of memory that is given back at the end. A machine that is busy shows
// less than it can do. Throws Error{resource}.
MachinePeaks measure_peaks(const LanguageModel& model);

struct Roofline {
  double tokens_per_second = 0;
  double bytes_per_second = 0;          // of PhaseStatistics::memory_bytes_read
  double multiply_adds_per_second = 0;  // of PhaseStatistics::multiply_adds
  // Of the peaks; 0 where the peak is. Weights that stay in a cache can make read_share more than 1.
  // Attention multiplies in fp32 and its own limit is lower: multiply_add_share counts it against int8 all
  // the same.
  double read_share = 0;
  double multiply_add_share = 0;
};

// All 0 for a phase that took no time.
Roofline roofline(const PhaseStatistics& phase, const MachinePeaks& peaks);

}  // namespace keysieve
