#include "feed.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "sampler.h"

namespace {

using namespace fastgan;
using Clock = std::chrono::steady_clock;

struct Ticket {
  FeedSlot slot;
  bool ready;
  FeedResult result;
};

// Samples and numbers of one batch; of a thread, used again.
struct Room {
  std::vector<int64_t> samples, numbers[2];
  std::vector<uint8_t> coins[2];
};

// What threads and consumer share. tickets: of the batches from `taken` on; those below `claimed` have a thread.
struct State {
  const FeedPlan plan;
  std::mutex lock;
  std::condition_variable given, made, ended;
  std::deque<Ticket> tickets;
  int64_t taken = 0, claimed = 0, batches = 0;
  double seconds = 0;
  int alive;
  bool stopped = false;

  State(const FeedPlan& plan_, int threads) : plan(plan_), alive(threads) {}

  FeedResult fill(int64_t number, const FeedSlot& slot, Room& room) const;
  void work();
};

FeedResult State::fill(int64_t number, const FeedSlot& slot, Room& room) const {
  const int64_t n = plan.batch;
  room.samples.resize(size_t(n));
  for (int64_t i = 0; i < n; ++i) room.samples[size_t(i)] = plan.first + number * plan.stride + i;
  for (int s = 0; s < plan.number; ++s) {
    const FeedSet& set = plan.sets[s];
    const int from = s == 1 && plan.aligned ? 0 : s;  // whose order it is shown in
    if (from == s) {
      room.numbers[s].resize(size_t(n));
      fastgan_image_order_cpu(set.seed, set.count, set.block, room.samples.data(), n, room.numbers[s].data());
      if (plan.mirror) {
        room.coins[s].resize(size_t(n));
        fastgan_flips_cpu(set.seed, room.samples.data(), n, room.coins[s].data());
      }
    }
    const int64_t* const numbers = room.numbers[from].data();
    if (plan.mirror) memcpy(slot.flipped[s], room.coins[from].data(), size_t(n));
    const uint8_t* const flip = plan.mirrored ? slot.flipped[s] : nullptr;
    const Ingest to = {nullptr, flip, n, set.height, set.width, set.channels, slot.pixels[s]};
    const Gather gather = {set.images, set.count, numbers, set.sums, set.seen, to};
    const int64_t bad = fastgan_gather_cpu(&gather, plan.type);
    if (bad >= 0) return {FeedOutcome::kBadImage, s, numbers[bad]};
  }
  for (int64_t i = 0; plan.labels && i < n; ++i) {
    const int64_t image = room.numbers[0][size_t(i)], label = plan.labels[image];
    if (label < 0 || label >= plan.classes) return {FeedOutcome::kBadLabel, 0, image};
    slot.labels[i] = label;
  }
  return {FeedOutcome::kGood, 0, 0};
}

void State::work() {
  Room room;
  std::unique_lock<std::mutex> held(lock);
  while (true) {
    given.wait(held, [this] { return stopped || claimed - taken < int64_t(tickets.size()); });
    if (stopped) break;
    const int64_t number = claimed++;
    const FeedSlot slot = tickets[size_t(number - taken)].slot;
    held.unlock();
    const auto begin = Clock::now();
    const FeedResult result = fill(number, slot, room);
    const double took = std::chrono::duration<double>(Clock::now() - begin).count();
    held.lock();
    Ticket& ticket = tickets[size_t(number - taken)];  // nobody takes it before it is ready
    ticket.ready = true;
    ticket.result = result;
    ++batches;
    seconds += took;
    if (number == taken) made.notify_one();
  }
  if (--alive == 0) ended.notify_all();
}

}  // namespace

namespace fastgan {

class Feed {
 public:
  std::shared_ptr<State> state;
};

}  // namespace fastgan

Feed* fastgan_feed_open(const FeedPlan* plan, int threads) {
  auto state = std::make_shared<State>(*plan, threads);
  // Signals are for the program's own threads: these inherit a mask that takes none but those of a fault of their own.
  sigset_t none, before;
  sigfillset(&none);
  for (const int fault : {SIGBUS, SIGFPE, SIGILL, SIGSEGV}) sigdelset(&none, fault);
  pthread_sigmask(SIG_SETMASK, &none, &before);
  // Not joined: one that hangs in a read would hang the program, too. Each keeps what it shares.
  for (int i = 0; i < threads; ++i) {
    std::thread thread([state] { state->work(); });
#ifdef __linux__
    pthread_setname_np(thread.native_handle(), "fastgan-feeder");  // for top and debuggers
#endif
    thread.detach();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return new Feed{std::move(state)};
}

void fastgan_feed_give(Feed* feed, const FeedSlot* slot) {
  State& state = *feed->state;
  const std::lock_guard<std::mutex> held(state.lock);
  state.tickets.push_back({*slot, false, {}});
  state.given.notify_one();
}

bool fastgan_feed_take(Feed* feed, double seconds, FeedResult* result) {
  State& state = *feed->state;
  std::unique_lock<std::mutex> held(state.lock);
  const auto ready = [&state] { return !state.tickets.empty() && state.tickets.front().ready; };
  if (!state.made.wait_for(held, std::chrono::duration<double>(seconds), ready)) return false;
  *result = state.tickets.front().result;
  state.tickets.pop_front();
  ++state.taken;
  return true;
}

void fastgan_feed_work(Feed* feed, int64_t* batches, double* seconds) {
  State& state = *feed->state;
  const std::lock_guard<std::mutex> held(state.lock);
  *batches = state.batches;
  *seconds = state.seconds;
}

bool fastgan_feed_stop(Feed* feed, double seconds) {
  State& state = *feed->state;
  std::unique_lock<std::mutex> held(state.lock);
  state.stopped = true;
  state.given.notify_all();
  return state.ended.wait_for(held, std::chrono::duration<double>(seconds), [&state] { return state.alive == 0; });
}

void fastgan_feed_free(Feed* feed) { delete feed; }
