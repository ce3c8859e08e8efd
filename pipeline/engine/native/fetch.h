// Fetching what is read next while something else is in use.

#pragma once

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t LINE = 64;  // bytes that memory gives at once

// Two areas that are read next, fetched into the second-level cache from four places in turn, the halves of each: a processor
// follows each of the four with fetches of its own, and so has more under way than it would for one.
class Fetch {
  public:
    // Two areas of so many bytes each.
    Fetch(const void* one, const void* other, int64_t bytes) : num_lines((bytes + 2 * LINE - 1) / (2 * LINE)) {
        for (int stream = 0; stream < STREAMS; ++stream) {
            starts[stream] = static_cast<const char*>(stream < 2 ? one : other) + stream % 2 * num_lines * LINE;
        }
    }

    // How often to take a line of each place in each of so many steps, for so many bytes in all.
    static int64_t rounds(int64_t bytes, int64_t steps) {
        return (bytes + STREAMS * LINE * steps - 1) / (STREAMS * LINE * steps);
    }

    // So many lines more of each place, as long as there are any.
    void some(int64_t count) {
        for (const int64_t end = std::min(next + count, num_lines); next < end; ++next) {
            for (const char* start : starts) __builtin_prefetch(start + next * LINE, 0, 2);
        }
    }

    static constexpr int STREAMS = 4;

  private:
    const char* starts[STREAMS];
    const int64_t num_lines;
    int64_t next = 0;
};

}  // namespace
