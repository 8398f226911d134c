#pragma once

#include <string_view>

#include "text/jinja/ast.h"

namespace keysieve::jinja {

// Throws Failure, its text beginning with the line: a syntax error, a statement the evaluator lacks, more
// than 1 MB of template, or deeper nesting than any chat template has (50 blocks, 100 brackets, 250
// operators).
Block parse(std::string_view source);

}  // namespace keysieve::jinja
