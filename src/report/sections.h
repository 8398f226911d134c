#pragma once

#include <span>
#include <string>

#include "report/report_input.h"

namespace keysieve::report {

// Each turns the inputs of its kinds into the content of a section, empty where there are none.
std::string quality_section(std::span<const ReportInput> inputs);    // ppl, agreement
std::string needle_section(std::span<const ReportInput> inputs);     // needle
std::string gsm8k_section(std::span<const ReportInput> inputs);      // gsm8k
std::string memory_section(std::span<const ReportInput> inputs);     // memory
std::string speed_section(std::span<const ReportInput> inputs);      // latency
std::string training_section(std::span<const ReportInput> inputs);   // train
std::string attention_section(std::span<const ReportInput> inputs);  // reading: mass captured by layer
std::string reading_section(std::span<const ReportInput> inputs);    // reading: which positions

}  // namespace keysieve::report
