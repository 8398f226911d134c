#pragma once

#include <span>
#include <string>

#include "report/report_input.h"

namespace keysieve::report {

// One HTML page that needs nothing beside itself and may load nothing (its content security policy says so).
// Whatever the inputs hold is shown as text. Sections without results say so. Throws Error{format} for a
// reading whose parts do not fit together.
std::string make_page(const std::string& title, std::span<const ReportInput> inputs);

}  // namespace keysieve::report
