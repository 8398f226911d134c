#include "report/report_input.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "core/file_io.h"
#include "keysieve/error.h"

namespace keysieve::report {
namespace {

constexpr size_t kLargest = size_t{64} << 20;

// A field that a kind of result must have. `list` fields hold objects, each with the numbers `numbers`.
struct Requirement {
  std::string_view kind;
  std::string_view field;
  bool list;
  std::vector<std::string_view> numbers;
};

const std::vector<Requirement>& requirements() {
  static const std::vector<Requirement> table{
      {"ppl", "perplexity_dense", false, {}},
      {"needle", "rows", true, {"context", "budget", "passed", "trials"}},
      {"agreement", "top1_agreement", false, {}},
      {"memory", "rows", true, {"context", "dense_kv_bytes", "sparse_kv_bytes"}},
      {"latency", "rows", true, {"context", "prefill_tokens_per_second", "decode_tokens_per_second"}},
      {"gsm8k", "accuracy", false, {}},
      {"reading", "layers", true, {"captured", "best", "recent"}},
  };
  return table;
}

// UTF-8 whatever the file system holds.
std::string shown(const std::filesystem::path& path) {
  const Json text(path.filename().empty() ? path.parent_path().filename().string()
                                          : path.filename().string());
  return parse_json(text.dump(-1, ' ', false, Json::error_handler_t::replace), "name").get<std::string>();
}

bool has(const Json& object, const Requirement& need) {
  const auto found = object.find(need.field);
  if (found == object.end()) return false;
  if (!need.list) return found->is_number();
  if (!found->is_array() || found->empty()) return false;
  return std::all_of(found->begin(), found->end(), [&](const Json& row) {
    return row.is_object() &&
           std::all_of(need.numbers.begin(), need.numbers.end(), [&](std::string_view key) {
             return row.contains(key) && row.at(std::string(key)).is_number();
           });
  });
}

// What the document says it is, or, where it does not, what its fields fit.
std::string kind_of(const Json& result, const std::string& subject) {
  if (!result.is_object()) {
    throw Error(ErrorKind::format, subject, "no result",
                "JSON that keysieve eval printed, or a train folder");
  }
  const std::string said = json_value<std::string>(result, "kind", "", subject);
  for (const Requirement& need : requirements()) {
    if (said == need.kind && !has(result, need)) {
      throw Error(ErrorKind::format, subject,
                  fmt::format("a result of kind {} without good \"{}\"", said, need.field),
                  "what keysieve eval printed");
    }
    if ((said == need.kind || said.empty()) && has(result, need)) return std::string(need.kind);
  }
  throw Error(
      ErrorKind::format, subject, said.empty() ? "no result" : fmt::format("kind \"{}\"", said),
      "a result of eval ppl, needle, agreement, memory, latency, gsm8k or reading, or a train folder");
}

// Steps with a loss, and measurements on the development texts. A line cut short by a kill is left out.
Json read_metrics(const std::filesystem::path& path) {
  const std::string text = read_text_file(path, kLargest);
  Json steps = Json::array();
  Json developments = Json::array();
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const Json line = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(at),
                                  text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    at = end + 1;
    if (!line.is_object() || !line.contains("step") || !line.at("step").is_number()) continue;
    if (line.contains("loss")) steps.push_back(line);
    if (line.contains("development") && line.at("development").is_object()) {
      Json measured = line.at("development");
      measured["step"] = line.at("step");
      developments.push_back(std::move(measured));
    }
  }
  if (steps.empty() && developments.empty()) {
    throw Error(ErrorKind::format, path.string(), "no steps", "the metrics.jsonl that keysieve train writes");
  }
  return {{"steps", std::move(steps)}, {"developments", std::move(developments)}};
}

}  // namespace

ReportInput read_report_input(const std::filesystem::path& path) {
  ReportInput input;
  input.name = shown(path);
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    input.kind = "train";
    input.result = read_metrics(path / "metrics.jsonl");
    return input;
  }
  Json document = read_json_file(path, kLargest);
  const std::string subject = path.string();
  if (document.is_object() && document.contains("result")) {
    input.command = json_value<std::string>(document, "command", "", subject);
    input.machine = json_value<std::string>(document, "machine", "", subject);
    input.date = json_value<std::string>(document, "date", "", subject);
    Json result = std::move(document.at("result"));
    document = std::move(result);
  }
  input.kind = kind_of(document, subject);
  input.result = std::move(document);
  return input;
}

}  // namespace keysieve::report
