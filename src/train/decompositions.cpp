#include "train/decompositions.h"

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>
#include <Eigen/SVD>

namespace keysieve {
namespace {

template <typename Matrix>
Eigenpairs<Matrix> solve_eigen(const Matrix& matrix) {
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(matrix);
  return {solver.eigenvalues(), solver.eigenvectors()};
}

}  // namespace

Eigenpairs<Eigen::MatrixXd> eigenpairs(const Eigen::MatrixXd& matrix) { return solve_eigen(matrix); }
Eigenpairs<Eigen::MatrixXcd> eigenpairs(const Eigen::MatrixXcd& matrix) { return solve_eigen(matrix); }

SingularTriplets singular_triplets(const Eigen::MatrixXd& matrix) {
  const Eigen::JacobiSVD<Eigen::MatrixXd> svd(matrix, Eigen::ComputeFullU | Eigen::ComputeFullV);
  return {svd.singularValues(), svd.matrixU(), svd.matrixV()};
}

Eigen::VectorXd smallest_solution(const Eigen::MatrixXd& matrix, const Eigen::VectorXd& target) {
  const Eigen::JacobiSVD<Eigen::MatrixXd> svd(matrix, Eigen::ComputeThinU | Eigen::ComputeThinV);
  return svd.solve(target);
}

Eigen::MatrixXd solve_positive(const Eigen::MatrixXd& matrix, Eigen::MatrixXd targets) {
  matrix.llt().solveInPlace(targets);
  return targets;
}

}  // namespace keysieve
