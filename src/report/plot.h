#pragma once

#include <functional>
#include <string>
#include <vector>

namespace keysieve::report {

struct Point {
  double x = 0;
  double y = 0;
  double low = 0;  // of an interval around y; low == high: none
  double high = 0;
};

// `style` picks colour and marker: "dense", "sparse", "oracle", ... are those of the modes of `eval`.
struct Series {
  std::string name;
  std::string style;
  std::vector<Point> points;  // in any order
};

using NumberText = std::function<std::string(double)>;

struct LinePlot {
  std::string title;
  std::string x_title;  // with its unit
  std::string y_title;
  bool logarithmic_x = false;  // ticks are then the points' own x
  bool from_zero = true;       // y axis
  bool markers = true;
  NumberText x_text;
  NumberText y_text;
  std::vector<Series> series;
};

// An SVG element with each series named beside its last point. Points that are not finite, or beyond 1e15,
// are left out; empty where none are left.
std::string draw(const LinePlot& plot);

// Shares with intervals, one a line.
struct DotRow {
  std::string name;
  std::string style;
  double share = 0;  // 0 to 1
  double low = 0;
  double high = 1;
  std::string note;  // "61 of 100"
};
std::string draw_shares(const std::string& title, const std::string& x_title,
                        const std::vector<DotRow>& rows);

// A grid of shares, [rows][columns]; a cell below 0 is empty.
struct HeatMap {
  std::string title;
  std::string x_title;
  std::string y_title;
  std::vector<std::string> columns;
  std::vector<std::string> rows;
  std::vector<std::vector<double>> shares;
  std::vector<std::vector<std::string>> notes;  // what the cell says: "3/4"
};
std::string draw(const HeatMap& map);

}  // namespace keysieve::report
