#include "train/losses.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

namespace keysieve {
namespace {

using Row = Eigen::Map<Eigen::ArrayXf>;
using ConstRow = Eigen::Map<const Eigen::ArrayXf>;

// Below this a probability is taken for it: keeps ratios finite where an exponential was flushed to zero.
constexpr float kLeast = 1e-30f;

// The keys chosen by score: [begin, end). The others are always read.
struct Range {
  size_t begin;
  size_t end;
  size_t count() const { return end - begin; }
};
Range by_score(size_t keys, const LossOptions& options) {
  const size_t begin = std::min(options.sinks, keys);
  const size_t end = std::max(begin, keys - std::min(options.recent, keys));
  return {begin, end};
}

float kept_mass(ConstRow row, Range range) {
  return row.head(static_cast<Eigen::Index>(range.begin)).sum() +
         row.tail(row.size() - static_cast<Eigen::Index>(range.end)).sum();
}

ConstRow part(const float* values, Range range) {
  return {values + range.begin, static_cast<Eigen::Index>(range.count())};
}

// KL with the kept keys as one outcome; ratio [keys] gets T / P of each key's outcome.
double bucketed_divergence(float* ratio, const float* teacher, const float* student, size_t keys,
                           Range range) {
  const auto size = static_cast<Eigen::Index>(keys);
  const float teacher_kept = std::max(kept_mass(ConstRow(teacher, size), range), kLeast);
  const float student_kept = std::max(kept_mass(ConstRow(student, size), range), kLeast);
  Row all(ratio, size);
  Row chosen(ratio + range.begin, static_cast<Eigen::Index>(range.count()));
  all.setConstant(teacher_kept / student_kept);
  chosen = part(teacher, range) / part(student, range).max(kLeast);
  const float far = (part(teacher, range) * chosen.max(kLeast).log()).sum();
  return static_cast<double>(far) +
         static_cast<double>(teacher_kept) * std::log(static_cast<double>(teacher_kept / student_kept));
}

double mass_of(const float* values, std::span<const uint32_t> keys) {
  double sum = 0;
  for (const uint32_t key : keys) sum += static_cast<double>(values[key]);
  return sum;
}

struct CutTerm {
  float last;  // score of the last key selected
  size_t last_key;
};

CutTerm last_selected(const float* student, Range range, std::span<const uint32_t> chosen) {
  CutTerm term{INFINITY, 0};
  for (const uint32_t key : chosen) {
    const float score = student[range.begin + key];
    if (score < term.last) term = {score, range.begin + key};
  }
  return term;
}

}  // namespace

void LossMeasures::add(const LossMeasures& other) {
  rows += other.rows;
  loss += other.loss;
  divergence += other.divergence;
  head_divergence += other.head_divergence;
  support += other.support;
  cut += other.cut;
  captured += other.captured;
  oracle += other.oracle;
  decisive += other.decisive;
  found += other.found;
}

float focus_of(const LossRow& row, const LossOptions& options) {
  if (options.focus <= 0) return 1.0f;
  const Range range = by_score(row.keys, options);
  const float far = std::max(0.0f, part(row.teacher, range).sum());
  return std::pow(far, options.focus);
}

void distribution_loss(float* gradient, const LossRow& row, const LossOptions& options, float weight,
                       SelectionScratch& working, KernelContext& context, int worker,
                       LossMeasures& measures) {
  const Range range = by_score(row.keys, options);
  const auto size = static_cast<Eigen::Index>(row.keys);
  const float focus = focus_of(row, options);
  const double divergence = bucketed_divergence(gradient, row.teacher, row.student, row.keys, range);
  Row(gradient, size) *= -options.divergence * weight * focus;
  double loss = static_cast<double>(options.divergence) * divergence;
  measures.rows += 1;
  measures.divergence += divergence;

  const size_t kept = row.keys - range.count();
  const size_t room = options.budget > kept ? options.budget - kept : 0;
  if (room >= range.count()) {  // everything is read: nothing to select
    measures.captured += 1;
    measures.oracle += 1;
  } else {
    working.best.resize(room);
    working.chosen.resize(room);
    context.kernels.top_k(working.best.data(), row.teacher + range.begin, range.count(), room,
                          context.scratch, worker);
    context.kernels.top_k(working.chosen.data(), row.student + range.begin, range.count(), room,
                          context.scratch, worker);
    const auto kept_teacher = static_cast<double>(kept_mass(ConstRow(row.teacher, size), range));
    measures.oracle += kept_teacher + mass_of(row.teacher + range.begin, working.best);
    measures.captured += kept_teacher + mass_of(row.teacher + range.begin, working.chosen);

    const float supported = std::max(kept_mass(ConstRow(row.student, size), range) +
                                         static_cast<float>(mass_of(row.student + range.begin, working.best)),
                                     kLeast);
    measures.support -= std::log(static_cast<double>(supported));
    loss -= static_cast<double>(options.support) * std::log(static_cast<double>(supported));
    const float pull = options.support * weight * focus / supported;
    for (const uint32_t key : working.best) gradient[range.begin + key] -= pull;
    for (size_t s = 0; s < range.begin; ++s) gradient[s] -= pull;
    for (size_t s = range.end; s < row.keys; ++s) gradient[s] -= pull;

    const CutTerm term = last_selected(row.student, range, working.chosen);
    const float last = std::max(term.last, kLeast);
    double cut = 0;
    for (const uint32_t key : working.best) {
      const size_t s = range.begin + key;
      if (row.peak[s] < options.decisive) continue;
      measures.decisive += 1;
      // Ties go to the later key, as the selection itself decides them.
      measures.found +=
          row.student[s] > term.last || (row.student[s] == term.last && s >= term.last_key) ? 1 : 0;
      const float own = std::max(row.student[s], kLeast);
      const float lack = options.margin + std::log(last / own);
      if (room == 0 || lack <= 0) continue;
      cut += static_cast<double>(row.peak[s] * lack);
      const float push = options.cut * weight * focus * row.peak[s];
      gradient[s] -= push / own;
      gradient[term.last_key] += push / last;
    }
    measures.cut += cut;
    loss += static_cast<double>(options.cut) * cut;
  }
  measures.loss += loss * static_cast<double>(focus);
}

double head_divergence(float* gradient, const float* teacher, const float* student, size_t keys,
                       const LossOptions& options, float weight) {
  const Range range = by_score(keys, options);
  const auto size = static_cast<Eigen::Index>(keys);
  const auto far = static_cast<Eigen::Index>(range.count());
  const float teacher_kept = std::max(kept_mass(ConstRow(teacher, size), range), kLeast);
  const float student_kept = std::max(kept_mass(ConstRow(student, size), range), kLeast);
  const float kept_step = weight * (1 - teacher_kept / student_kept);
  Row out(gradient, size);
  const ConstRow p(student, size);
  // d KL / d logit = p - t for a key of its own, p (1 - T / P) for a member of the outcome of kept keys.
  out.head(static_cast<Eigen::Index>(range.begin)) +=
      kept_step * p.head(static_cast<Eigen::Index>(range.begin));
  out.tail(size - static_cast<Eigen::Index>(range.end)) +=
      kept_step * p.tail(size - static_cast<Eigen::Index>(range.end));
  out.segment(static_cast<Eigen::Index>(range.begin), far) +=
      weight * (part(student, range) - part(teacher, range));
  const float sum =
      (part(teacher, range) * (part(teacher, range).max(kLeast) / part(student, range).max(kLeast)).log())
          .sum();
  return static_cast<double>(sum) +
         static_cast<double>(teacher_kept) * std::log(static_cast<double>(teacher_kept / student_kept));
}

void softmax(float* row, size_t keys) {
  Row values(row, static_cast<Eigen::Index>(keys));
  values = (values - values.maxCoeff()).exp();
  values *= 1.0f / values.sum();
}

void softmax_backward(float* out, const float* probabilities, const float* gradient, size_t keys) {
  const auto size = static_cast<Eigen::Index>(keys);
  const ConstRow p(probabilities, size);
  const ConstRow g(gradient, size);
  Row(out, size) = p * (g - (p * g).sum());
}

}  // namespace keysieve
