#include "train/lightning_maps.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <numeric>
#include <optional>
#include <utility>

#include "keysieve/error.h"
#include "model/config.h"
#include "train/decompositions.h"

namespace keysieve {
namespace {

using Complex = std::complex<double>;

// How much of a pair's mean is left when it is turned to every position.
double mean_turn(double frequency, std::span<const WindowStart> starts, size_t window) {
  Complex sum = 0;
  double weights = 0;
  for (const WindowStart& start : starts) {
    sum += start.weight * std::polar(1.0, frequency * static_cast<double>(start.position));
    weights += start.weight;
  }
  Complex within = 0;
  for (size_t t = 0; t < window; ++t) within += std::polar(1.0, frequency * static_cast<double>(t));
  return std::abs(sum) / weights * std::abs(within) / static_cast<double>(window);
}

// One way to make a pair's key of all KV heads' keys.
struct Mix {
  size_t pair = 0;              // of the model
  Eigen::VectorXcd of_keys;     // b, [kv_heads]
  Eigen::VectorXcd of_queries;  // conj(a), [kv_heads]
  double energy = 0;            // of the logits, that it keeps
};

// Directions of S W, best first; W = diag(weights).
std::vector<Mix> mixes(size_t pair, const Eigen::MatrixXcd& covariance, const Eigen::VectorXd& weights) {
  const Eigenpairs<Eigen::MatrixXcd> of_keys = eigenpairs(covariance);
  const Eigen::VectorXd& values = of_keys.values;  // ascending
  constexpr double kNegligible = 1e-9;
  const double largest = values[values.size() - 1];
  if (!(largest > 0)) return {};
  const Eigen::VectorXd roots = values.cwiseMax(kNegligible * largest).cwiseSqrt();
  const Eigen::MatrixXcd root = of_keys.vectors * roots.asDiagonal();  // root root^H = covariance
  const Eigen::MatrixXcd inverse = of_keys.vectors * roots.cwiseInverse().asDiagonal();
  const Eigen::MatrixXcd kept = root.adjoint() * weights.asDiagonal() * root;
  const Eigenpairs<Eigen::MatrixXcd> energies = eigenpairs(kept);
  std::vector<Mix> found;
  for (Eigen::Index i = values.size(); i-- > 0;) {
    const Eigen::VectorXcd direction = energies.vectors.col(i);
    found.push_back({pair, inverse * direction, (root * direction).conjugate(), energies.values[i]});
  }
  return found;
}

// Least squares from the hidden state, with a constant.
class Regression {
 public:
  explicit Regression(const LightningMoments& m)
      : mean_(m.hidden_sum / m.rows), target_mean_(m.projection_sum / m.rows) {
    Eigen::MatrixXd covariance = Eigen::MatrixXd(m.hidden.selfadjointView<Eigen::Lower>()) / m.rows;
    covariance -= mean_ * mean_.transpose();
    constexpr double kRidge = 1e-6;  // directions the texts never show get no weight
    covariance.diagonal().array() +=
        kRidge * covariance.trace() / static_cast<double>(covariance.rows()) + 1e-30;
    const Eigen::Index targets = m.projections.cols();
    slopes_.resize(covariance.rows(), targets + 1);
    slopes_ << m.projections / m.rows - mean_ * target_mean_.transpose(), mean_;
    slopes_ = solve_positive(covariance, std::move(slopes_));
    const Eigen::VectorXd solved = slopes_.col(targets);
    one_ = solved / (1.0 + mean_.dot(solved));
    const double reached = one_.dot(mean_);
    if (reached > 0) one_ /= reached;
  }
  Eigen::VectorXd slope(Eigen::Index target) const { return slopes_.col(target); }
  double constant(Eigen::Index target) const { return target_mean_[target] - slopes_.col(target).dot(mean_); }
  const Eigen::VectorXd& one() const { return one_; }  // x . one() is about 1

 private:
  Eigen::VectorXd mean_;
  Eigen::VectorXd target_mean_;
  Eigen::MatrixXd slopes_;  // [hidden, targets + 1], the last: what would give the mean
  Eigen::VectorXd one_;
};

// Writes maps row by row.
class Writer {
 public:
  Writer(const Regression& regression, const ModelShape& shape, size_t pairs)
      : regression_(regression),
        dim_(static_cast<Eigen::Index>(shape.head_dim)),
        pairs_(static_cast<Eigen::Index>(pairs)) {}

  // Adds factor * (pair `pair` of the projections' head `head`) to rows `real` and `imaginary`.
  void add(std::vector<float>& rows, std::vector<float>& bias, size_t real, size_t imaginary, size_t head,
           size_t pair, Complex factor) const {
    const Eigen::Index re = static_cast<Eigen::Index>(head) * dim_ + static_cast<Eigen::Index>(pair);
    const Eigen::Index im = re + pairs_;
    add_row(rows, bias, real, re, factor.real());
    add_row(rows, bias, real, im, -factor.imag());
    add_row(rows, bias, imaginary, re, factor.imag());
    add_row(rows, bias, imaginary, im, factor.real());
  }

 private:
  void add_row(std::vector<float>& rows, std::vector<float>& bias, size_t row, Eigen::Index target,
               double factor) const {
    const Eigen::VectorXd slope = factor * regression_.slope(target);
    float* const out = rows.data() + row * static_cast<size_t>(slope.size());
    for (Eigen::Index i = 0; i < slope.size(); ++i) out[i] += static_cast<float>(slope[i]);
    bias[row] += static_cast<float>(factor * regression_.constant(target));
  }
  const Regression& regression_;
  Eigen::Index dim_;
  Eigen::Index pairs_;
};

// Mixes for each pair of the model, and how far their pairs turn within a window.
struct PairMixes {
  std::vector<std::vector<Mix>> mixes;  // [pairs], best first
  std::vector<double> turns;            // [pairs], mean_turn
  double energy = 0;                    // of all pairs and directions
};
PairMixes pair_mixes(const LightningMoments& m, const ModelShape& shape, const RopeTable& rope,
                     std::span<const WindowStart> starts, size_t window) {
  const auto kv_heads = static_cast<Eigen::Index>(shape.kv_heads);
  const auto dim = static_cast<Eigen::Index>(shape.head_dim);
  const auto pairs = static_cast<Eigen::Index>(rope.frequency.size());
  const auto keys = static_cast<Eigen::Index>(shape.heads) * dim;  // where keys begin among the projections
  const Eigen::VectorXd mean = m.projection_sum / m.rows;
  PairMixes found;
  for (Eigen::Index p = 0; p < pairs; ++p) {
    const double turn = mean_turn(rope.frequency[static_cast<size_t>(p)], starts, window);
    Eigen::VectorXcd key_mean(kv_heads);
    Eigen::VectorXd weights = Eigen::VectorXd::Zero(kv_heads);
    for (Eigen::Index g = 0; g < kv_heads; ++g)
      key_mean[g] = turn * Complex(mean[keys + g * dim + p], mean[keys + g * dim + p + pairs]);
    for (Eigen::Index h = 0; h < static_cast<Eigen::Index>(shape.heads); ++h) {
      const Eigen::Index g = h * kv_heads / static_cast<Eigen::Index>(shape.heads);
      weights[g] += m.far[h] / std::max(m.far_rows, 1.0) * m.query_energy(h, p) / m.rows;
    }
    const Eigen::MatrixXcd covariance =
        m.keys[static_cast<size_t>(p)] / m.rows - key_mean * key_mean.adjoint();
    found.energy += (covariance.diagonal().real().array() * weights.array()).sum();
    found.mixes.push_back(mixes(static_cast<size_t>(p), covariance, weights));
    found.turns.push_back(turn);
  }
  return found;
}

// For each pair of the indexer the model's that turns as fast, as far as windows reach.
std::vector<std::optional<size_t>> matching_pairs(const IndexerConfig& config, const RopeTable& rope,
                                                  size_t reach) {
  std::vector<std::optional<size_t>> matches;
  bool any = false;
  RopeConfig own;
  own.theta = config.rope_theta;
  own.rotary_dim = config.rope_dim;
  const RopeTable table = make_rope_table(own);
  for (const double wanted : table.frequency) {
    const auto off = [&](double frequency) { return std::abs(frequency - wanted); };
    const auto nearest = std::min_element(rope.frequency.begin(), rope.frequency.end(),
                                          [&](double a, double b) { return off(a) < off(b); });
    constexpr double kSameAngle = 0.5;  // radians after all positions
    const bool same =
        nearest != rope.frequency.end() &&
        (off(*nearest) < 1e-6 * wanted || off(*nearest) * static_cast<double>(reach) < kSameAngle);
    matches.push_back(same ? std::optional(static_cast<size_t>(nearest - rope.frequency.begin()))
                           : std::nullopt);
    any = any || same;
  }
  if (!any) {
    throw Error(ErrorKind::mismatch, "lightning indexer", fmt::format("{} rotated values", config.rope_dim),
                "pairs that turn as the model's do", "start from random weights");
  }
  return matches;
}

// The model's heads that read farthest, the farthest first.
std::vector<size_t> farthest_heads(const Eigen::VectorXd& far, size_t count) {
  std::vector<size_t> order(static_cast<size_t>(far.size()));
  std::iota(order.begin(), order.end(), size_t{0});
  const auto far_of = [&](size_t head) { return far[static_cast<Eigen::Index>(head)]; };
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return far_of(a) != far_of(b) ? far_of(a) > far_of(b) : a < b; });
  std::vector<size_t> heads;
  for (size_t i = 0; i < count; ++i) heads.push_back(order[i % order.size()]);
  return heads;
}

}  // namespace

LightningMaps lightning_maps(const LightningMoments& moments, const IndexerConfig& config,
                             const ModelShape& shape, const RopeTable& rope,
                             std::span<const WindowStart> starts, size_t window) {
  const size_t pairs = rope.frequency.size();
  const PairMixes all = pair_mixes(moments, shape, rope, starts, window);
  const Regression regression(moments);
  const Writer writer(regression, shape, pairs);
  const std::vector<size_t> heads = farthest_heads(moments.far, config.heads);
  const double scale = static_cast<double>(rope.scale) * static_cast<double>(rope.scale) /
                       std::sqrt(static_cast<double>(shape.head_dim));
  LightningMaps maps;
  IndexerLayerWeights& w = maps.weights;
  w.q.assign(config.heads * config.dim * shape.hidden, 0.0f);
  w.q_bias.assign(config.heads * config.dim, 0.0f);
  w.k.assign(config.dim * shape.hidden, 0.0f);
  w.k_bias.assign(config.dim, 0.0f);
  double kept = 0;
  const auto place = [&](const Mix& mix, size_t real, size_t imaginary, bool asked_for) {
    for (size_t g = 0; g < shape.kv_heads; ++g) {
      writer.add(w.k, w.k_bias, real, imaginary, shape.heads + g, mix.pair,
                 std::conj(mix.of_keys[static_cast<Eigen::Index>(g)]));
    }
    if (!asked_for) return;
    kept += mix.energy;
    for (size_t i = 0; i < heads.size(); ++i) {
      const auto g = static_cast<Eigen::Index>(heads[i] * shape.kv_heads / shape.heads);
      writer.add(w.q, w.q_bias, i * config.dim + real, i * config.dim + imaginary, heads[i], mix.pair,
                 scale * mix.of_queries[g]);
    }
  };
  const size_t half = config.rope_dim / 2;
  const std::vector<std::optional<size_t>> matches =
      matching_pairs(config, rope, starts.back().position + window);
  for (size_t i = 0; i < half; ++i) {
    const std::vector<Mix>& best = all.mixes[matches[i].value_or(i * pairs / half)];
    if (!best.empty()) place(best.front(), i, i + half, matches[i].has_value());
  }
  std::vector<const Mix*> second;
  constexpr double kHardlyTurns = 0.95;
  for (size_t p = 0; p < pairs; ++p) {
    if (all.turns[p] >= kHardlyTurns && all.mixes[p].size() > 1) second.push_back(&all.mixes[p][1]);
  }
  std::sort(second.begin(), second.end(), [](const Mix* a, const Mix* b) {
    return a->energy != b->energy ? a->energy > b->energy : a->pair < b->pair;
  });
  for (size_t i = 0, at = config.rope_dim + 1; i < second.size() && at + 2 <= config.dim; ++i, at += 2)
    place(*second[i], at, at + 1, true);
  if (config.dim > config.rope_dim) w.k_bias[config.rope_dim] = 1.0f;  // where the thresholds are
  const double weight = std::sqrt(static_cast<double>(config.heads) * static_cast<double>(config.dim));
  for (size_t h = 0; h < config.heads; ++h) {
    for (const double value : regression.one()) w.head_weight.push_back(static_cast<float>(weight * value));
  }
  maps.kept_energy = all.energy > 0 ? kept / all.energy : 1.0;
  return maps;
}

IndexerLayerWeights with_heads(const LightningMaps& maps, const IndexerConfig& config,
                               std::span<const float> thresholds, float gain) {
  IndexerLayerWeights weights = maps.weights;
  for (float& value : weights.head_weight) value *= gain;
  if (config.dim > config.rope_dim) {
    for (size_t h = 0; h < config.heads; ++h)
      weights.q_bias[h * config.dim + config.rope_dim] = -thresholds[h];
  }
  return weights;
}

}  // namespace keysieve
