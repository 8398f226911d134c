#include "train/lightning_moments.h"

#include <algorithm>
#include <complex>

namespace keysieve {
namespace {

// Queries of a window whose attention is looked at.
constexpr size_t kFarQueries = 24;

// Every kRowStep-th row of x [tokens, width], from row `first` on.
RowMatrix some_rows(const float* x, size_t tokens, size_t width, size_t first) {
  RowMatrix rows(static_cast<Eigen::Index>((tokens - first + kRowStep - 1) / kRowStep),
                 static_cast<Eigen::Index>(width));
  for (size_t t = first, i = 0; t < tokens; t += kRowStep, ++i)
    rows.row(static_cast<Eigen::Index>(i)) = view_of(x + t * width, 1, width).row(0);
  return rows;
}

void turn_back(RowMatrix& rows, size_t heads, size_t head_dim, size_t first, const RopeTable& rope,
               const Kernels& kernels) {
  std::vector<int32_t> places;
  for (Eigen::Index i = 0; i < rows.rows(); ++i)
    places.push_back(-static_cast<int32_t>(first + static_cast<size_t>(i) * kRowStep));
  RopeTable inverse = rope;
  inverse.scale = 1.0f / rope.scale;
  kernels.rope(rows.data(), static_cast<size_t>(rows.cols()), places.data(), places.size(), heads, head_dim,
               inverse);
}

void make_room(LightningMoments& m, const ModelShape& shape, size_t pairs) {
  const auto hidden = static_cast<Eigen::Index>(shape.hidden);
  const auto width = static_cast<Eigen::Index>((shape.heads + shape.kv_heads) * shape.head_dim);
  const auto kv_heads = static_cast<Eigen::Index>(shape.kv_heads);
  m.hidden_sum = Eigen::VectorXd::Zero(hidden);
  m.hidden = Eigen::MatrixXd::Zero(hidden, hidden);
  m.projection_sum = Eigen::VectorXd::Zero(width);
  m.projections = Eigen::MatrixXd::Zero(hidden, width);
  m.keys.assign(pairs, Eigen::MatrixXcd::Zero(kv_heads, kv_heads));
  m.query_energy =
      Eigen::MatrixXd::Zero(static_cast<Eigen::Index>(shape.heads), static_cast<Eigen::Index>(pairs));
  m.far = Eigen::VectorXd::Zero(static_cast<Eigen::Index>(shape.heads));
}

void add_pairs(LightningMoments& m, const RowMatrix& q, const RowMatrix& k, const ModelShape& shape) {
  const auto dim = static_cast<Eigen::Index>(shape.head_dim);
  const auto pairs = static_cast<Eigen::Index>(m.keys.size());
  const Eigen::MatrixXd squares = q.cast<double>().cwiseAbs2().colwise().sum();
  for (Eigen::Index h = 0; h < m.query_energy.rows(); ++h)
    m.query_energy.row(h) += squares.middleCols(h * dim, pairs) + squares.middleCols(h * dim + pairs, pairs);
  Eigen::MatrixXcd heads(k.rows(), static_cast<Eigen::Index>(shape.kv_heads));
  for (Eigen::Index p = 0; p < pairs; ++p) {
    for (Eigen::Index g = 0; g < heads.cols(); ++g) {
      heads.col(g).real() = k.col(g * dim + p).cast<double>();
      heads.col(g).imag() = k.col(g * dim + p + pairs).cast<double>();
    }
    m.keys[static_cast<size_t>(p)] += heads.transpose() * heads.conjugate();
  }
}

// How much each head reads beyond what is always kept.
void add_far(LightningMoments& m, const LayerView& view, const ModelShape& shape, size_t sinks, size_t recent,
             KernelContext& context) {
  const Teacher teacher(view, shape);
  const std::vector<uint32_t> queries =
      sample_queries(view.tokens, kFarQueries, view.tokens / 4, {}, view.layer);
  std::vector<std::vector<float>> rows(static_cast<size_t>(context.threads.count()),
                                       std::vector<float>(score_stride(view.tokens)));
  std::vector<double> sums(shape.heads * queries.size());
  context.threads.run(sums.size(), [&](size_t i, int worker) {
    std::vector<float>& attention = rows[static_cast<size_t>(worker)];
    const size_t query = queries[i / shape.heads];
    teacher.attention(attention.data(), query, i % shape.heads, context, worker);
    for (size_t s = sinks; s + recent <= query; ++s) sums[i] += static_cast<double>(attention[s]);
  });
  for (size_t i = 0; i < sums.size(); ++i) m.far[static_cast<Eigen::Index>(i % shape.heads)] += sums[i];
  m.far_rows += static_cast<double>(queries.size());
}

}  // namespace

void add_window(LightningMoments& moments, const LayerView& view, const ModelShape& shape,
                const RopeTable& rope, size_t sinks, size_t recent, KernelContext& context) {
  if (moments.rows == 0) make_room(moments, shape, rope.frequency.size());
  const size_t first = std::min(sinks, view.tokens - 1);  // far from all other keys, and always kept
  const Eigen::MatrixXd x = some_rows(view.hidden, view.tokens, shape.hidden, first).cast<double>();
  RowMatrix q = some_rows(view.q, view.tokens, shape.heads * shape.head_dim, first);
  RowMatrix k = some_rows(view.k, view.tokens, shape.kv_heads * shape.head_dim, first);
  turn_back(q, shape.heads, shape.head_dim, first, rope, context.kernels);
  turn_back(k, shape.kv_heads, shape.head_dim, first, rope, context.kernels);
  Eigen::MatrixXd both(x.rows(), q.cols() + k.cols());
  both << q.cast<double>(), k.cast<double>();
  moments.rows += static_cast<double>(x.rows());
  moments.hidden_sum += x.colwise().sum().transpose();
  moments.projection_sum += both.colwise().sum().transpose();
  // Columns shared out, so that sums do not depend on the number of threads.
  constexpr Eigen::Index kColumns = 64;
  const auto parts = [](Eigen::Index columns) {
    return static_cast<size_t>((columns + kColumns - 1) / kColumns);
  };
  context.threads.run(parts(x.cols()) + parts(both.cols()), [&](size_t i, int) {
    const bool own = i < parts(x.cols());
    const Eigen::MatrixXd& columns = own ? x : both;
    Eigen::MatrixXd& sum = own ? moments.hidden : moments.projections;
    const auto begin = static_cast<Eigen::Index>(own ? i : i - parts(x.cols())) * kColumns;
    const Eigen::Index count = std::min(kColumns, columns.cols() - begin);
    const Eigen::Index top = own ? begin : 0;  // of hidden only the lower triangle
    sum.block(top, begin, sum.rows() - top, count).noalias() +=
        x.rightCols(x.cols() - top).transpose() * columns.middleCols(begin, count);
  });
  add_pairs(moments, q, k, shape);
  add_far(moments, view, shape, sinks, recent, context);
}

}  // namespace keysieve
