#pragma once

#include <cstddef>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "keysieve/keysieve.h"

namespace keysieve::cli {

bool is_terminal(std::FILE* stream);
// Columns of the terminal behind `stream` (COLUMNS where the terminal does not say); 80 elsewhere.
size_t terminal_width(std::FILE* stream);

// Writes to standard output; throws Error{file} where it is closed or full.
void print(std::string_view text);
// One document and a line break; bytes that are not UTF-8 become U+FFFD.
void print_json(const Json& document);
// `keysieve: MESSAGE` on standard error.
void print_note(std::string_view message);

// Model text may hold control bytes, and a terminal would obey them: on a terminal they become '?'.
std::string safe_for_terminal(std::string_view text, bool terminal);

// A line that rewrites itself on a terminal's standard error, and nothing elsewhere:
//   reading the prompt 45%  1,843 of 4,096 tokens  412 tok/s  5 s left
class Progress {
 public:
  enum class Unit { tokens, bytes };
  explicit Progress(std::string_view label, Unit unit = Unit::tokens);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();  // wipes the line
  void update(size_t done, size_t total);

 private:
  std::string label_;
  Unit unit_;
  bool shown_ = false;
  bool enabled_;
  double start_;
  std::optional<size_t> first_;  // what was done before: no part of the rate
};

double now_seconds();  // of a steady clock

std::string human_bytes(uint64_t bytes);    // "1.2 MB", decimal units
std::string human_count(uint64_t count);    // "4,096"
std::string human_seconds(double seconds);  // "0.12 s", "3 min 5 s"

// prefill 36 tok in 0.14 s (257 tok/s), ... : the first line of --stats.
std::string stats_line(const GenerateResult& result);
// roofline decode: 300 tok/s, 27.1 GB/s read (81% of this machine's 33.4), ... : its last line, for each
// phase that did anything.
std::vector<std::string> roofline_lines(const Statistics& statistics, const MachinePeaks& peaks);

// The contract's keys of a finished generation.
Json to_json(const GenerateResult& result);
Json to_json(const PhaseStatistics& phase);
Json to_json(const MemoryStatistics& memory);
// peaks, and each phase's rates and shares
Json roofline_json(const Statistics& statistics, const MachinePeaks& peaks);
Json error_json(const Error& error);

}  // namespace keysieve::cli
