#pragma once

#include <atomic>

namespace keysieve {

// Whether the one who may stop a run (Ctrl-C, a server's client) has done so. nullptr: nobody can.
inline bool is_cancelled(const std::atomic<bool>* cancel) {
  return cancel != nullptr && cancel->load(std::memory_order_relaxed);
}

}  // namespace keysieve
