#pragma once

#include <Eigen/Core>
#include <cstddef>

namespace keysieve {

// Two maps whose product is the best rank-r stand-in for the identity between a query and a key, as the data
// weighs them: (query * q) . (key * k) approximates scale * (q . k).
struct LowRankMaps {
  Eigen::MatrixXd query;  // [rank, head_dim]
  Eigen::MatrixXd key;    // [rank, head_dim]
  // Of the bilinear form's energy (the variance of the scores, were queries and keys independent), the share
  // that rank r keeps: sum of the first r squared singular values over the sum of all. 1 where all are 0.
  double kept_energy = 1;
};

// The minimiser of E (q^T (I - M) k)^2 over matrices M of rank r, for independent q and k with second moments
// `query_moment` and `key_moment` [head_dim, head_dim], symmetric and positive semidefinite, possibly of
// deficient rank. By Eckart and Young (1936) it is Cq^-1/2 U_r S_r V_r^T Ck^-1/2 with
// U S V^T = Cq^1/2 Ck^1/2. No inverse is ever taken: U^T Cq^-1/2 = S^-1 V^T Ck^1/2 and
// V^T Ck^-1/2 = S^-1 U^T Cq^1/2, so the halves are query = S^-1/2 V_r^T Ck^1/2 and key = S^-1/2 U_r^T Cq^1/2;
// directions the data never shows (S below 1e-10 of the largest) become rows of zeros.
//
// Both halves are then turned by one orthogonal matrix, which changes no score but spreads the large leading
// directions over all r values, so that one int8 scale serves a whole key.
LowRankMaps low_rank_maps(const Eigen::MatrixXd& query_moment, const Eigen::MatrixXd& key_moment, size_t rank,
                          double scale);

// The orthonormal DCT-II of size n: every value at most sqrt(2 / n), for any n. What low_rank_maps turns by.
Eigen::MatrixXd spreading_rotation(size_t n);

}  // namespace keysieve
