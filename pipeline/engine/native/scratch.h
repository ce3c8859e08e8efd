// Memory that kernels work in.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

// Bytes that grow as they are asked for and are kept for the next call; what they held is lost then. In huge pages where the
// system has them.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() { std::free(start); }

    template <typename Element>
    Element* take(int64_t count) {
        const int64_t need = (count * sizeof(Element) + PAGE - 1) / PAGE * PAGE;
        if (need > size) {
            std::free(start);
            start = std::aligned_alloc(PAGE, need);
            if (start == nullptr) throw std::bad_alloc();
#ifdef __linux__
            madvise(start, need, MADV_HUGEPAGE);
#endif
            size = need;
        }
        return static_cast<Element*>(start);
    }

  private:
    static constexpr int64_t PAGE = 2 << 20;  // bytes of a huge page
    void* start = nullptr;
    int64_t size = 0;
};

}  // namespace
