#include "train/native_student.h"

#include <algorithm>
#include <optional>

#include "train/decompositions.h"

namespace keysieve {

struct NativeStudent::KeyHead {
  std::optional<ScoringKeys> mapped;         // w of every token
  std::unique_ptr<PackedMatrix> transposed;  // keys as [head_dim, tokens]; null without gradients
};

// What one call of learn() works with.
struct NativeStudent::Work {
  const LayerView& view;
  const Teacher& teacher;
  std::span<const uint32_t> queries;
  const LossOptions& loss;
  float weight;
  KernelContext& context;

  std::vector<KeyHead> key_heads;             // [groups]
  std::vector<RowMatrix> q;                   // [heads][queries, head_dim], the model's
  std::vector<RowMatrix> u;                   // [heads][queries, rank]
  std::vector<RowMatrix> e;                   // [heads][queries, head_dim], d loss / d logits times keys
  std::vector<float> logit_gradient;          // [heads of the set, rows of the tile, tokens]
  std::vector<float> key_sums;                // [heads of a group * rows of the tile, head_dim]
  std::vector<std::vector<float>> by_worker;  // [threads], see learn_row
  std::vector<SelectionScratch> selections;   // [threads]
  std::vector<LossMeasures> measures;         // [rows of the tile]

  bool backward() const { return weight > 0; }
};

NativeStudent::NativeStudent(const IndexerConfig& config, const ModelShape& shape,
                             const IndexerLayerWeights& start, ScoreKeys keys)
    : heads_(shape.heads),
      groups_(shape.kv_heads),
      heads_per_group_(shape.heads / shape.kv_heads),
      head_dim_(shape.head_dim),
      rank_(config.dim),
      map_per_head_(config.map_per_head),
      per_group_(config.scope == SelectionScope::per_group),
      centred_(config.has_bias),
      key_type_(keys == ScoreKeys::exact ? IndexKeyType::f32 : config.key_type()) {
  tensors_.emplace_back("q", start.q);
  tensors_.emplace_back("k", start.k);
  if (!centred_) return;
  // The smallest mean that explains the start's bias.
  std::vector<float> mean;
  for (size_t g = 0; g < groups_; ++g) {
    const Eigen::VectorXd bias = view_of(start.k_bias.data() + g * rank_, rank_, 1).cast<double>();
    const Eigen::VectorXd own = smallest_solution(key_map(g).cast<double>(), -bias);
    for (const double value : own) mean.push_back(static_cast<float>(value));
  }
  tensors_.emplace_back("k_mean", std::move(mean)).frozen = true;  // [groups, head_dim]
}

Eigen::VectorXf NativeStudent::key_bias(size_t group) const {
  return -(key_map(group) * view_of(tensors_[2].value.data() + group * head_dim_, head_dim_, 1));
}

IndexerLayerWeights NativeStudent::weights() const {
  IndexerLayerWeights weights = LayerStudent::weights();
  for (size_t g = 0; centred_ && g < groups_; ++g) {
    const Eigen::VectorXf bias = key_bias(g);
    weights.k_bias.insert(weights.k_bias.end(), bias.begin(), bias.end());
  }
  return weights;
}

// Twenty windows' worth of memory: the mean of one window of 4,096 keys is close to that of many.
void NativeStudent::follow_key_mean(const LayerView& view) {
  constexpr float kShare = 0.05f;
  const auto keys = view_of(view.k, view.tokens, groups_ * head_dim_);
  auto mean = view_of(tensors_[2].value.data(), 1, groups_ * head_dim_);
  mean += kShare * (keys.colwise().mean() - mean);
}

ConstMatrixView NativeStudent::query_map(size_t head) const {
  return view_of(tensors_[0].value.data() + map_of(head) * rank_ * head_dim_, rank_, head_dim_);
}

ConstMatrixView NativeStudent::key_map(size_t group) const {
  return view_of(tensors_[1].value.data() + group * rank_ * head_dim_, rank_, head_dim_);
}

size_t NativeStudent::working_bytes(size_t tokens, size_t queries, int threads) const {
  const size_t set_heads = per_group_ ? heads_per_group_ : heads_;
  const size_t keys = tokens * groups_ * (head_dim_ * 2 + rank_) + tokens * head_dim_ * 2;
  const size_t tile = set_heads * kQueryTile * tokens;
  const size_t rows = queries * heads_ * (2 * head_dim_ + rank_);
  const size_t workers = static_cast<size_t>(threads) * (2 * set_heads + 4) * score_stride(tokens);
  return (keys + tile + rows + workers) * sizeof(float);
}

// Maps all keys and the queries.
void NativeStudent::prepare(Work& work) const {
  const size_t tokens = work.view.tokens;
  std::vector<float> gathered(tokens * head_dim_);
  std::vector<float> mapped(tokens * rank_);
  std::vector<float> transposed(work.backward() ? tokens * head_dim_ : 0);
  work.key_heads.resize(groups_);
  for (size_t g = 0; g < groups_; ++g) {
    for (size_t t = 0; t < tokens; ++t) {
      std::copy_n(work.view.k + (t * groups_ + g) * head_dim_, head_dim_, gathered.data() + t * head_dim_);
    }
    const std::span<const float> map(key_map(g).data(), rank_ * head_dim_);
    multiply(mapped.data(), gathered.data(), tokens, *pack_rows(map, rank_, work.context), work.context);
    if (centred_) view_of(mapped.data(), tokens, rank_).rowwise() += key_bias(g).transpose();
    work.key_heads[g].mapped.emplace(mapped.data(), rank_, tokens, rank_, key_type_);
    if (!work.backward()) continue;
    view_of(transposed.data(), head_dim_, tokens) = view_of(gathered.data(), tokens, head_dim_).transpose();
    work.key_heads[g].transposed = pack_rows(transposed, head_dim_, work.context);
  }
  const auto rows = static_cast<Eigen::Index>(work.queries.size());
  for (size_t h = 0; h < heads_; ++h) {
    RowMatrix q(rows, static_cast<Eigen::Index>(head_dim_));
    for (size_t i = 0; i < work.queries.size(); ++i) {
      std::copy_n(work.view.q + (work.queries[i] * heads_ + h) * head_dim_, head_dim_,
                  q.data() + i * head_dim_);
    }
    work.u.emplace_back(q * query_map(h).transpose());
    work.e.emplace_back(RowMatrix::Zero(rows, static_cast<Eigen::Index>(head_dim_)));
    work.q.push_back(std::move(q));
  }
}

// Loss of query `tile + row` in `set`, and d loss / d logits of its heads.
void NativeStudent::learn_row(Work& work, size_t set, size_t tile, size_t row, int worker) const {
  const size_t set_heads = per_group_ ? heads_per_group_ : heads_;
  const size_t first_head = per_group_ ? set * heads_per_group_ : 0;
  const size_t tokens = work.view.tokens;
  const size_t stride = score_stride(tokens);
  const size_t query = work.queries[tile + row];
  const size_t keys = query + 1;
  const auto size = static_cast<Eigen::Index>(keys);
  // Teacher's heads, student's heads, teacher's mean and peak, student's mean, its gradient: [stride] each.
  float* const memory = work.by_worker[static_cast<size_t>(worker)].data();
  const auto teacher_head = [&](size_t h) { return memory + h * stride; };
  const auto student_head = [&](size_t h) { return memory + (set_heads + h) * stride; };
  float* const teacher = memory + 2 * set_heads * stride;
  float* const peak = teacher + stride;
  float* const student = peak + stride;
  float* const gradient = student + stride;
  using Array = Eigen::Map<Eigen::ArrayXf>;

  for (size_t h = 0; h < set_heads; ++h) {
    const size_t head = first_head + h;
    work.teacher.attention(teacher_head(h), query, head, work.context, worker);
    const float* const u = work.u[head].data() + (tile + row) * rank_;
    work.key_heads[head / heads_per_group_].mapped->logits(student_head(h), u, keys, work.context, worker);
    softmax(student_head(h), keys);
  }
  Array(teacher, size) = Array(teacher_head(0), size);
  Array(peak, size) = Array(teacher_head(0), size);
  Array(student, size) = Array(student_head(0), size);
  for (size_t h = 1; h < set_heads; ++h) {
    Array(teacher, size) += Array(teacher_head(h), size);
    Array(peak, size) = Array(peak, size).max(Array(teacher_head(h), size));
    Array(student, size) += Array(student_head(h), size);
  }
  const float share = 1.0f / static_cast<float>(set_heads);
  Array(teacher, size) *= share;
  Array(student, size) *= share;

  LossMeasures& measures = work.measures[row];
  const LossRow loss_row{teacher, peak, student, keys};
  // dP / dP_h is 1 / heads.
  distribution_loss(gradient, loss_row, work.loss, work.weight * share,
                    work.selections[static_cast<size_t>(worker)], work.context, worker, measures);
  const float focus = focus_of(loss_row, work.loss);
  const bool by_head = work.loss.head_divergence > 0;
  double divergence = 0;
  for (size_t h = 0; h < set_heads; ++h) {
    float* const out = work.logit_gradient.data() + (h * kQueryTile + row) * tokens;
    if (work.backward()) softmax_backward(out, student_head(h), gradient, keys);
    if (by_head) {
      divergence += head_divergence(out, teacher_head(h), student_head(h), keys, work.loss,
                                    work.loss.head_divergence * work.weight * focus * share);
    }
    std::fill(out + keys, out + tokens, 0.0f);
  }
  measures.head_divergence += divergence * static_cast<double>(share);
  measures.loss += static_cast<double>(work.loss.head_divergence * focus * share) * divergence;
}

// E_h = (d loss / d logits) keys for the tile's rows of the set.
void NativeStudent::backward_tile(Work& work, size_t set, size_t tile, size_t rows) const {
  const size_t tokens = work.view.tokens;
  const size_t first_group = per_group_ ? set : 0;
  const size_t last_group = per_group_ ? set + 1 : groups_;
  for (size_t g = first_group; g < last_group; ++g) {
    const size_t first_row = (g - first_group) * heads_per_group_ * kQueryTile;
    multiply(work.key_sums.data(), work.logit_gradient.data() + first_row * tokens,
             heads_per_group_ * kQueryTile, *work.key_heads[g].transposed, work.context);
    for (size_t h = 0; h < heads_per_group_; ++h) {
      std::copy_n(work.key_sums.data() + h * kQueryTile * head_dim_, rows * head_dim_,
                  work.e[g * heads_per_group_ + h].data() + tile * head_dim_);
    }
  }
}

// With z = u . K k and E = sum_s (d loss / d z_s) k_s: d loss / d u = K E, hence dQ = (K E) q^T and
// dK = u E^T. The keys themselves are never projected back.
void NativeStudent::add_gradients(Work& work) {
  for (size_t h = 0; h < heads_; ++h) {
    const size_t group = h / heads_per_group_;
    const RowMatrix du = work.e[h] * key_map(group).transpose();
    view_of(tensors_[0].gradient.data() + map_of(h) * rank_ * head_dim_, rank_, head_dim_).noalias() +=
        du.transpose() * work.q[h];
    view_of(tensors_[1].gradient.data() + group * rank_ * head_dim_, rank_, head_dim_).noalias() +=
        work.u[h].transpose() * work.e[h];
  }
}

LossMeasures NativeStudent::learn(const LayerView& view, const Teacher& teacher,
                                  std::span<const uint32_t> queries, const LossOptions& loss, float weight,
                                  KernelContext& context) {
  const size_t set_heads = per_group_ ? heads_per_group_ : heads_;
  const auto workers = static_cast<size_t>(context.threads.count());
  Work work{view, teacher, queries, loss, weight, context, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  prepare(work);
  work.logit_gradient.resize(set_heads * kQueryTile * view.tokens);
  work.key_sums.resize(heads_per_group_ * kQueryTile * head_dim_);
  work.by_worker.assign(workers, std::vector<float>((2 * set_heads + 4) * score_stride(view.tokens)));
  work.selections.resize(workers);
  LossMeasures sum;
  for (size_t set = 0; set < sets(); ++set) {
    for (size_t tile = 0; tile < queries.size(); tile += kQueryTile) {
      const size_t rows = std::min(kQueryTile, queries.size() - tile);
      work.measures.assign(rows, {});
      context.threads.run(rows, [&](size_t row, int worker) { learn_row(work, set, tile, row, worker); });
      for (const LossMeasures& measures : work.measures) sum.add(measures);
      if (work.backward()) backward_tile(work, set, tile, rows);
    }
  }
  if (!work.backward()) return sum;
  add_gradients(work);
  if (centred_) follow_key_mean(view);
  return sum;
}

}  // namespace keysieve
