#pragma once

#include <Eigen/Core>

namespace keysieve {

// The few of Eigen's decompositions that training needs, compiled in one place: each is a thousand lines of
// templates, which took a third of this room's compile time where every user compiled its own. Matrices are
// finite.

template <typename Matrix>
struct Eigenpairs {
  Eigen::VectorXd values;  // [n], ascending
  Matrix vectors;          // [n, n], a column each, orthonormal
};

// Of a symmetric (Hermitian) matrix [n, n]; only its lower triangle is read.
Eigenpairs<Eigen::MatrixXd> eigenpairs(const Eigen::MatrixXd& matrix);
Eigenpairs<Eigen::MatrixXcd> eigenpairs(const Eigen::MatrixXcd& matrix);

struct SingularTriplets {
  Eigen::VectorXd values;  // [n], descending
  Eigen::MatrixXd left;    // [n, n], a column each
  Eigen::MatrixXd right;   // [n, n]
};

// Of a square matrix [n, n].
SingularTriplets singular_triplets(const Eigen::MatrixXd& matrix);

// The smallest x [columns] among those that come nearest to matrix [rows, columns] x = target [rows].
Eigen::VectorXd smallest_solution(const Eigen::MatrixXd& matrix, const Eigen::VectorXd& target);

// x [n, targets] of matrix [n, n] x = targets, matrix symmetric and positive definite.
Eigen::MatrixXd solve_positive(const Eigen::MatrixXd& matrix, Eigen::MatrixXd targets);

}  // namespace keysieve
