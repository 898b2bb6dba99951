#include "team.h"

#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "denormals.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace minidl {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

constexpr auto patience = microseconds(200);  // how long a helper spins without work before it goes
constexpr auto interruption =
    microseconds(400);  // a pause this long, where none was asked for, is the scheduler's
constexpr auto rests =
    std::pair(microseconds(10'000), microseconds(1'280'000));  // how long nobody is asked to help
                                                               // after one: ever longer, up to
constexpr auto settling = microseconds(3'000);  // a new helper may begin on its caller's core, and then moves
constexpr int looks = 64;                       // spins between two looks at the clock

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How often the scheduler has taken the core from this thread.
long interruptions() {
#ifdef RUSAGE_THREAD
  rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
#else
  return 0;
#endif
}

}  // namespace

class Team : public std::enable_shared_from_this<Team> {
 public:
  // Between two steps: has the scheduler taken this thread's core, since there are helpers?
  void look() {
    const long count = interruptions();
    if (count != interruptions_ && helpers_.load(std::memory_order_relaxed) > 0 &&
        Clock::now() - asked_ > settling) {
      rest();
    }
    interruptions_ = count;
  }

  void run(int64_t n, int64_t parts, RangeBody body, void* args) {
    if (helpers_.load(std::memory_order_relaxed) < parts - 1) gather(static_cast<int>(parts) - 1);
    n_ = n, parts_ = parts, body_ = body, args_ = args;
    done_.store(0, std::memory_order_relaxed);
    const uint64_t round = (claim_.load(std::memory_order_relaxed) >> 32) + 1;
    claim_.store(round << 32 | static_cast<uint64_t>(parts) << 16, std::memory_order_release);
    const auto began = Clock::now();
    work(round);
    if (done_.load(std::memory_order_acquire) == parts) return;
    // A helper that has begun needs no longer than this thread did, unless it was interrupted.
    const auto own = Clock::now();
    const auto due = own + (own - began) + interruption;
    bool late = false;
    for (int spins = 1; done_.load(std::memory_order_acquire) != parts; ++spins) {
      relax();
      late = late || (spins % looks == 0 && Clock::now() > due);
    }
    if (late) rest();
  }

 private:
  // Asks for more helpers, unless the machine is too busy for them.
  void gather(int wanted) {
    if (tired_.exchange(false)) rest();
    if (Clock::now() < resting_until_) return;
    asked_ = Clock::now();
    for (int i = helpers_.load(); i < wanted; ++i) {
      ++helpers_;
      at::launch([team = shared_from_this()] { team->help(); });
    }
  }

  void rest() {
    const auto now = Clock::now();
    const bool again = now - resting_until_ < std::max(8 * rest_, microseconds(100'000));
    rest_ = again ? std::min(2 * rest_, rests.second) : std::max(rest_ / 2, rests.first);
    resting_until_ = now + rest_;
  }

  // Parts of the round, one after the other, as long as there are any.
  void work(uint64_t round) {
    for (uint64_t seen = claim_.load(std::memory_order_acquire); seen >> 32 == round;) {
      const auto part = static_cast<int64_t>(seen & 0xffff),
                 parts = static_cast<int64_t>(seen >> 16 & 0xffff);
      if (part >= parts) return;
      if (!claim_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
      // The round cannot end before this part is done, so what describes it stays.
      busy_ = true;
      body_(args_, n_ * part / parts, n_ * (part + 1) / parts);
      busy_ = false;
      done_.fetch_add(1, std::memory_order_release);
      ++seen;
    }
  }

  void help() {
    const FlushDenormals flush;  // as its caller
    uint64_t round = claim_.load(std::memory_order_relaxed) >> 32;
    auto worked = Clock::now(), looked = worked;
    for (int spins = 1;; ++spins) {
      const uint64_t now = claim_.load(std::memory_order_acquire) >> 32;
      if (now != round) {
        round = now;
        work(round);
        worked = looked = Clock::now();
      } else if (spins % looks == 0) {
        const auto time = Clock::now();
        if (time - looked > interruption) tired_ = true;
        if (time - looked > interruption || time - worked > patience) break;
        looked = time;
      }
      relax();
    }
    --helpers_;
  }

  // round << 32 | parts << 16 | the next part: one word, since they must change together.
  alignas(64) std::atomic<uint64_t> claim_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<int> helpers_{0};
  int64_t n_ = 0, parts_ = 0;
  RangeBody body_ = nullptr;
  void* args_ = nullptr;
  std::atomic<bool> tired_{false};               // a helper was interrupted
  Clock::time_point resting_until_{}, asked_{};  // these and the next two: the caller's alone
  microseconds rest_ = rests.first;
  long interruptions_ = 0;

 public:
  static thread_local bool busy_;
  static thread_local Team* current;
};

thread_local bool Team::busy_ = false;
thread_local Team* Team::current = nullptr;

TeamScope::TeamScope(int threads) : outer_(Team::current) {
  if (threads <= 1 || outer_ || Team::busy_ || at::in_parallel_region()) return;
  thread_local const auto team = std::make_shared<Team>();
  team->look();
  Team::current = team.get();
}

TeamScope::~TeamScope() { Team::current = outer_; }

bool in_team_range() { return Team::busy_; }

bool team_ranges(int64_t n, int64_t grain, RangeBody body, void* args) {
  Team* team = Team::current;
  if (!team || Team::busy_) return false;
  const int64_t most = std::min<int64_t>(at::get_num_threads(), 0xffff);
  team->run(n, std::min(most, (n + grain - 1) / grain), body, args);
  return true;
}

}  // namespace minidl
