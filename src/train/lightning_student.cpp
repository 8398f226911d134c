#include "train/lightning_student.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

namespace keysieve {

struct LightningStudent::Work {
  const LayerView& view;
  const Teacher& teacher;
  std::span<const uint32_t> queries;
  const LossOptions& loss;
  float weight;
  KernelContext& context;

  Projection q;                               // [queries, heads * dim]
  Projection k;                               // [tokens, dim]
  RowMatrix head_weight;                      // [queries, heads], scaled
  std::optional<ScoringKeys> keys;            // of k
  std::unique_ptr<PackedMatrix> transposed;   // k as [dim, tokens]
  RowMatrix q_gradient;                       // [queries, heads * dim]
  RowMatrix k_gradient;                       // [tokens, dim]
  RowMatrix weight_gradient;                  // [queries, heads]
  RowMatrix logit_gradient;                   // [heads * kQueryTile, tokens], of the tile
  RowMatrix key_sums;                         // [heads * kQueryTile, dim]
  std::vector<std::vector<float>> by_worker;  // [threads]
  std::vector<SelectionScratch> selections;   // [threads]
  std::vector<LossMeasures> measures;         // [rows of the tile]

  bool backward() const { return weight > 0; }
};

LightningStudent::LightningStudent(const IndexerConfig& config, const ModelShape& shape,
                                   const IndexerLayerWeights& start, ScoreKeys keys)
    : model_heads_(shape.heads),
      hidden_(shape.hidden),
      heads_(config.heads),
      dim_(config.dim),
      norm_eps_(shape.rms_norm_eps),
      weight_scale_(1.0f / std::sqrt(static_cast<float>(config.heads) * static_cast<float>(config.dim))),
      key_type_(keys == ScoreKeys::exact ? IndexKeyType::f32 : config.key_type()) {
  tensors_.emplace_back("q", start.q);
  tensors_.emplace_back("k", start.k);
  tensors_.emplace_back("head_weight", start.head_weight);
  if (!start.q_bias.empty()) tensors_.emplace_back("q_bias", start.q_bias);
  if (!start.k_bias.empty()) tensors_.emplace_back("k_bias", start.k_bias);
  if (!start.q_norm.empty()) tensors_.emplace_back("q_norm", start.q_norm);
  if (!start.k_norm.empty()) tensors_.emplace_back("k_norm", start.k_norm);
  for (size_t i = 0; i < config.rope_dim / 2; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(config.rope_dim);
    rope_.frequency.push_back(std::pow(config.rope_theta, exponent));
  }
}

TrainedTensor* LightningStudent::find(std::string_view name) {
  for (TrainedTensor& tensor : tensors_) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

const TrainedTensor* LightningStudent::find(std::string_view name) const {
  for (const TrainedTensor& tensor : tensors_) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

size_t LightningStudent::working_bytes(size_t tokens, size_t queries, int threads) const {
  const size_t keys = tokens * (2 * hidden_ + 5 * dim_) + heads_ * dim_ * hidden_;
  const size_t rows = queries * (hidden_ + 4 * heads_ * dim_);
  const size_t workers = static_cast<size_t>(threads) * (heads_ + 6) * score_stride(tokens);
  return (keys + rows + workers + heads_ * kQueryTile * tokens) * sizeof(float);
}

void LightningStudent::project(Projection& projection, std::string_view part, size_t heads,
                               KernelContext& context) const {
  const size_t width = heads * dim_;
  const auto rows = static_cast<size_t>(projection.input.rows());
  projection.plain.resize(projection.input.rows(), static_cast<Eigen::Index>(width));
  multiply(projection.plain.data(), projection.input.data(), rows,
           *pack_rows(find(part)->value, width, context), context);
  const std::string name(part);
  if (const TrainedTensor* bias = find(name + "_bias")) {
    projection.plain.rowwise() += view_of(bias->value.data(), 1, width).row(0);
  }
  projection.result = projection.plain;
  if (const TrainedTensor* norm = find(name + "_norm")) {
    context.kernels.rms_norm(projection.result.data(), projection.plain.data(), norm->value.data(), norm_eps_,
                             rows, width);
  }
  if (!rope_.frequency.empty()) {
    context.kernels.rope(projection.result.data(), width, projection.places.data(), rows, heads, dim_, rope_);
  }
}

void LightningStudent::project_back(const Projection& projection, std::string_view part, size_t heads,
                                    RowMatrix& upstream, KernelContext& context) {
  const size_t width = heads * dim_;
  const auto rows = static_cast<size_t>(upstream.rows());
  const std::string name(part);
  if (!rope_.frequency.empty()) {  // the inverse of a rotation is the rotation by the opposite angle
    std::vector<int32_t> opposite(projection.places.size());
    std::transform(projection.places.begin(), projection.places.end(), opposite.begin(), std::negate<>());
    context.kernels.rope(upstream.data(), width, opposite.data(), rows, heads, dim_, rope_);
  }
  if (TrainedTensor* norm = find(name + "_norm")) {
    const auto weight = view_of(norm->value.data(), 1, width).row(0).array().eval();
    for (Eigen::Index r = 0; r < upstream.rows(); ++r) {
      const auto x = projection.plain.row(r).array();
      const float inverse = 1.0f / std::sqrt(x.square().mean() + norm_eps_);
      view_of(norm->gradient.data(), 1, width).row(0).array() += upstream.row(r).array() * x * inverse;
      const Eigen::Array<float, 1, Eigen::Dynamic> weighted = upstream.row(r).array() * weight;
      const float common = (weighted * x).mean() * inverse * inverse * inverse;
      upstream.row(r).array() = weighted * inverse - x * common;
    }
  }
  if (TrainedTensor* bias = find(name + "_bias")) {
    view_of(bias->gradient.data(), 1, width).row(0) += upstream.colwise().sum();
  }
  view_of(find(part)->gradient.data(), width, hidden_).noalias() += upstream.transpose() * projection.input;
}

void LightningStudent::prepare(Work& work) const {
  const size_t tokens = work.view.tokens;
  const auto rows = static_cast<Eigen::Index>(work.queries.size());
  const auto inputs = view_of(work.view.hidden, tokens, hidden_);
  work.k.input = inputs;
  work.k.places.resize(tokens);
  std::iota(work.k.places.begin(), work.k.places.end(), 0);
  project(work.k, "k", 1, work.context);
  work.q.input.resize(rows, static_cast<Eigen::Index>(hidden_));
  for (Eigen::Index i = 0; i < rows; ++i) {
    const uint32_t query = work.queries[static_cast<size_t>(i)];
    work.q.input.row(i) = inputs.row(query);
    work.q.places.push_back(static_cast<int32_t>(query));
  }
  project(work.q, "q", heads_, work.context);
  work.head_weight =
      work.q.input * view_of(find("head_weight")->value.data(), heads_, hidden_).transpose() * weight_scale_;
  work.keys.emplace(work.k.result.data(), dim_, tokens, dim_, key_type_);
  work.by_worker.assign(static_cast<size_t>(work.context.threads.count()),
                        std::vector<float>((heads_ + 6) * score_stride(tokens)));
  work.selections.resize(work.by_worker.size());
  if (!work.backward()) return;
  const RowMatrix transposed = work.k.result.transpose();
  work.transposed = pack_rows({transposed.data(), tokens * dim_}, dim_, work.context);
  work.q_gradient = RowMatrix::Zero(rows, static_cast<Eigen::Index>(heads_ * dim_));
  work.k_gradient = RowMatrix::Zero(static_cast<Eigen::Index>(tokens), static_cast<Eigen::Index>(dim_));
  work.weight_gradient = RowMatrix::Zero(rows, static_cast<Eigen::Index>(heads_));
  work.logit_gradient =
      RowMatrix::Zero(static_cast<Eigen::Index>(heads_ * kQueryTile), static_cast<Eigen::Index>(tokens));
  work.key_sums.resize(static_cast<Eigen::Index>(heads_ * kQueryTile), static_cast<Eigen::Index>(dim_));
}

void LightningStudent::learn_row(Work& work, size_t tile, size_t row, int worker) const {
  const size_t stride = score_stride(work.view.tokens);
  const size_t query = work.queries[tile + row];
  const size_t keys = query + 1;
  const auto size = static_cast<Eigen::Index>(keys);
  const auto index = static_cast<Eigen::Index>(tile + row);
  // [heads] products of the student's heads; teacher's mean, peak and one head; student, gradients of P and
  // I.
  float* const memory = work.by_worker[static_cast<size_t>(worker)].data();
  float* const teacher = memory + heads_ * stride;
  float* const peak = teacher + stride;
  float* const one_head = peak + stride;
  float* const student = one_head + stride;
  float* const gradient = student + stride;
  float* const score_gradient = gradient + stride;
  using Array = Eigen::Map<Eigen::ArrayXf>;

  Array(teacher, size).setZero();
  Array(peak, size).setZero();
  for (size_t h = 0; h < model_heads_; ++h) {
    work.teacher.attention(one_head, query, h, work.context, worker);
    Array(teacher, size) += Array(one_head, size);
    Array(peak, size) = Array(peak, size).max(Array(one_head, size));
  }
  Array(teacher, size) *= 1.0f / static_cast<float>(model_heads_);

  Array(student, size).setZero();
  for (size_t h = 0; h < heads_; ++h) {
    float* const product = memory + h * stride;
    work.keys->logits(product, work.q.result.data() + (tile + row) * heads_ * dim_ + h * dim_, keys,
                      work.context, worker);
    Array(student, size) +=
        work.head_weight(index, static_cast<Eigen::Index>(h)) * Array(product, size).max(0.0f);
  }
  softmax(student, keys);
  distribution_loss(gradient, {teacher, peak, student, keys}, work.loss, work.weight,
                    work.selections[static_cast<size_t>(worker)], work.context, worker, work.measures[row]);
  if (!work.backward()) return;
  softmax_backward(score_gradient, student, gradient, keys);
  for (size_t h = 0; h < heads_; ++h) {
    const Array product(memory + h * stride, size);
    const auto head = static_cast<Eigen::Index>(h);
    float* const out = work.logit_gradient.data() + (h * kQueryTile + row) * work.view.tokens;
    Array(out, size) =
        (product > 0.0f).select(Array(score_gradient, size) * work.head_weight(index, head), 0.0f);
    std::fill(out + keys, out + work.view.tokens, 0.0f);
    work.weight_gradient(index, head) = (Array(score_gradient, size) * product.max(0.0f)).sum();
  }
}

void LightningStudent::backward_tile(Work& work, size_t tile, size_t rows) const {
  multiply(work.key_sums.data(), work.logit_gradient.data(), heads_ * kQueryTile, *work.transposed,
           work.context);
  RowMatrix queries(static_cast<Eigen::Index>(heads_ * kQueryTile), static_cast<Eigen::Index>(dim_));
  queries.setZero();
  for (size_t h = 0; h < heads_; ++h) {
    for (size_t row = 0; row < rows; ++row) {
      const size_t of_head = (h * kQueryTile + row) * dim_;
      const size_t of_query = ((tile + row) * heads_ + h) * dim_;
      std::copy_n(work.key_sums.data() + of_head, dim_, work.q_gradient.data() + of_query);
      std::copy_n(work.q.result.data() + of_query, dim_, queries.data() + of_head);
    }
  }
  work.k_gradient.noalias() += work.logit_gradient.transpose() * queries;
}

void LightningStudent::add_gradients(Work& work) {
  project_back(work.q, "q", heads_, work.q_gradient, work.context);
  project_back(work.k, "k", 1, work.k_gradient, work.context);
  view_of(find("head_weight")->gradient.data(), heads_, hidden_).noalias() +=
      weight_scale_ * work.weight_gradient.transpose() * work.q.input;
}

LossMeasures LightningStudent::learn(const LayerView& view, const Teacher& teacher,
                                     std::span<const uint32_t> queries, const LossOptions& loss, float weight,
                                     KernelContext& context) {
  Work work{view, teacher, queries, loss, weight, context, {}, {}, {}, {},
            {},   {},      {},      {},   {},     {},      {}, {}, {}};
  prepare(work);
  LossMeasures sum;
  for (size_t tile = 0; tile < queries.size(); tile += kQueryTile) {
    const size_t rows = std::min(kQueryTile, queries.size() - tile);
    work.measures.assign(rows, {});
    context.threads.run(rows, [&](size_t row, int worker) { learn_row(work, tile, row, worker); });
    for (const LossMeasures& measures : work.measures) sum.add(measures);
    if (work.backward()) backward_tile(work, tile, rows);
  }
  if (work.backward()) add_gradients(work);
  return sum;
}

}  // namespace keysieve
