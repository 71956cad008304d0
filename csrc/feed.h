// Batches made ahead of their consumer by threads that never ask for Python's lock: which images, in which order and
// mirrored how (sampler.h), copied and turned into values (ingest.h), with their labels.
#pragma once

#include "ingest.h"

namespace fastgan {

// One of the two sets of images. seed: of its order and of its coins; block: as in sampler.h.
struct FeedSet {
  const uint8_t* images;
  int64_t count, block;
  uint64_t seed;
  const uint32_t* sums;  // as in Gather, also `seen`
  uint8_t* seen;
  int64_t height, width, channels;
};

// Batch k has the samples first + k stride to first + k stride + batch - 1.
struct FeedPlan {
  FeedSet sets[2];
  int number;    // of sets
  bool aligned;  // the second set is shown in the order of the first, and mirrored alike
  int64_t first, stride, batch;
  bool mirror;     // coins are thrown, and written to the slot
  bool mirrored;   // and images are flipped as they say
  IngestType type;
  const int64_t* labels;  // of the first set, null without any
  int64_t classes;
};

// Where a batch goes, of each set: pixels [batch, height, width, channels], flipped [batch]; labels [batch].
struct FeedSlot {
  void* pixels[2];
  uint8_t* flipped[2];
  int64_t* labels;
};

enum class FeedOutcome : int { kGood = 0, kBadImage = 1, kBadLabel = 2 };

// How a batch ended; set, image: what was wrong.
struct FeedResult {
  FeedOutcome outcome;
  int set;
  int64_t image;
};

class Feed;

}  // namespace fastgan

extern "C" {
// Starts `threads` threads, which wait for slots. What the plan points to has to stay until they have ended.
fastgan::Feed* fastgan_feed_open(const fastgan::FeedPlan* plan, int threads);

// The next batch goes into `slot`.
void fastgan_feed_give(fastgan::Feed* feed, const fastgan::FeedSlot* slot);

// The outcome of the next batch, whose slot is the consumer's from then on; false where it is not ready within `seconds`.
bool fastgan_feed_take(fastgan::Feed* feed, double seconds, fastgan::FeedResult* result);

// Batches made so far, and seconds of work on them, of all threads together.
void fastgan_feed_work(fastgan::Feed* feed, int64_t* batches, double* seconds);

// Asks the threads to end; whether they have within `seconds`.
bool fastgan_feed_stop(fastgan::Feed* feed, double seconds);

// Forgets the feed; its threads end by themselves.
void fastgan_feed_free(fastgan::Feed* feed);
}
