#pragma once

#include <gtest/gtest.h>

#include "train/losses.h"
#include "train/student.h"

namespace keysieve::testing {

// One small layer of a model, and students for it in both shapes.
class StudentCase : public ::testing::Test {
 protected:
  StudentCase(size_t hidden, size_t heads) {
    shape_.layers = 1;
    shape_.hidden = hidden;
    shape_.heads = heads;
    shape_.kv_heads = 2;
    shape_.head_dim = 8;
    shape_.rope_theta = 10000;
    shape_.rms_norm_eps = 1e-5f;
    loss_.sinks = 2;
    loss_.recent = 5;
    loss_.head_divergence = 0.7f;
    loss_.support = 0.3f;
    loss_.focus = 0.5f;
  }

  IndexerConfig native(SelectionScope scope, bool map_per_head) const {
    IndexerConfig config = IndexerConfig::native_for(shape_, 5, loss_.budget);
    config.scope = scope;
    config.map_per_head = map_per_head;
    return config;
  }
  IndexerConfig lightning() const {
    IndexerConfig config;
    config.layers = 1;
    config.hidden = shape_.hidden;
    config.heads = 3;
    config.dim = 7;
    config.rope_dim = 4;
    config.rope_theta = shape_.rope_theta;
    return config;
  }

  ModelShape shape_;
  LossOptions loss_;
};

}  // namespace keysieve::testing
