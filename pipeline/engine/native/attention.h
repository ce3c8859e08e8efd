// Attention of new tokens to what the cache holds of their slots.
//
// Keys and values of a head lie in one piece, (2T, D): keys backwards, so that the first is in the middle, then values. Both are
// read from the newest on, towards the middle. What a processor fetches of its own accord past the end of keys are values then,
// and the other way round; from the first on it would fetch room that is not in use yet, a fifth of all that it reads.
//
// Shape letters: N tokens, C slots, H heads, D head size, T positions of a slot, P of all.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fetch.h"
#include "linear.h"
#include "vectors.h"

namespace {

// Product of a query with a key (D,), not summed over the lanes. Whole pairs of the query are in the order of `load_pair`.
template <typename Element>
inline Floats product(const float* query, const Element* key, int64_t size) {
    Floats sums{};
    int64_t d = 0;
    for (; d + PAIR <= size; d += PAIR) {
        const Pair pair = load_pair(key + d);
        sums += load(query + d) * pair.first;
        sums += load(query + d + LANES) * pair.second;
    }
    for (; d < size; ++d) sums[0] += query[d] * to_float(key[d]);
    return sums;
}

// Products of Q queries, (Q, D), with `count` keys, (`count`, D): (Q, `stride`), with room for LANES more. Meanwhile half
// of what is read next is fetched.
template <int Q, typename Element>
inline void multiply(const float* queries, const Element* keys, int64_t count, int64_t size, float* scores, int64_t stride,
                     Fetch& fetch) {
    constexpr int KEYS = LANES / Q;
    constexpr int OFTEN = Q == 1 ? 2 : KEYS;  // keys between fetches
    for (int64_t start = 0; start < count; start += KEYS) {
        Floats sums[LANES];
        for (int t = 0; t < KEYS; ++t) {
            if (t % OFTEN == 0) fetch.some();
            const Element* key = keys + std::min(start + t, count - 1) * size;
            for (int q = 0; q < Q; ++q) sums[q * KEYS + t] = product(queries + q * size, key, size);
        }
        const Floats found = totals(sums);
        const float* of_first = reinterpret_cast<const float*>(&found);
        for (int q = 0; q < Q; ++q) std::memcpy(scores + q * stride + start, of_first + q * KEYS, 4 * KEYS);
    }
}

// Softmax of `scores`, (T,) with room for LANES more, not normalised; returns the sum.
inline float exponentials(float* scores, int64_t count) {
    std::fill(scores + count, scores + count + LANES, -INF);
    Floats best = broadcast(-INF), sums{};
    for (int64_t t = 0; t < count; t += LANES) best = higher(best, load(scores + t));
    const float top = highest(best);
    for (int64_t t = 0; t < count; t += LANES) {
        const Floats shares = exp_nonpositive(load(scores + t) - top);
        *reinterpret_cast<Floats*>(scores + t) = shares;
        sums += shares;
    }
    return total(sums);
}

// Sums of `count` rows of values, of which `values` (D,) is the last, by Q sets of weights, (Q, `stride`), from column `d` on:
// N pairs of vectors of columns at a time. Meanwhile the other half of what is read next is fetched.
template <int Q, int N, typename Element>
inline int64_t mix_columns(int64_t d, const Element* values, int64_t size, const float* weights, int64_t stride,
                           int64_t count, const float* scales, Element* out, int64_t out_stride, Fetch& fetch) {
    for (; d + N * PAIR <= size; d += N * PAIR) {
        Pair sums[Q][N] = {};
        for (int64_t t = 0; t < count; ++t) {
            if (t % 2 == 0) fetch.some();
            for (int n = 0; n < N; ++n) {
                const Pair pair = load_pair(values - t * size + d + n * PAIR);
                for (int q = 0; q < Q; ++q) {
                    sums[q][n].first += weights[q * stride + t] * pair.first;
                    sums[q][n].second += weights[q * stride + t] * pair.second;
                }
            }
        }
        for (int q = 0; q < Q; ++q) {
            for (int n = 0; n < N; ++n) {
                const Pair mixed{sums[q][n].first * scales[q], sums[q][n].second * scales[q]};
                store_pair(out + q * out_stride + d + n * PAIR, mixed);
            }
        }
    }
    return d;
}

// Queries, keys and values of tokens, (N, 3HD).
template <typename Element>
struct Fused {
    const Element* start;
    Layout layout;

    // Copies some columns of a token.
    void copy(int64_t token, int64_t column, int64_t count, Element* to) const {
        for (const int64_t end = column + count; column < end;) {
            const int64_t within = column % GROUP, some = std::min(GROUP - within, end - column);
            const Element* from = start + token * layout.row + column / GROUP * layout.group + within;
            if (some == GROUP) {  // a size that the compiler knows takes no call
                std::memcpy(to, from, GROUP * sizeof(Element));
            } else {
                std::memcpy(to, from, some * sizeof(Element));
            }
            column += some, to += some;
        }
    }
};

// What attention works in: room for Q queries.
template <typename Element>
struct Room {
    std::vector<Element> query;  // of one at a time
    std::vector<float> scores, scaled;
    int64_t stride;
};

// Q queries of one head against keys and values of a slot, the newest of each and what lies behind and before it: the first
// sees `count` of them, each other one more. What comes out lies `width` apart. Memory is slower than this reads, so what is
// read next is fetched meanwhile.
template <int Q, typename Element, int FIXED>
inline void attend_head(const Fused<Element>& fused, int64_t token, int64_t column, const Element* keys, const Element* values,
                        int64_t count, int64_t size, int64_t width, float scale, Room<Element>& room, Element* out,
                        Fetch& fetch) {
    const int64_t d_size = FIXED ? FIXED : size, seen = count + Q - 1;
    float *scores = room.scores.data(), *scaled = room.scaled.data(), shares[Q];
    for (int q = 0; q < Q; ++q, scaled += d_size) {
        Element* const query = room.query.data();
        fused.copy(token + q, column, d_size, query);
        int64_t d = 0;
        for (; d + PAIR <= d_size; d += PAIR) {
            const Pair pair = load_pair(query + d);
            store(scaled + d, pair.first * scale), store(scaled + d + LANES, pair.second * scale);
        }
        for (; d < d_size; ++d) scaled[d] = to_float(query[d]) * scale;
    }
    multiply<Q>(room.scaled.data(), keys, seen, d_size, scores, room.stride, fetch);
    for (int q = 0; q < Q; ++q) {
        float* own = scores + q * room.stride;
        const int64_t unseen = Q - 1 - q;  // newer than the query
        shares[q] = 1 / exponentials(own + unseen, count + q);
        std::fill(own, own + unseen, 0.0f);
    }
    int64_t d = mix_columns<Q, 2>(0, values, d_size, scores, room.stride, seen, shares, out, width, fetch);
    d = mix_columns<Q, 1>(d, values, d_size, scores, room.stride, seen, shares, out, width, fetch);
    for (; d < d_size; ++d) {
        for (int q = 0; q < Q; ++q) {
            float sum = 0;
            for (int64_t t = 0; t < seen; ++t) sum += scores[q * room.stride + t] * to_float(values[d - t * d_size]);
            store(out + q * width + d, sum * shares[q]);
        }
    }
}

// Where slots lie: (C,) each, the first of a slot's positions among all, and how many it has.
struct Places {
    const int64_t *starts, *capacities;
};

template <typename Element, int FIXED>
void attend_tokens(const Fused<Element>& fused, Element* kept, const Places& places, const int64_t* slots,
                   const int64_t* positions, int64_t count, int64_t heads, int64_t size, float scale, Element* out) {
    constexpr int Q = 4;
    const int64_t d_size = FIXED ? FIXED : size, width = heads * d_size;
    const int64_t stride = *std::max_element(positions, positions + count) + 1 + LANES;
    Room<Element> room{std::vector<Element>(d_size), std::vector<float>(Q * stride), std::vector<float>(Q * d_size), stride};
    for (int64_t first = 0, end; first < count; first = end) {
        for (end = first + 1; end < count && slots[end] == slots[first];) ++end;  // tokens of one slot
        const int64_t following = end < count ? end : first, seen = positions[end - 1] + 1;
        const auto middle = [&](int64_t token, int64_t head) {  // where values begin
            const int64_t start = places.starts[slots[token]], capacity = places.capacities[slots[token]];
            return kept + 2 * start * width + (2 * head + 1) * capacity * d_size;
        };
        for (int64_t head = 0; head < heads; ++head) {
            Element* const own = middle(first, head);
            const Element* const next = head + 1 < heads ? middle(first, head + 1) : middle(following, 0);
            const int64_t column = head * d_size;
            const int64_t ahead = (head + 1 < heads ? seen : positions[following] + 1) * d_size;  // that it will see
            Fetch fetch(next - ahead, {next + ahead - LINE / sizeof(Element), -LINE}, ahead * sizeof(Element), seen);
            for (int64_t token = first; token < end; ++token) {
                fused.copy(token, width + column, d_size, own - (positions[token] + 1) * d_size);
                fused.copy(token, 2 * width + column, d_size, own + positions[token] * d_size);
            }
            for (int64_t token = first, together; token < end; token += together) {
                together = token + Q <= end ? Q : 1;
                const auto chosen = together == Q ? attend_head<Q, Element, FIXED> : attend_head<1, Element, FIXED>;
                const int64_t newest = positions[token + together - 1];
                chosen(fused, token, column, own - (newest + 1) * d_size, own + newest * d_size, positions[token] + 1, d_size,
                       width, scale, room, out + token * width + column, fetch);
            }
        }
    }
}

template <typename Element>
void attend(const Fused<Element>& fused, Element* kept, const Places& places, const int64_t* slots, const int64_t* positions,
            int64_t count, int64_t heads, int64_t size, float scale, Element* out) {
    const auto chosen = size == 64 ? attend_tokens<Element, 64> : attend_tokens<Element, 0>;
    chosen(fused, kept, places, slots, positions, count, heads, size, scale, out);
}

}  // namespace
