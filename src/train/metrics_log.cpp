#include "train/metrics_log.h"

#include <string>
#include <string_view>

#include "core/file_io.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

// A line cut short by a kill is none.
bool belongs(std::string_view line, size_t last_step) {
  const Json json = Json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("step") || !json.at("step").is_number_unsigned()) return false;
  return json.at("step").get<size_t>() <= last_step;
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& path, size_t last_step) : path_(path) {
  std::string kept;
  std::error_code ignored;
  if (last_step > 0 && std::filesystem::is_regular_file(path, ignored)) {
    const std::string text = read_text_file(path);
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find('\n', at);
      if (end == std::string::npos) break;
      const std::string_view line(text.data() + at, end - at);
      if (belongs(line, last_step)) kept += std::string(line) + "\n";
      at = end + 1;
    }
  }
  AtomicFileWriter writer(path);
  writer.write(kept);
  writer.commit();
  file_.open(path, std::ios::binary | std::ios::app);
}

void MetricsLog::write(const Json& line) {
  file_ << line.dump() << '\n' << std::flush;
  if (!file_) throw Error(ErrorKind::file, path_.string(), "cannot be written", "room on the disk");
}

}  // namespace keysieve
