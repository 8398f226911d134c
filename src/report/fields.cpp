#include "report/fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "report/markup.h"

namespace keysieve::report {

double number(const Json& object, std::string_view key, double fallback) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || found == object.end() || !found->is_number()) return fallback;
  return found->get<double>();
}

std::string text(const Json& object, std::string_view key, std::string_view fallback) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || found == object.end() || !found->is_string()) return std::string(fallback);
  return found->get<std::string>();
}

const Json& list(const Json& object, std::string_view key) {
  static const Json none = Json::array();
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || found == object.end() || !found->is_array()) return none;
  return *found;
}

void take_interval(Point& point, const Json& object, std::string_view key) {
  const Json& pair = list(object, key);
  if (pair.size() != 2 || !pair.at(0).is_number() || !pair.at(1).is_number()) return;
  point.low = pair.at(0).get<double>();
  point.high = pair.at(1).get<double>();
}

std::string style_of(std::string_view mode) {
  constexpr std::array<std::string_view, 9> kModes{"dense",   "sparse", "oracle",    "recent", "random",
                                                   "snap-kv", "h2o",    "streaming", "quest"};
  return std::string(std::find(kModes.begin(), kModes.end(), mode) == kModes.end() ? "other" : mode);
}

std::string figure(const std::string& heading, const std::string& drawing, const std::string& words) {
  if (drawing.empty()) return "";
  return fmt::format("<figure><h3>{}</h3>{}<figcaption>{}</figcaption></figure>\n", escape(heading), drawing,
                     escape(words));
}

std::string Table::html() const {
  if (rows_.empty()) return "";
  const auto line = [](const std::vector<std::string>& cells, const char* tag) {
    std::string out = "<tr>";
    for (const std::string& cell : cells) out += fmt::format("<{0}>{1}</{0}>", tag, escape(cell));
    return out + "</tr>";
  };
  std::string out = "<div class=\"table\"><table><thead>" + line(head_, "th") + "</thead><tbody>";
  for (const auto& row : rows_) out += line(row, "td");
  return out + "</tbody></table></div>\n";
}

}  // namespace keysieve::report
