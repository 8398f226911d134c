#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "formats/matrix.h"
#include "formats/safetensors.h"
#include "student_case.h"
#include "support/source_folder.h"
#include "train/student.h"

namespace keysieve {
namespace {

// Losses and gradients that JAX found in double precision for the same numbers (tools/record_gradients.py).
class RecordedGradients : public testing::StudentCase {
 protected:
  RecordedGradients() : StudentCase(20, 6) {
    loss_.divergence = 0.9f;
    loss_.margin = 1.2f;
    loss_.decisive = 0.04f;
    loss_.budget = 22;
    loss_.cut = 0.8f;
  }

  std::vector<float> recorded(const std::string& name) const {
    return read_vector(file_.require_tensor(name));
  }
  std::vector<float> start_of(const std::string& name, const std::string& part) const {
    const TensorInfo* tensor = file_.find(name + ".start." + part);
    return tensor ? read_vector(*tensor) : std::vector<float>();
  }
  IndexerLayerWeights start(const std::string& name) const {
    IndexerLayerWeights weights;
    weights.q = start_of(name, "q");
    weights.k = start_of(name, "k");
    weights.head_weight = start_of(name, "head_weight");
    weights.q_bias = start_of(name, "q_bias");
    weights.k_bias = start_of(name, "k_bias");
    weights.q_norm = start_of(name, "q_norm");
    weights.k_norm = start_of(name, "k_norm");
    return weights;
  }

  // Every value of every tensor within 0.1% of the tensor's largest.
  void expect_recorded(const std::string& name, const IndexerConfig& config, size_t tensors) {
    const std::vector<float> hidden = recorded("hidden");
    const std::vector<float> q = recorded("q");
    const std::vector<float> k = recorded("k");
    std::vector<uint32_t> queries;
    for (const float query : recorded("queries")) queries.push_back(static_cast<uint32_t>(query));
    ASSERT_EQ(queries.size(), 17u);
    const auto student = make_student(config, shape_, start(name), ScoreKeys::exact);
    ASSERT_EQ(student->tensors().size(), tensors);

    const auto kernels = make_kernels("auto");
    const Threads pool(2);
    KernelScratch scratch(pool);
    KernelContext context{*kernels, pool, scratch};
    const LayerView view{0, hidden.size() / shape_.hidden, hidden.data(), q.data(), k.data()};
    const Teacher teacher(view, shape_);
    const LossMeasures measures = student->learn(view, teacher, queries, loss_, 1.0f, context);
    const auto loss = static_cast<double>(recorded(name + ".loss")[0]);
    EXPECT_NEAR(measures.loss, loss, 1e-4 * loss);
    for (const TrainedTensor& tensor : student->tensors()) {
      SCOPED_TRACE(tensor.name);
      const std::vector<float> expected = recorded(name + ".gradient." + std::string(tensor.name));
      ASSERT_EQ(tensor.gradient.size(), expected.size());
      float largest = 0;
      for (const float value : expected) largest = std::max(largest, std::fabs(value));
      EXPECT_GT(largest, 1.0f);
      for (size_t i = 0; i < expected.size(); ++i)
        EXPECT_NEAR(tensor.gradient[i], expected[i], 1e-3f * largest) << i;
    }
  }

  SafetensorsFile file_{testing::source_folder() / "tests/data/gradients.safetensors"};
};

TEST_F(RecordedGradients, Native) { expect_recorded("native", native(SelectionScope::per_group, false), 2); }

TEST_F(RecordedGradients, NativeOneMapAHeadSharedSelection) {
  expect_recorded("native_map_per_head_shared", native(SelectionScope::shared, true), 2);
}

TEST_F(RecordedGradients, Lightning) { expect_recorded("lightning", lightning(), 3); }

TEST_F(RecordedGradients, LightningWithBiasesAndNorms) {
  expect_recorded("lightning_bias_norm", lightning(), 7);
}

}  // namespace
}  // namespace keysieve
