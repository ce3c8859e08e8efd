// Layer norms, behind what a layer adds to the stream. Shape letters: B rows, E width.

#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

// Scale and shift of a norm, (E,) each.
template <typename Element>
struct Norm {
    const Element *weight, *bias;
};

// The sum of two rows (E,), which may be in the place of either.
template <typename Element>
inline void add(const Element* one, const Element* other, int64_t width, Element* out) {
    int64_t e = 0;
    for (; e + PAIR <= width; e += PAIR) {
        const Pair left = load_pair(one + e), right = load_pair(other + e);
        store_pair(out + e, {left.first + right.first, left.second + right.second});
    }
    for (; e < width; ++e) store(out + e, to_float(one[e]) + to_float(other[e]));
}

// Normalises each row of `x` (B, E); first adds `update` to it, (B, E), if there is one.
template <typename Element>
void add_norm(Element* x, const Element* update, const Norm<Element>& norm, int64_t rows, int64_t width, float epsilon,
              Element* out) {
    const int64_t whole = width / PAIR * PAIR;  // of pairs
    std::vector<float> centred(width);
    for (int64_t row = 0; row < rows; ++row, x += width, out += width) {
        if (update) {
            add(x, update, width, x);
            update += width;
        }
        Floats sums{}, squares{};
        for (int64_t e = 0; e < whole; e += PAIR) {
            const Pair pair = load_pair(x + e);
            sums += pair.first + pair.second;
            store_pair(centred.data() + e, pair);
        }
        for (int64_t e = whole; e < width; ++e) sums[0] += centred[e] = to_float(x[e]);
        const float mean = total(sums) / width;
        for (int64_t e = 0; e < whole; e += LANES) {
            const Floats below = load(centred.data() + e) - mean;
            store(centred.data() + e, below);
            squares += below * below;
        }
        for (int64_t e = whole; e < width; ++e) {
            centred[e] -= mean;
            squares[0] += centred[e] * centred[e];
        }
        const float scale = 1 / std::sqrt(total(squares) / width + epsilon);
        for (int64_t e = 0; e < whole; e += PAIR) {
            const Pair by = load_pair(norm.weight + e), shift = load_pair(norm.bias + e);
            store_pair(out + e, {load(centred.data() + e) * scale * by.first + shift.first,
                                 load(centred.data() + e + LANES) * scale * by.second + shift.second});
        }
        for (int64_t e = whole; e < width; ++e) {
            store(out + e, centred[e] * scale * to_float(norm.weight[e]) + to_float(norm.bias[e]));
        }
    }
}

}  // namespace
