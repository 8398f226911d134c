#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "indexer/layer_query.h"
#include "indexer/selection_buffer.h"

namespace keysieve {

// The positions every query read, kept for evaluation and pictures. Costs nothing where LayerQuery::recorder
// is null.
class SelectionRecorder {
 public:
  struct Row {
    int32_t query;                             // its position
    std::vector<std::vector<int32_t>> groups;  // [groups][count], ascending positions; one group: shared
  };
  // Selector's side: `selection` null means every candidate was read.
  void record(const LayerQuery& query, const SelectionBuffer* selection);
  // For a query that read exactly the stored positions `groups` (a fixed cache in decode).
  void record(size_t layer, int32_t query, std::vector<std::vector<int32_t>> groups);
  const std::vector<std::vector<Row>>& layers() const {
    return layers_;
  }  // [layer][query in order of arrival]
  void clear() { layers_.clear(); }

 private:
  std::vector<Row>& layer(size_t index);
  std::vector<std::vector<Row>> layers_;
};

}  // namespace keysieve
