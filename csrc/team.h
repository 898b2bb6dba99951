// Threads that stay at hand for a while, so that handing them work takes a fraction of a microsecond: for a
// training step, which is a row of kernels that take microseconds each.
//
// A helper is a task of torch's inter-op pool, so threads are torch's here as everywhere. Nobody waits for a helper
// that has not begun: the caller takes what parts are left itself. So a busy machine costs no more than the part that a
// helper has in hand when it is interrupted; and once that has happened, the helper goes away for a while.
#pragma once
#include <cstdint>
#include <memory>

namespace minidl {

using RangeBody = void (*)(void* args, int64_t begin, int64_t end);

class Team;

// While it lives, the parallel_ranges of this thread go to a team of up to `threads`, this one included.
class TeamScope {
 public:
  explicit TeamScope(int threads);
  ~TeamScope();
  TeamScope(const TeamScope&) = delete;
  TeamScope& operator=(const TeamScope&) = delete;

 private:
  Team* outer_;
};

// parallel_ranges' part of it. False where this thread has no team.
bool team_ranges(int64_t n, int64_t grain, RangeBody body, void* args);
// Whether this thread is at work on a part of a range, so that another range would not be split.
bool in_team_range();

}  // namespace minidl
