#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "indexer/float_matrix.h"
#include "indexer/layer_query.h"
#include "kernels/kernels.h"

namespace keysieve {

// Rows of fp32 numbers as the rest of the program lays them out, with Eigen's arithmetic for small products.
using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using MatrixView = Eigen::Map<RowMatrix>;
using ConstMatrixView = Eigen::Map<const RowMatrix>;

inline MatrixView view_of(float* values, size_t rows, size_t columns) {
  return {values, static_cast<Eigen::Index>(rows), static_cast<Eigen::Index>(columns)};
}
inline ConstMatrixView view_of(const float* values, size_t rows, size_t columns) {
  return {values, static_cast<Eigen::Index>(rows), static_cast<Eigen::Index>(columns)};
}

// values [rows, columns] packed for Kernels::matmul: for the large products, which the kernels do many times
// faster than the portable code Eigen is compiled to.
inline std::unique_ptr<PackedMatrix> pack_rows(std::span<const float> values, size_t rows,
                                               const KernelContext& context) {
  return context.kernels.pack(FloatMatrix(values, rows, DType::f32), {}, context.threads);
}

// out [rows, weight rows] = x [rows, weight columns] * weight^T
inline void multiply(float* out, const float* x, size_t rows, const PackedMatrix& weight,
                     KernelContext& context) {
  const MatmulJob job{out, weight.rows(), &weight};
  context.kernels.matmul({&job, 1}, x, rows, context.scratch, context.threads);
}

}  // namespace keysieve
