#include "core/threads.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

namespace keysieve {
namespace {

int cores_allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace

Threads::Threads(int count) : count_(count > 0 ? count : cores_allowed()) {}

void Threads::run(size_t tasks, const std::function<void(size_t, int)>& task) const {
  if (count_ == 1 || tasks <= 1) {
    for (size_t i = 0; i < tasks; ++i) task(i, 0);
    return;
  }
#ifdef KMP_VERSION_MAJOR
  // Milliseconds a worker spins after a region before it sleeps: long enough to bridge two regions of one
  // token (tens of microseconds), short enough that an idle chat uses no core.
  kmp_set_blocktime(1);
#endif
  std::atomic<size_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
#pragma omp parallel num_threads(count_)
  {
    const int worker = omp_get_thread_num();
    try {
      for (size_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) task(i, worker);
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next.store(tasks);
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace keysieve
