#include "report/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "report/markup.h"

namespace keysieve::report {
namespace {

// Of the drawing, in its own units; the page scales it.
constexpr double kWidth = 640;
constexpr double kHeight = 350;
constexpr double kLeft = 66;
constexpr double kRight = 132;  // the names of the series stand there
constexpr double kTop = 14;
constexpr double kBottom = 54;
constexpr double kLabelStep = 15;
constexpr double kMost = 1e15;

bool usable(const Point& p) {
  return std::abs(p.x) <= kMost && std::abs(p.y) <= kMost && std::abs(p.low) <= kMost &&
         std::abs(p.high) <= kMost;
}

// 1, 2 or 5 times a power of ten, so that about `count` of them make the range.
double nice_step(double range, double count) {
  const double raw = range / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  const double digit = raw / power;
  return power * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
}

struct Axis {
  double low = 0;
  double high = 1;
  bool logarithmic = false;
  std::vector<double> ticks;

  double share(double value) const {
    if (logarithmic) return (std::log(value) - std::log(low)) / (std::log(high) - std::log(low));
    return (value - low) / (high - low);
  }
};

Axis linear_axis(double low, double high) {
  if (!(high > low)) high = low + std::max(1.0, std::abs(low) * 0.1);
  const double step = nice_step(high - low, 5);
  Axis axis;
  axis.low = std::floor(low / step) * step;
  axis.high = std::ceil(high / step) * step;
  for (int i = 0; i <= 12 && axis.low + i * step <= axis.high + step / 2; ++i)
    axis.ticks.push_back(axis.low + i * step);
  return axis;
}

// Ticks at the values themselves, thinned where they would touch.
Axis value_axis(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  Axis axis;
  axis.logarithmic = true;
  axis.low = values.front() / 1.12;
  axis.high = values.back() * 1.12;
  for (const double value : values) {
    if (axis.ticks.empty() || axis.share(value) - axis.share(axis.ticks.back()) > 0.07)
      axis.ticks.push_back(value);
  }
  return axis;
}

struct Frame {
  Axis x;
  Axis y;
  double px(double value) const { return kLeft + x.share(value) * (kWidth - kLeft - kRight); }
  double py(double value) const { return kHeight - kBottom - y.share(value) * (kHeight - kTop - kBottom); }
};

Frame frame_of(const LinePlot& plot, const std::vector<Series>& series) {
  std::vector<double> xs;
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const Series& one : series) {
    for (const Point& p : one.points) {
      xs.push_back(p.x);
      low = std::min({low, p.y, p.low == p.high ? p.y : p.low});
      high = std::max({high, p.y, p.low == p.high ? p.y : p.high});
    }
  }
  if (plot.from_zero) {
    low = std::min(low, 0.0);
    high = std::max(high, 0.0);
  }
  const auto [first, last] = std::minmax_element(xs.begin(), xs.end());
  Frame frame;
  frame.y = linear_axis(low, high);
  frame.x = plot.logarithmic_x ? value_axis(xs) : linear_axis(*first, *last);
  if (!plot.logarithmic_x) {
    // Lines may fill the width: no room up to the next round number.
    frame.x.low = *first;
    frame.x.high = *last > *first ? *last : *first + 1;
    std::erase_if(frame.x.ticks, [&](double tick) {
      // Steps and layers are whole.
      return tick < frame.x.low || tick > frame.x.high * (1 + 1e-9) || std::floor(tick) != tick;
    });
  }
  return frame;
}

std::string axes(const LinePlot& plot, const Frame& frame) {
  std::string out;
  for (const double tick : frame.y.ticks) {
    const double y = frame.py(tick);
    out += fmt::format("<line class=\"{}\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>",
                       std::abs(tick) < 1e-12 ? "zero" : "grid", kLeft, kWidth - kRight, y, y);
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>",
                       kLeft - 8, y + 4, escape(plot.y_text(tick)));
  }
  for (const double tick : frame.x.ticks) {
    const double x = frame.px(tick);
    out += fmt::format("<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", x, x,
                       kHeight - kBottom, kHeight - kBottom + 5);
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>", x,
                       kHeight - kBottom + 20, escape(plot.x_text(tick)));
  }
  out += fmt::format("<text class=\"axis\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>",
                     kLeft + (kWidth - kLeft - kRight) / 2, kHeight - 10, escape(plot.x_title));
  out += fmt::format(
      "<text class=\"axis\" transform=\"translate(15 {:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
      kTop + (kHeight - kTop - kBottom) / 2, escape(plot.y_title));
  return out;
}

// `shift` moves the marks sideways, so that intervals at one x stand beside each other.
std::string marks(const LinePlot& plot, const Frame& frame, const Series& series, double shift) {
  std::string out = fmt::format("<g class=\"series s-{}\">", escape(series.style));
  std::string line;
  for (const Point& p : series.points) {
    line += fmt::format("{}{:.2f},{:.2f}", line.empty() ? "M" : "L", frame.px(p.x) + shift, frame.py(p.y));
    if (p.low != p.high) {
      out += fmt::format(
          "<line class=\"interval\" x1=\"{0:.2f}\" x2=\"{0:.2f}\" y1=\"{1:.2f}\" y2=\"{2:.2f}\"/>",
          frame.px(p.x) + shift, frame.py(p.low), frame.py(p.high));
    }
  }
  out += fmt::format("<path class=\"line\" d=\"{}\"/>", line);
  if (plot.markers) {
    for (const Point& p : series.points) {
      const std::string interval =
          p.low == p.high ? "" : fmt::format(" (95%: {} to {})", plot.y_text(p.low), plot.y_text(p.high));
      out += fmt::format(
          "<circle class=\"mark\" cx=\"{:.2f}\" cy=\"{:.2f}\" r=\"3.6\"><title>{}</title></circle>",
          frame.px(p.x) + shift, frame.py(p.y),
          escape(fmt::format("{}, {}: {}{}", series.name, plot.x_text(p.x), plot.y_text(p.y), interval)));
    }
  }
  return out + "</g>";
}

// Names beside the last points, moved apart where they would overlap.
std::string labels(const Frame& frame, const std::vector<Series>& series) {
  std::vector<std::pair<double, const Series*>> places;
  places.reserve(series.size());
  for (const Series& one : series) places.emplace_back(frame.py(one.points.back().y), &one);
  std::sort(places.begin(), places.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  double floor = kTop + 4;
  for (auto& place : places) {
    place.first = std::max(place.first, floor);
    floor = place.first + kLabelStep;
  }
  double ceiling = kHeight - kBottom;
  for (auto place = places.rbegin(); place != places.rend(); ++place) {
    place->first = std::min(place->first, ceiling);
    ceiling = place->first - kLabelStep;
  }
  std::string out;
  for (const auto& [y, one] : places) {
    const Point& last = one->points.back();
    out += fmt::format(
        "<g class=\"series s-{}\"><path class=\"leader\" d=\"M{:.1f},{:.1f}L{:.1f},{:.1f}\"/>"
        "<text class=\"label\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text></g>",
        escape(one->style), frame.px(last.x) + 5, frame.py(last.y), kWidth - kRight + 12, y,
        kWidth - kRight + 15, y + 4, escape(one->name));
  }
  return out;
}

std::string svg(double width, double height, const std::string& title, const std::string& content) {
  return fmt::format(
      "<svg viewBox=\"0 0 {:.0f} {:.0f}\" role=\"img\" aria-label=\"{}\" "
      "style=\"max-width:{:.0f}px\">{}</svg>",
      width, height, escape(title), width * 1.15, content);
}

}  // namespace

std::string draw(const LinePlot& plot) {
  std::vector<Series> series;
  for (const Series& given : plot.series) {
    Series one{given.name, given.style, {}};
    std::copy_if(given.points.begin(), given.points.end(), std::back_inserter(one.points),
                 [&](const Point& p) { return usable(p) && (!plot.logarithmic_x || p.x > 0); });
    std::sort(one.points.begin(), one.points.end(), [](const Point& a, const Point& b) { return a.x < b.x; });
    if (!one.points.empty()) series.push_back(std::move(one));
  }
  if (series.empty()) return "";
  const Frame frame = frame_of(plot, series);
  std::string content = axes(plot, frame);
  const bool intervals = std::any_of(series.begin(), series.end(), [](const Series& one) {
    return std::any_of(one.points.begin(), one.points.end(), [](const Point& p) { return p.low != p.high; });
  });
  for (size_t i = 0; i < series.size(); ++i) {
    const double from_middle = static_cast<double>(i) - static_cast<double>(series.size() - 1) / 2;
    content += marks(plot, frame, series[i], intervals ? 4 * from_middle : 0);
  }
  return svg(kWidth, kHeight, plot.title, content + labels(frame, series));
}

std::string draw_shares(const std::string& title, const std::string& x_title,
                        const std::vector<DotRow>& rows) {
  if (rows.empty()) return "";
  constexpr double kNames = 170;
  constexpr double kRow = 30;
  const double height = static_cast<double>(rows.size()) * kRow + 60;
  const auto px = [&](double share) {
    return kNames + std::clamp(share, 0.0, 1.0) * (kWidth - kNames - 110);
  };
  std::string out;
  for (int tick = 0; tick <= 100; tick += 25) {
    const double x = px(tick / 100.0);
    out += fmt::format("<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"6\" y2=\"{1:.1f}\"/>", x,
                       height - 50);
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}%</text>", x,
                       height - 34, tick);
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    const DotRow& row = rows[i];
    const double y = 22 + static_cast<double>(i) * kRow;
    out += fmt::format(
        "<g class=\"series s-{}\"><text class=\"label\" x=\"{:.1f}\" y=\"{:.1f}\" "
        "text-anchor=\"end\">{}</text>"
        "<line class=\"interval wide\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>"
        "<circle class=\"mark\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"5\"/></g>"
        "<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>",
        escape(row.style), kNames - 14, y + 4, escape(row.name), px(row.low), px(row.high), y, y,
        px(row.share), y, kWidth - 96, y + 4, escape(row.note));
  }
  out += fmt::format("<text class=\"axis\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>",
                     px(0.5), height - 10, escape(x_title));
  return svg(kWidth, height, title, out);
}

std::string draw(const HeatMap& map) {
  if (map.columns.empty() || map.rows.empty()) return "";
  constexpr double kNames = 76;
  constexpr double kCellWidth = 58;
  constexpr double kCellHeight = 30;
  const double width = std::max(190.0, kNames + kCellWidth * static_cast<double>(map.columns.size()) + 8);
  const double height = kCellHeight * static_cast<double>(map.rows.size()) + 48;
  std::string out;
  for (size_t r = 0; r < map.rows.size(); ++r) {
    const double y = 4 + kCellHeight * static_cast<double>(r);
    out += fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>",
                       kNames - 8, y + kCellHeight / 2 + 4, escape(map.rows[r]));
    for (size_t c = 0; c < map.columns.size(); ++c) {
      const double share = map.shares[r][c];
      const double x = kNames + kCellWidth * static_cast<double>(c);
      if (share < 0) continue;
      out += fmt::format(
          "<g class=\"cell{}\"><rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"3\" "
          "style=\"--share:{:.3f}\"/><text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text></g>",
          share > 0.5 ? " full" : "", x + 1, y + 1, kCellWidth - 2, kCellHeight - 2, share,
          x + kCellWidth / 2, y + kCellHeight / 2 + 4, escape(map.notes[r][c]));
    }
  }
  const double foot = 4 + kCellHeight * static_cast<double>(map.rows.size());
  for (size_t c = 0; c < map.columns.size(); ++c) {
    out +=
        fmt::format("<text class=\"tick\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>",
                    kNames + kCellWidth * (static_cast<double>(c) + 0.5), foot + 16, escape(map.columns[c]));
  }
  out += fmt::format("<text class=\"axis\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{}</text>",
                     kNames + kCellWidth * static_cast<double>(map.columns.size()) / 2, foot + 36,
                     escape(map.x_title));
  out += fmt::format(
      "<text class=\"axis\" transform=\"translate(13 {:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
      foot / 2, escape(map.y_title));
  return svg(width, height, map.title, out);
}

}  // namespace keysieve::report
