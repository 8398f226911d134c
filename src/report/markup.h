#pragma once

#include <string>
#include <string_view>

namespace keysieve::report {

// `text` as content or attribute of HTML and SVG: markup characters become entities, control bytes other than
// tab and line break become U+FFFD. `text` is UTF-8.
std::string escape(std::string_view text);

// JSON as the content of a <script> element: no byte sequence in it can end the element.
std::string escape_script(std::string_view json);

std::string short_count(double value);   // 512, 4K, 16K (of 1024), 1.2M
std::string short_bytes(double value);   // 1.2 MB, decimal units
std::string short_number(double value);  // 0.012, 3.4, 120

}  // namespace keysieve::report
