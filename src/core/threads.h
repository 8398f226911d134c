#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace keysieve {

// The one place that knows how work is spread over cores: a pool whose workers wait in a short spin between
// two regions of one token and sleep after about a millisecond, so that an idle program costs nothing.
class Threads {
 public:
  // `count` 0 means one per core this process may run on (its affinity mask). Workers start with the first
  // region that needs them and end with the object.
  explicit Threads(int count = 0);
  Threads(Threads&&) noexcept;
  Threads& operator=(Threads&&) noexcept;
  ~Threads();
  int count() const { return count_; }

  // Calls task(index, worker) once for each index in [0, tasks), in any order, each worker (0 .. count()-1,
  // the caller is 0) taking the next index when it is free. Returns when all are done. The first exception
  // thrown by a task is rethrown here. While a region runs, another one (from a task or from another thread
  // of the program) runs on its caller alone, as worker 0.
  void run(size_t tasks, const std::function<void(size_t index, int worker)>& task) const;

  // One region of two kinds of tasks: a task of `then` begins when task needs(index) of `first` is done. Who
  // finds no more of `first` goes on with `then` instead of waiting for its slowest: three tasks of `first`
  // on two workers cost as much as one and a half. An exception ends it as in run(); tasks that wait for the
  // one that failed are left out.
  void run_chained(size_t first_tasks, const std::function<void(size_t index, int worker)>& first,
                   size_t then_tasks, const std::function<void(size_t index, int worker)>& then,
                   const std::function<size_t(size_t index)>& needs) const;

 private:
  class Pool;
  int count_;
  std::unique_ptr<Pool> pool_;
};

}  // namespace keysieve
