#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/model.h"
#include "train/teacher.h"

namespace keysieve {

// Runs windows of text through the model, each from position 0 and in one piece, and shows every layer of
// each, one after another; with the hidden state where `hidden` says so. `read` is told how many tokens each
// window had. False: cancelled.
bool view_layers(const std::shared_ptr<const Model>& model, std::span<const std::vector<int32_t>> windows,
                 bool hidden, const std::atomic<bool>* cancel,
                 const std::function<void(const LayerView&)>& see,
                 const std::function<void(size_t tokens)>& read = {});

}  // namespace keysieve
