#include "cli/pulling.h"

#include <fmt/format.h>

#include <utility>

#include "cli/interrupt.h"
#include "cli/output.h"

namespace keysieve::cli {

void fetch_missing(const std::string& argument, PullKind kind) {
  if (!needs_pull(argument, kind)) return;
  const InterruptGuard interrupt;
  Progress progress("fetching " + argument, Progress::Unit::bytes);
  PullOptions options;
  options.cancel = InterruptGuard::flag();
  bool said = false;  // only once something comes: a refusal is one line
  options.progress = [&](const PullProgress& at) {
    if (!std::exchange(said, true)) {
      print_note(fmt::format("{} is not on this machine: fetching {}", argument, human_bytes(at.total)));
    }
    progress.update(at.done, at.total);
  };
  const double start = now_seconds();
  const PullResult result = pull(argument, options);
  progress.update(1, 1);
  print_note("fetched " + pull_summary(result, now_seconds() - start));
}

std::string pull_summary(const PullResult& result, double seconds) {
  if (result.bytes_fetched == 0)
    return fmt::format("{}: all {} were here", result.id, human_bytes(result.bytes));
  return fmt::format("{} of {} in {}", human_bytes(result.bytes_fetched), result.id, human_seconds(seconds));
}

}  // namespace keysieve::cli
