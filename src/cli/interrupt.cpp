#include "cli/interrupt.h"

#include <csignal>

namespace keysieve::cli {
namespace {

// A signal handler can reach nothing but a global; this is the program's only one.
std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void on_signal(int) { interrupted.store(true, std::memory_order_relaxed); }

void handle(int signal, void (*handler)(int), int flags) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, nullptr);
}

}  // namespace

InterruptGuard::InterruptGuard() {
  interrupted.store(false, std::memory_order_relaxed);
  // SA_RESETHAND: the second signal finds the default action. No SA_RESTART: a blocked read returns.
  handle(SIGINT, on_signal, static_cast<int>(SA_RESETHAND));
  handle(SIGTERM, on_signal, static_cast<int>(SA_RESETHAND));
}

InterruptGuard::~InterruptGuard() {
  handle(SIGINT, SIG_DFL, 0);
  handle(SIGTERM, SIG_DFL, 0);
}

const std::atomic<bool>* InterruptGuard::flag() { return &interrupted; }

}  // namespace keysieve::cli
