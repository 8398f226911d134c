#include <fmt/format.h>

#include <array>
#include <utility>

#include "core/file_io.h"
#include "core/json.h"
#include "formats/npy.h"
#include "generate/session_impl.h"
#include "indexer/selection_recorder.h"
#include "keysieve/error.h"
#include "keysieve/session.h"

namespace keysieve {
namespace {

// A query that had nothing to choose may come with one set, which stands for all groups.
Session::SelectionRecord to_record(const SelectionRecorder& recorder, size_t groups) {
  Session::SelectionRecord record;
  for (const auto& rows : recorder.layers()) {
    std::vector<std::vector<std::vector<uint32_t>>> queries;
    queries.reserve(rows.size());
    for (const SelectionRecorder::Row& row : rows) {
      std::vector<std::vector<uint32_t>> sets;
      for (size_t group = 0; group < groups; ++group) {
        const std::vector<int32_t>& positions = row.groups[group < row.groups.size() ? group : 0];
        sets.emplace_back(positions.begin(), positions.end());
      }
      queries.push_back(std::move(sets));
    }
    record.push_back(std::move(queries));
  }
  return record;
}

// [layer][query] -> positions, or [layer][query][group] -> positions where each KV head has its own.
std::string selection_json(const Session::SelectionRecord& record, size_t groups) {
  Json layers = Json::array();
  for (const auto& queries : record) {
    Json rows = Json::array();
    for (const auto& sets : queries) rows.push_back(groups == 1 ? Json(sets.front()) : Json(sets));
    layers.push_back(std::move(rows));
  }
  return layers.dump() + "\n";
}

}  // namespace

bool Session::logits(std::span<const int32_t> tokens, const LogitsCallback& on_row,
                     SelectionRecord* selection, const std::atomic<bool>* cancel) {
  clear();
  impl_->check_tokens(tokens);
  if (tokens.size() > capacity()) {
    throw Error(ErrorKind::mismatch, "tokens", fmt::format("{}", tokens.size()),
                fmt::format("at most {}, the context", capacity()),
                "shorten the list or load the model with a larger --context");
  }
  SelectionRecorder recorder;
  ForwardOptions options;
  if (selection) options.recorder = &recorder;
  const size_t vocabulary = impl_->model->info.vocabulary;
  options.on_logits = [&](size_t first, size_t count, std::span<const float> rows) {
    for (size_t i = 0; i < count; ++i) on_row(first + i, rows.subspan(i * vocabulary, vocabulary));
  };
  const bool whole = impl_->append(tokens, Logits::all, cancel, {}, impl_->prefill_sum, options);
  if (selection) *selection = to_record(recorder, impl_->groups);
  return whole;
}

bool Session::write_logits(std::span<const int32_t> tokens, const std::filesystem::path& npy,
                           const std::filesystem::path& selection, const std::atomic<bool>* cancel,
                           const std::function<void(size_t done, size_t total)>& on_rows) {
  const std::array<uint64_t, 2> shape{tokens.size(), impl_->model->info.vocabulary};
  NpyWriter writer(npy, shape);
  const auto on_row = [&](size_t position, std::span<const float> row) {
    writer.write(row);
    if (on_rows) on_rows(position + 1, tokens.size());
  };
  SelectionRecord record;
  if (!logits(tokens, on_row, selection.empty() ? nullptr : &record, cancel)) return false;
  if (!selection.empty()) {
    AtomicFileWriter file(selection);
    file.write(selection_json(record, impl_->groups));
    file.commit();
  }
  writer.commit();
  return true;
}

}  // namespace keysieve
