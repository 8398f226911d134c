#pragma once

#include <cstddef>
#include <functional>

namespace keysieve {

// The one place that knows how work is spread over cores (OpenMP underneath). Idle workers sleep after about
// a millisecond instead of spinning, so a waiting process costs nothing.
class Threads {
 public:
  // `count` 0 means one per core this process may run on (its affinity mask).
  explicit Threads(int count = 0);
  int count() const { return count_; }

  // Calls task(index, worker) once for each index in [0, tasks), in any order, each worker (0 .. count()-1)
  // taking the next index when it is free. Returns when all are done. The first exception thrown by a task is
  // rethrown here. Not re-entrant: a task must not call run() itself.
  void run(size_t tasks, const std::function<void(size_t index, int worker)>& task) const;

 private:
  int count_;
};

}  // namespace keysieve
