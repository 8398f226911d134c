#include "train/decompositions.h"

#include <gtest/gtest.h>

#include <complex>

namespace keysieve {
namespace {

double largest(const Eigen::MatrixXcd& matrix) { return matrix.cwiseAbs().maxCoeff(); }

// Symmetric, with eigenvalues of both signs.
Eigen::MatrixXd symmetric_matrix() {
  Eigen::MatrixXd matrix(4, 4);
  matrix << 2, -1, 0.5, 3, -1, 1, 4, 0, 0.5, 4, -2, 1, 3, 0, 1, 0.25;
  return matrix;
}

template <typename Matrix>
void expect_pairs_of(const Matrix& matrix) {
  const Eigenpairs<Matrix> pairs = eigenpairs(matrix);
  for (Eigen::Index i = 1; i < pairs.values.size(); ++i) EXPECT_LE(pairs.values[i - 1], pairs.values[i]);
  EXPECT_LT(largest(matrix * pairs.vectors - pairs.vectors * pairs.values.asDiagonal()), 1e-12);
  const Matrix identity = Matrix::Identity(matrix.rows(), matrix.rows());
  EXPECT_LT(largest(pairs.vectors.adjoint() * pairs.vectors - identity), 1e-12);
}

TEST(Decompositions, EigenpairsOfRealAndComplexMatrices) {
  expect_pairs_of(symmetric_matrix());
  Eigen::MatrixXcd hermitian = symmetric_matrix().cast<std::complex<double>>();
  hermitian(1, 0) += std::complex<double>(0, 2);
  hermitian(0, 1) = std::conj(hermitian(1, 0));
  expect_pairs_of(hermitian);
}

TEST(Decompositions, SingularTripletsGiveTheMatrixBack) {
  Eigen::MatrixXd matrix = symmetric_matrix();
  matrix(0, 3) = 7;
  const SingularTriplets svd = singular_triplets(matrix);
  for (Eigen::Index i = 1; i < svd.values.size(); ++i) EXPECT_GE(svd.values[i - 1], svd.values[i]);
  EXPECT_LT(largest(svd.left * svd.values.asDiagonal() * svd.right.transpose() - matrix), 1e-12);
  const Eigen::MatrixXd identity = Eigen::MatrixXd::Identity(4, 4);
  EXPECT_LT(largest(svd.left.transpose() * svd.left - identity), 1e-12);
  EXPECT_LT(largest(svd.right.transpose() * svd.right - identity), 1e-12);
}

TEST(Decompositions, TheSmallestSolutionOfTooFewAndOfRepeatedEquations) {
  Eigen::MatrixXd matrix(2, 3);
  matrix << 1, 1, 0, 2, 2, 0;  // one equation, said twice
  const Eigen::VectorXd x = smallest_solution(matrix, Eigen::Vector2d(2, 4));
  EXPECT_LT(largest(x - Eigen::Vector3d(1, 1, 0)), 1e-12);
}

TEST(Decompositions, PositiveSystemsAreSolvedForAllTargets) {
  const Eigen::MatrixXd root = symmetric_matrix();
  const Eigen::MatrixXd matrix = root * root.transpose() + Eigen::MatrixXd::Identity(4, 4);
  Eigen::MatrixXd targets(4, 2);
  targets << 1, 0, 2, -1, 3, 5, 4, 0.5;
  EXPECT_LT(largest(matrix * solve_positive(matrix, targets) - targets), 1e-11);
}

}  // namespace
}  // namespace keysieve
