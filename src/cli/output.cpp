#include "cli/output.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace keysieve::cli {

bool is_terminal(std::FILE* stream) { return isatty(fileno(stream)) == 1; }

size_t terminal_width(std::FILE* stream) {
  winsize size = {};
  if (ioctl(fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  if (const char* columns = std::getenv("COLUMNS")) {
    const long value = std::strtol(columns, nullptr, 10);
    if (value > 0 && value < 10000) return static_cast<size_t>(value);
  }
  return 80;
}

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw Error(ErrorKind::file, "standard output", std::strerror(errno), "a place to write to");
  }
}

void print_json(const Json& document) {
  print(document.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

void print_note(std::string_view message) { fmt::print(stderr, "keysieve: {}\n", message); }

std::string safe_for_terminal(std::string_view text, bool terminal) {
  std::string safe(text);
  if (!terminal) return safe;
  for (size_t i = 0; i < safe.size(); ++i) {
    const auto byte = static_cast<unsigned char>(safe[i]);
    const bool control = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f;
    // U+0080 .. U+009F, the 8-bit controls, are C2 80 .. C2 9F.
    const bool wide = byte == 0xc2 && i + 1 < safe.size() && static_cast<unsigned char>(safe[i + 1]) < 0xa0;
    if (control) safe[i] = '?';
    if (wide) safe[i] = safe[i + 1] = '?';
  }
  return safe;
}

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Progress::Progress(std::string_view label, Unit unit)
    : label_(label), unit_(unit), enabled_(is_terminal(stderr)), start_(now_seconds()) {}

Progress::~Progress() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
}

void Progress::update(size_t done, size_t total) {
  if (!enabled_ || total == 0 || done >= total) {
    if (shown_) std::fputs("\r\x1b[K", stderr);
    shown_ = false;
    return;
  }
  if (!first_) first_ = done;
  const double seconds = now_seconds() - start_;
  const double rate = seconds > 0 && done > *first_ ? static_cast<double>(done - *first_) / seconds : 0;
  const bool bytes = unit_ == Unit::bytes;
  std::string line = fmt::format("{} {}%  ", label_, done * 100 / total);
  line += bytes ? fmt::format("{} of {}", human_bytes(done), human_bytes(total))
                : fmt::format("{} of {} tokens", human_count(done), human_count(total));
  if (rate > 0) {
    line += bytes ? fmt::format("  {}/s", human_bytes(static_cast<uint64_t>(rate)))
                  : fmt::format("  {:.0f} tok/s", rate);
    line += fmt::format("  {} left", human_seconds(static_cast<double>(total - done) / rate));
  }
  const size_t width = terminal_width(stderr);
  if (line.size() + 1 > width) line.resize(width > 1 ? width - 1 : 0);
  fmt::print(stderr, "\r{}\x1b[K", line);
  std::fflush(stderr);
  shown_ = true;
}

std::string human_bytes(uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value < 1e3) return fmt::format("{} B", bytes);
  if (value < 1e6) return fmt::format("{:.1f} kB", value / 1e3);
  if (value < 1e9) return fmt::format("{:.1f} MB", value / 1e6);
  return fmt::format("{:.2f} GB", value / 1e9);
}

std::string human_count(uint64_t count) {
  std::string digits = std::to_string(count);
  for (size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, ",");
  return digits;
}

std::string human_seconds(double seconds) {
  if (seconds < 10) return fmt::format("{:.2f} s", seconds);
  if (seconds < 60) return fmt::format("{:.0f} s", seconds);
  const auto whole = static_cast<uint64_t>(std::lround(seconds));
  return fmt::format("{} min {} s", whole / 60, whole % 60);
}

std::string stats_line(const GenerateResult& result) {
  const PhaseStatistics& prefill = result.statistics.prefill;
  const PhaseStatistics& decode = result.statistics.decode;
  const auto phase = [](std::string_view name, const PhaseStatistics& p) {
    return fmt::format("{} {} tok in {} ({:.0f} tok/s, {:.0f} positions a query, KV read {})", name, p.tokens,
                       human_seconds(p.seconds), p.tokens_per_second(), p.positions_read,
                       human_bytes(p.kv_bytes_read));
  };
  std::string line = phase("prefill", prefill) + " | " + phase("decode", decode);
  const MemoryStatistics& memory = result.statistics.memory;
  if (memory.kv_cold_bytes > 0) {
    line += fmt::format(" | KV hot {}, cold {}, brought back {}", human_bytes(memory.kv_hot_bytes),
                        human_bytes(memory.kv_cold_bytes), human_bytes(memory.kv_moved_bytes));
  }
  return line + fmt::format(" | KV kept {}, index {}, peak {}", human_bytes(result.statistics.kv_bytes_kept),
                            human_bytes(result.statistics.memory.index_bytes),
                            human_bytes(result.statistics.memory.peak_rss_bytes));
}

std::vector<std::string> roofline_lines(const Statistics& statistics, const MachinePeaks& peaks) {
  std::vector<std::string> lines;
  const auto add = [&](std::string_view name, const PhaseStatistics& phase) {
    if (phase.seconds <= 0) return;
    const Roofline line = roofline(phase, peaks);
    std::string text = fmt::format(
        "roofline {}: {:.0f} tok/s; {} from memory, {:.1f} GB/s ({:.0f}% of the {:.1f} this machine reads); "
        "{:.0f} G multiply-adds/s",
        name, line.tokens_per_second, human_bytes(phase.memory_bytes_read), line.bytes_per_second / 1e9,
        100 * line.read_share, peaks.read_bytes_per_second / 1e9, line.multiply_adds_per_second / 1e9);
    if (peaks.multiply_adds_per_second > 0) {
      text += fmt::format(" ({:.0f}% of its {:.0f} in int8)", 100 * line.multiply_add_share,
                          peaks.multiply_adds_per_second / 1e9);
    }
    lines.push_back(std::move(text));
  };
  add("prefill", statistics.prefill);
  add("decode", statistics.decode);
  return lines;
}

Json to_json(const PhaseStatistics& phase) {
  return {{"tokens", phase.tokens},
          {"seconds", phase.seconds},
          {"tokens_per_second", phase.tokens_per_second()},
          {"positions_read", phase.positions_read},
          {"kv_bytes_read", phase.kv_bytes_read},
          {"memory_bytes_read", phase.memory_bytes_read},
          {"multiply_adds", phase.multiply_adds}};
}

Json roofline_json(const Statistics& statistics, const MachinePeaks& peaks) {
  const auto phase = [&](const PhaseStatistics& figures) {
    const Roofline line = roofline(figures, peaks);
    return Json{{"tokens_per_second", line.tokens_per_second},
                {"bytes_per_second", line.bytes_per_second},
                {"multiply_adds_per_second", line.multiply_adds_per_second},
                {"read_share", line.read_share},
                {"multiply_add_share", line.multiply_add_share}};
  };
  return {{"peaks",
           {{"multiply_adds_per_second", peaks.multiply_adds_per_second},
            {"read_bytes_per_second", peaks.read_bytes_per_second}}},
          {"prefill", phase(statistics.prefill)},
          {"decode", phase(statistics.decode)}};
}

Json to_json(const MemoryStatistics& memory) {
  return {{"weights_bytes", memory.weights_bytes},  {"kv_hot_bytes", memory.kv_hot_bytes},
          {"kv_cold_bytes", memory.kv_cold_bytes},  {"kv_moved_bytes", memory.kv_moved_bytes},
          {"index_bytes", memory.index_bytes},      {"slot_map_bytes", memory.slot_map_bytes},
          {"peak_rss_bytes", memory.peak_rss_bytes}};
}

Json to_json(const GenerateResult& result) {
  return {{"text", result.text},
          {"token_ids", result.token_ids},
          {"prompt_tokens", result.prompt_tokens},
          {"reused_tokens", result.reused_tokens},
          {"stop_reason", to_string(result.stop_reason)},
          {"prefill", to_json(result.statistics.prefill)},
          {"decode", to_json(result.statistics.decode)},
          {"memory", to_json(result.statistics.memory)}};
}

Json error_json(const Error& error) {
  return {{"error", {{"kind", to_string(error.kind())}, {"message", error.what()}}}};
}

}  // namespace keysieve::cli
