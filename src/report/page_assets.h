#pragma once

namespace keysieve::report {

extern const char* const kStyle;   // CSS: light, dark (prefers-color-scheme) and paper
extern const char* const kScript;  // draws readings; everything else on the page works without it

}  // namespace keysieve::report
