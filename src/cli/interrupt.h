#pragma once

#include <atomic>

namespace keysieve::cli {

// Ctrl-C (SIGINT) and SIGTERM ask the work to stop cleanly while one of these lives. A second signal during
// the same lifetime ends the program at once, so that nothing can hang for good. Not nested.
class InterruptGuard {
 public:
  InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  ~InterruptGuard();

  // Set by the handler; hand it to the library as `cancel`.
  static const std::atomic<bool>* flag();
  static bool requested() { return flag()->load(std::memory_order_relaxed); }
};

}  // namespace keysieve::cli
