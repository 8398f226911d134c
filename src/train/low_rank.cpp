#include "train/low_rank.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "train/decompositions.h"

namespace keysieve {
namespace {

// The symmetric square root; rounding's negative eigenvalues count as 0.
Eigen::MatrixXd square_root(const Eigen::MatrixXd& matrix) {
  const Eigenpairs<Eigen::MatrixXd> pairs = eigenpairs(matrix);
  const Eigen::VectorXd roots = pairs.values.cwiseMax(0.0).cwiseSqrt();
  return pairs.vectors * roots.asDiagonal() * pairs.vectors.transpose();
}

}  // namespace

Eigen::MatrixXd spreading_rotation(size_t n) {
  const auto size = static_cast<Eigen::Index>(n);
  const auto count = static_cast<double>(n);
  Eigen::MatrixXd rotation(size, size);
  for (Eigen::Index i = 0; i < size; ++i) {
    const double norm = std::sqrt((i == 0 ? 1.0 : 2.0) / count);
    for (Eigen::Index j = 0; j < size; ++j) {
      rotation(i, j) =
          norm * std::cos(std::numbers::pi * (static_cast<double>(j) + 0.5) * static_cast<double>(i) / count);
    }
  }
  return rotation;
}

LowRankMaps low_rank_maps(const Eigen::MatrixXd& query_moment, const Eigen::MatrixXd& key_moment, size_t rank,
                          double scale) {
  constexpr double kNegligible = 1e-10;
  const Eigen::MatrixXd query_root = square_root(query_moment);
  const Eigen::MatrixXd key_root = square_root(key_moment);
  const SingularTriplets svd = singular_triplets(query_root * key_root);
  const Eigen::VectorXd& values = svd.values;
  const auto kept = std::min(static_cast<Eigen::Index>(rank), values.size());
  Eigen::VectorXd inverse_roots = Eigen::VectorXd::Zero(kept);
  for (Eigen::Index i = 0; i < kept; ++i) {
    if (values[i] > kNegligible * values[0]) inverse_roots[i] = 1.0 / std::sqrt(values[i]);
  }
  LowRankMaps maps;
  const auto rows = static_cast<Eigen::Index>(rank);
  maps.query = Eigen::MatrixXd::Zero(rows, values.size());
  maps.key = Eigen::MatrixXd::Zero(rows, values.size());
  maps.query.topRows(kept) =
      scale * inverse_roots.asDiagonal() * svd.right.leftCols(kept).transpose() * key_root;
  maps.key.topRows(kept) = inverse_roots.asDiagonal() * svd.left.leftCols(kept).transpose() * query_root;
  const Eigen::MatrixXd spread = spreading_rotation(rank).transpose();
  maps.query = spread * maps.query;
  maps.key = spread * maps.key;
  const double all = values.squaredNorm();
  maps.kept_energy = all > 0 ? values.head(kept).squaredNorm() / all : 1.0;
  return maps;
}

}  // namespace keysieve
