#include "core/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace keysieve {
namespace {

// Long enough to bridge the regions of a token (tens of microseconds apart), short enough that an idle chat
// uses no core.
constexpr std::chrono::milliseconds kSpin{1};
constexpr int kPausesBetweenLooks = 256;  // at the clock: some 10 microseconds
// A caller whose workers have not come back after so many pauses (about a millisecond) shares its core with
// one of them: it lets that one run.
constexpr int kPausesBeforeYield = 1 << 14;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int cores_allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace

// A region begins when `region_` changes and ends when every task is done, not when every worker has come:
// one that the system keeps from its core (another program runs there) finds the region closed when it is
// back. It is waited for only inside a task. Counters that different cores write lie on cache lines of their
// own: handing a region over and back takes 0.7 microseconds on two cores, where OpenMP's fork and join
// takes 1.3.
class Threads::Pool {
 public:
  using Task = std::function<void(size_t, int)>;

  explicit Pool(int count) : count_(count), crowded_(count > cores_allowed()) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() {
    stop_.store(true);
    announce();
    for (std::thread& worker : workers_) worker.join();
  }

  bool crowded() const { return crowded_; }

  // False, and nothing done: a region is running.
  bool run(size_t tasks, const Task& task) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    if (workers_.empty()) start();
    task_ = &task;
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    open_.store(true);
    announce();
    take_tasks(0);
    // A worker says that it is inside before it looks whether the region is open; here it is closed before
    // that is read. One of the two sees the other: a task is read by nobody after this loop.
    open_.store(false);
    for (int pauses = 0; inside_.load() != 0; ++pauses) {
      pause();
      if (crowded_ || pauses >= kPausesBeforeYield) std::this_thread::yield();
    }
    const std::exception_ptr failure = std::exchange(failure_, nullptr);
    busy_.store(false, std::memory_order_release);
    if (failure) std::rethrow_exception(failure);
    return true;
  }

 private:
  void start() {
    for (int worker = 1; worker < count_; ++worker) {
      workers_.emplace_back([this, worker] { work(worker); });
    }
  }

  // A new region, or the end.
  void announce() {
    region_.fetch_add(1);
    if (sleeping_.load() > 0) region_.notify_all();
  }

  void take_tasks(int worker) {
    try {
      for (size_t i = next_.fetch_add(1, std::memory_order_relaxed); i < tasks_;
           i = next_.fetch_add(1, std::memory_order_relaxed)) {
        (*task_)(i, worker);
      }
    } catch (...) {
      const std::lock_guard lock(failure_mutex_);
      if (!failure_) failure_ = std::current_exception();
      next_.store(tasks_, std::memory_order_relaxed);
    }
  }

  void work(int worker) {
    uint32_t seen = 0;
    for (;;) {
      await_change(seen);
      seen = region_.load(std::memory_order_acquire);
      if (stop_.load()) return;
      inside_.fetch_add(1);
      if (open_.load()) take_tasks(worker);
      inside_.fetch_sub(1, std::memory_order_release);
    }
  }

  void await_change(uint32_t seen) {
    const auto start = std::chrono::steady_clock::now();
    for (int pauses = 1; region_.load(std::memory_order_acquire) == seen; ++pauses) {
      pause();
      if (crowded_) std::this_thread::yield();
      if (pauses % kPausesBetweenLooks != 0 || std::chrono::steady_clock::now() - start < kSpin) continue;
      sleeping_.fetch_add(1);
      region_.wait(seen);
      sleeping_.fetch_sub(1);
    }
  }

  const int count_;
  const bool crowded_;  // more workers than cores: whoever spins keeps another from working
  std::vector<std::thread> workers_;
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  const Task* task_ = nullptr;  // of the region, like tasks_
  size_t tasks_ = 0;
  alignas(64) std::atomic<uint32_t> region_{0};
  std::atomic<bool> open_{false};
  std::atomic<int> sleeping_{0};
  alignas(64) std::atomic<size_t> next_{0};
  alignas(64) std::atomic<int> inside_{0};  // workers that may be at a task
};

Threads::Threads(int count)
    : count_(count > 0 ? count : cores_allowed()), pool_(std::make_unique<Pool>(count_)) {}
Threads::Threads(Threads&&) noexcept = default;
Threads& Threads::operator=(Threads&&) noexcept = default;
Threads::~Threads() = default;

void Threads::run(size_t tasks, const std::function<void(size_t, int)>& task) const {
  if (count_ > 1 && tasks > 1 && pool_->run(tasks, task)) return;
  for (size_t i = 0; i < tasks; ++i) task(i, 0);
}

// Tasks are taken in their order, so whoever waits here waits for one that a worker is already at.
void Threads::run_chained(size_t first_tasks, const std::function<void(size_t, int)>& first,
                          size_t then_tasks, const std::function<void(size_t, int)>& then,
                          const std::function<size_t(size_t)>& needs) const {
  enum : uint8_t { kOpen, kDone, kFailed };
  std::vector<std::atomic<uint8_t>> states(first_tasks);
  run(first_tasks + then_tasks, [&](size_t task, int worker) {
    if (task < first_tasks) {
      try {
        first(task, worker);
      } catch (...) {
        states[task].store(kFailed, std::memory_order_release);
        throw;
      }
      states[task].store(kDone, std::memory_order_release);
      return;
    }
    const std::atomic<uint8_t>& needed = states[needs(task - first_tasks)];
    for (int pauses = 0; needed.load(std::memory_order_acquire) == kOpen; ++pauses) {
      pause();
      if (pool_->crowded() || pauses >= kPausesBeforeYield) std::this_thread::yield();
    }
    if (needed.load(std::memory_order_acquire) == kDone) then(task - first_tasks, worker);
  });
}

}  // namespace keysieve
