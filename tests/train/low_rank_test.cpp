#include "train/low_rank.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>

#include "kernels/kernels.h"
#include "keysieve/error.h"
#include "train/decompositions.h"
#include "train/moments.h"
#include "train/reach.h"

namespace keysieve {
namespace {

constexpr Eigen::Index kDim = 12;

Eigen::MatrixXd random_matrix(Eigen::Index rows, Eigen::Index columns, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  Eigen::MatrixXd matrix(rows, columns);
  for (Eigen::Index i = 0; i < rows; ++i) {
    for (Eigen::Index j = 0; j < columns; ++j) matrix(i, j) = normal(random);
  }
  return matrix;
}

// A moment matrix of the given rank whose directions differ in size by about 100.
Eigen::MatrixXd random_moment(Eigen::Index rank, uint64_t seed) {
  Eigen::MatrixXd factor = random_matrix(kDim, rank, seed);
  for (Eigen::Index i = 0; i < rank; ++i) factor.col(i) *= std::pow(0.65, static_cast<double>(i));
  return factor * factor.transpose();
}

Eigen::MatrixXd root(const Eigen::MatrixXd& moment) {
  const Eigenpairs<Eigen::MatrixXd> pairs = eigenpairs(moment);
  // Not operatorSqrt: rounding leaves deficient moments with eigenvalues of -1e-15.
  return pairs.vectors * pairs.values.cwiseMax(0.0).cwiseSqrt().asDiagonal() * pairs.vectors.transpose();
}

// E (q^T (scale I - form) k)^2 for independent q and k: the squared norm of Cq^1/2 (scale I - form) Ck^1/2.
double loss(const Eigen::MatrixXd& query, const Eigen::MatrixXd& key, const Eigen::MatrixXd& form,
            double scale) {
  const Eigen::MatrixXd identity = Eigen::MatrixXd::Identity(kDim, kDim);
  return (root(query) * (scale * identity - form) * root(key)).squaredNorm();
}

TEST(LowRank, FullRankIsTheProductItself) {
  const LowRankMaps maps = low_rank_maps(random_moment(kDim, 1), random_moment(kDim, 2), kDim, 0.125);
  const Eigen::MatrixXd form = maps.query.transpose() * maps.key;
  EXPECT_LT((form - 0.125 * Eigen::MatrixXd::Identity(kDim, kDim)).cwiseAbs().maxCoeff(), 1e-9);
  EXPECT_DOUBLE_EQ(maps.kept_energy, 1.0);
}

TEST(LowRank, ReducedRankLosesExactlyTheTailAndNoOtherFormDoesBetter) {
  const Eigen::MatrixXd query = random_moment(kDim, 3);
  const Eigen::MatrixXd key = random_moment(kDim, 4);
  const Eigen::VectorXd values = singular_triplets(root(query) * root(key)).values;
  for (const Eigen::Index rank : {1, 3, 6, 11}) {
    const LowRankMaps maps = low_rank_maps(query, key, static_cast<size_t>(rank), 1.0);
    const double best = loss(query, key, maps.query.transpose() * maps.key, 1.0);
    const double tail = values.tail(kDim - rank).squaredNorm();
    EXPECT_NEAR(best, tail, 1e-9 * values.squaredNorm());
    EXPECT_NEAR(maps.kept_energy, 1 - tail / values.squaredNorm(), 1e-12);
    // Truncating the plain identity, random maps, and small changes of the optimum are all worse.
    Eigen::MatrixXd truncated = Eigen::MatrixXd::Zero(kDim, kDim);
    truncated.topLeftCorner(rank, rank).setIdentity();
    EXPECT_GT(loss(query, key, truncated, 1.0), best);
    for (uint64_t seed = 10; seed < 30; ++seed) {
      const Eigen::MatrixXd change = random_matrix(rank, kDim, seed);
      EXPECT_GT(loss(query, key, change.transpose() * random_matrix(rank, kDim, seed + 100), 1.0), best);
      EXPECT_GT(loss(query, key, (maps.query + 1e-3 * change).transpose() * maps.key, 1.0), best);
      EXPECT_GT(loss(query, key, maps.query.transpose() * (maps.key + 1e-3 * change), 1.0), best);
    }
  }
}

TEST(LowRank, DeficientMomentsAreExactWhereTheDataIs) {
  const Eigen::MatrixXd query = random_moment(3, 5);
  const Eigen::MatrixXd key = random_moment(5, 6);
  const LowRankMaps maps = low_rank_maps(query, key, 8, 1.0);
  EXPECT_TRUE(maps.query.allFinite());
  EXPECT_TRUE(maps.key.allFinite());
  EXPECT_LT(loss(query, key, maps.query.transpose() * maps.key, 1.0), 1e-10 * query.norm() * key.norm());
}

TEST(LowRank, NoDataGivesZeros) {
  const Eigen::MatrixXd none = Eigen::MatrixXd::Zero(kDim, kDim);
  const LowRankMaps maps = low_rank_maps(none, random_moment(kDim, 7), 4, 1.0);
  EXPECT_EQ(maps.query.cwiseAbs().maxCoeff(), 0.0);
  EXPECT_EQ(maps.key.cwiseAbs().maxCoeff(), 0.0);
  EXPECT_EQ(maps.kept_energy, 1.0);
}

TEST(LowRank, TheRotationIsOrthogonalAndEven) {
  for (const size_t n : {1, 2, 5, 32}) {
    const Eigen::MatrixXd rotation = spreading_rotation(n);
    const auto size = static_cast<Eigen::Index>(n);
    EXPECT_LT((rotation * rotation.transpose() - Eigen::MatrixXd::Identity(size, size)).norm(), 1e-12);
    EXPECT_LE(rotation.cwiseAbs().maxCoeff(), std::sqrt(2.0 / static_cast<double>(n)) + 1e-12);
  }
}

constexpr std::array<WindowStart, 1> kOnce{{{0}}};

TEST(Moments, AreThoseOfAllPositionsThatCount) {
  constexpr size_t kHeads = 4;
  constexpr size_t kKvHeads = 2;
  constexpr size_t kHeadDim = 3;
  constexpr size_t kTokens = 150;
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> q(kTokens * kHeads * kHeadDim);
  std::vector<float> k(kTokens * kKvHeads * kHeadDim);
  for (float& value : q) value = normal(random);
  // Keys as biased models have them: sums of squares in fp32 would lose this spread.
  for (float& value : k) value = 211.0f + 0.01f * normal(random);

  const Threads threads(2);
  MomentCollector moments(2, kHeads, kKvHeads, kHeadDim, threads);
  for (const auto& [first, count] : std::vector<std::pair<size_t, size_t>>{{0, 3}, {3, 90}, {93, 57}}) {
    moments.add({1, first, count}, q.data() + first * kHeads * kHeadDim,
                k.data() + first * kKvHeads * kHeadDim);
  }
  EXPECT_EQ(moments.queries(), 0u);  // of layer 0, which saw nothing

  for (size_t group = 0; group < kKvHeads; ++group) {
    Eigen::MatrixXd query = Eigen::MatrixXd::Zero(kHeadDim, kHeadDim);
    Eigen::MatrixXd keys(kTokens - MomentCollector::kFirstKey, kHeadDim);
    double count = 0;
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t h = 2 * group; t >= MomentCollector::kFirstQuery && h < 2 * group + 2; ++h) {
        const Eigen::Vector3d row =
            Eigen::Map<const Eigen::Vector3f>(q.data() + (t * kHeads + h) * kHeadDim).cast<double>();
        query += row * row.transpose();
        ++count;
      }
      if (t >= MomentCollector::kFirstKey) {
        keys.row(static_cast<Eigen::Index>(t - MomentCollector::kFirstKey)) =
            Eigen::Map<const Eigen::RowVector3f>(k.data() + (t * kKvHeads + group) * kHeadDim).cast<double>();
      }
    }
    const Eigen::MatrixXd centred = keys.rowwise() - keys.colwise().mean();
    const Eigen::MatrixXd covariance = centred.transpose() * centred / static_cast<double>(keys.rows());
    const MomentCollector::Moments seen = moments.moments(1, group, {}, kOnce);
    EXPECT_LT((seen.query - query / count).norm(), 1e-12);
    EXPECT_LT((seen.key_mean - keys.colwise().mean().transpose()).norm(), 1e-9);
    EXPECT_LT((seen.key_covariance - covariance).norm(), 1e-6 * covariance.norm());
  }
}

TEST(Moments, OfOtherStartsAreThoseOfRotatedWindows) {
  constexpr size_t kHeadDim = 6;
  constexpr size_t kTokens = 100;
  const RopeTable rope{.frequency = {1.0, 0.01}};  // the last two values of a head are not rotated
  std::mt19937_64 random(2);
  std::normal_distribution<float> normal(1.0f);
  std::vector<float> q(kTokens * kHeadDim), k(kTokens * kHeadDim);
  for (float& value : q) value = normal(random);
  for (float& value : k) value = normal(random);

  const Threads threads(1);
  MomentCollector once(1, 1, 1, kHeadDim, threads), at_each(1, 1, 1, kHeadDim, threads);
  once.add({0, 0, kTokens}, q.data(), k.data());
  const std::array<WindowStart, 3> starts{{{0, 1.5}, {150, 1.0}, {4000, 0.5}}};
  const auto kernels = make_kernels("reference");
  for (const WindowStart& start : starts) {
    const std::vector<int32_t> positions(kTokens, static_cast<int32_t>(start.position));
    std::vector<float> turned_q = q, turned_k = k;
    kernels->rope(turned_q.data(), kHeadDim, positions.data(), kTokens, 1, kHeadDim, rope);
    kernels->rope(turned_k.data(), kHeadDim, positions.data(), kTokens, 1, kHeadDim, rope);
    for (int times = 0; times < static_cast<int>(2 * start.weight); ++times) {
      at_each.add({0, 0, kTokens}, turned_q.data(), turned_k.data());
    }
  }
  const MomentCollector::Moments spread = once.moments(0, 0, rope, starts);
  const MomentCollector::Moments expected = at_each.moments(0, 0, rope, kOnce);
  EXPECT_LT((spread.query - expected.query).norm(), 1e-5);
  EXPECT_LT((spread.key_mean - expected.key_mean).norm(), 1e-5);
  EXPECT_LT((spread.key_covariance - expected.key_covariance).norm(), 1e-5);
  // Which is not what the window alone shows.
  const MomentCollector::Moments alone = once.moments(0, 0, rope, kOnce);
  EXPECT_GT((spread.key_covariance - alone.key_covariance).norm(), 0.1);
}

TEST(Reach, WindowsStartOneAfterAnotherAndFarOnesCountLess) {
  const std::vector<WindowStart> starts = window_starts(100, 399);
  ASSERT_EQ(starts.size(), 3u);  // a fourth would end at 400
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(starts[i].position, 100 * i);
    EXPECT_DOUBLE_EQ(starts[i].weight, 1.0 / static_cast<double>(i + 1));
  }
  EXPECT_EQ(window_starts(100, 400).size(), 4u);
  EXPECT_EQ(window_starts(100, 0).size(), 1u);
  EXPECT_EQ(window_starts(0, 1000).size(), 1u);

  std::array<int, 3> drawn{};
  for (uint64_t seed = 0; seed < 1100; ++seed) ++drawn.at(draw_start(starts, seed) / 100);
  EXPECT_NEAR(drawn[0], 600, 60);  // of weights 6 to 3 to 2
  EXPECT_NEAR(drawn[1], 300, 60);
  EXPECT_NEAR(drawn[2], 200, 60);

  EXPECT_EQ(reach_of(0, 8192), 8192u);
  EXPECT_EQ(reach_of(0, 131072), kMostReach);
  EXPECT_EQ(reach_of(100000, 131072), 100000u);
  EXPECT_THROW(reach_of(8193, 8192), Error);
}

}  // namespace
}  // namespace keysieve
