#include "train/moments.h"

#include <algorithm>
#include <cmath>

namespace keysieve {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<const RowMajor, 0, Eigen::OuterStride<>>;

// Sums in double throughout: some models' keys are biased by 200 with a spread of 1, and a covariance from
// fp32 sums of squares would lose that spread.
void add_squares(Eigen::MatrixXd& sum, const Eigen::MatrixXd& rows) {
  sum.selfadjointView<Eigen::Lower>().rankUpdate(rows.transpose());
}

Eigen::MatrixXd both_triangles(const Eigen::MatrixXd& lower) { return lower.selfadjointView<Eigen::Lower>(); }

// What `positions` more do to a head's values [head_dim]; see Kernels::rotate for the layout.
Eigen::MatrixXd rotation_by(const RopeTable& rope, size_t head_dim, size_t positions) {
  const auto dim = static_cast<Eigen::Index>(head_dim);
  const auto pairs = static_cast<Eigen::Index>(rope.frequency.size());
  Eigen::MatrixXd turn = Eigen::MatrixXd::Identity(dim, dim);
  for (Eigen::Index i = 0; i < pairs; ++i) {
    const double angle = static_cast<double>(positions) * rope.frequency[static_cast<size_t>(i)];
    turn(i, i) = turn(i + pairs, i + pairs) = std::cos(angle);
    turn(i, i + pairs) = -std::sin(angle);
    turn(i + pairs, i) = std::sin(angle);
  }
  return turn;
}

size_t left_out(size_t first_position, size_t tokens, size_t first_counted) {
  return first_position >= first_counted ? 0 : std::min(tokens, first_counted - first_position);
}

}  // namespace

MomentCollector::MomentCollector(size_t layers, size_t heads, size_t kv_heads, size_t head_dim,
                                 const Threads& threads)
    : heads_(heads),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      threads_(threads),
      groups_(layers * kv_heads),
      query_rows_(layers, 0),
      key_rows_(layers, 0) {
  const auto dim = static_cast<Eigen::Index>(head_dim);
  for (Group& group : groups_) {
    group.queries = Eigen::MatrixXd::Zero(dim, dim);
    group.keys = Eigen::MatrixXd::Zero(dim, dim);
    group.key_sum = Eigen::VectorXd::Zero(dim);
  }
}

void MomentCollector::add(const TapPlace& place, const float* q, const float* k) {
  const auto dim = static_cast<Eigen::Index>(head_dim_);
  const size_t skip_queries = left_out(place.first_position, place.tokens, kFirstQuery);
  const size_t skip_keys = left_out(place.first_position, place.tokens, kFirstKey);
  const auto queries = static_cast<Eigen::Index>(place.tokens - skip_queries);
  const auto keys = static_cast<Eigen::Index>(place.tokens - skip_keys);
  const size_t per_group = heads_ / kv_heads_;
  threads_.run(kv_heads_, [&](size_t g, int) {
    Group& group = groups_[place.layer * kv_heads_ + g];
    if (queries > 0) {
      for (size_t h = g * per_group; h < (g + 1) * per_group; ++h) {
        const Rows rows(q + (skip_queries * heads_ + h) * head_dim_, queries, dim,
                        Eigen::OuterStride<>(static_cast<Eigen::Index>(heads_ * head_dim_)));
        add_squares(group.queries, rows.cast<double>());
      }
    }
    if (keys > 0) {
      const Rows rows(k + (skip_keys * kv_heads_ + g) * head_dim_, keys, dim,
                      Eigen::OuterStride<>(static_cast<Eigen::Index>(kv_heads_ * head_dim_)));
      const Eigen::MatrixXd values = rows.cast<double>();
      add_squares(group.keys, values);
      group.key_sum += values.colwise().sum().transpose();
    }
  });
  query_rows_[place.layer] += static_cast<size_t>(queries);
  key_rows_[place.layer] += static_cast<size_t>(keys);
}

size_t MomentCollector::queries() const { return query_rows_.empty() ? 0 : query_rows_.front(); }
size_t MomentCollector::keys() const { return key_rows_.empty() ? 0 : key_rows_.front(); }

MomentCollector::Moments MomentCollector::moments(size_t layer, size_t group, const RopeTable& rope,
                                                  std::span<const WindowStart> starts) const {
  const Group& sums = groups_[layer * kv_heads_ + group];
  const size_t per_group = heads_ / kv_heads_;
  const double query_count = std::max(static_cast<double>(query_rows_[layer] * per_group), 1.0);
  const double key_count = std::max(static_cast<double>(key_rows_[layer]), 1.0);
  const Eigen::MatrixXd queries = both_triangles(sums.queries) / query_count;
  const Eigen::MatrixXd keys = both_triangles(sums.keys) / key_count;
  const auto dim = static_cast<Eigen::Index>(head_dim_);
  Moments mean{Eigen::MatrixXd::Zero(dim, dim), Eigen::VectorXd::Zero(dim), Eigen::MatrixXd::Zero(dim, dim)};
  double weights = 0;
  for (const WindowStart& start : starts) {
    const Eigen::MatrixXd turn = rotation_by(rope, head_dim_, start.position);
    mean.query += start.weight * turn * queries * turn.transpose();
    mean.key_mean += start.weight * turn * sums.key_sum / key_count;
    mean.key_covariance += start.weight * turn * keys * turn.transpose();
    weights += start.weight;
  }
  mean.query /= weights;
  mean.key_mean /= weights;
  mean.key_covariance = mean.key_covariance / weights - mean.key_mean * mean.key_mean.transpose();
  return mean;
}

}  // namespace keysieve
