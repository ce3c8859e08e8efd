// Fetching what is read next while something else is in use.

#pragma once

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t LINE = 64;  // bytes that memory gives at once

// Lines of memory, of which each lies so many bytes behind the one before.
struct Area {
    const void* start;
    const int64_t step;

    Area(const void* start, int64_t step = LINE) : start(start), step(step) {}
};

// Two areas that are read next, fetched into the second-level cache from several places in turn, as many of each: a processor
// follows each of them with fetches of its own, and so has more under way than it would for one.
class Fetch {
  public:
    static constexpr int FEW = 4, MOST = 10;  // places

    // Two areas of so many bytes each, spread over about so many calls of `some`; from few places, or from most.
    Fetch(const Area& one, const Area& other, int64_t bytes, int64_t calls, int places = FEW)
        : places(places), num_lines((bytes + places / 2 * LINE - 1) / (places / 2 * LINE)), calls(calls) {
        const int each = places / 2;
        for (int place = 0; place < places; ++place) {
            const Area& area = place < each ? one : other;
            starts[place] = static_cast<const char*>(area.start) + place % each * num_lines * area.step;
            steps[place] = area.step;
        }
    }

    // What is due, as long as there is anything.
    void some() {
        for (due += num_lines; due >= calls && next < num_lines; due -= calls, ++next) {
            for (int place = 0; place < FEW; ++place) fetch(place);
            if (places == FEW) continue;
            for (int place = FEW; place < MOST; ++place) fetch(place);
        }
    }

  private:
    const char* starts[MOST];
    int64_t steps[MOST];
    const int places;
    const int64_t num_lines, calls;
    int64_t next = 0, due = 0;

    void fetch(int place) const { __builtin_prefetch(starts[place] + next * steps[place], 0, 2); }
};

}  // namespace
