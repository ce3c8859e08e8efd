// Vectors of sixteen numbers, in float32 and bfloat16, for every kernel.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(2), may_alias));

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline Floats broadcast(float value) { return value - Floats{}; }

inline Floats higher(Floats left, Floats right) { return left > right ? left : right; }

template <int STEP>
inline Floats turned(Floats values) {  // lane i holds what lane i + STEP held
    constexpr auto at = [](int lane) { return (lane + STEP) % LANES; };
    return __builtin_shufflevector(values, values, at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9),
                                   at(10), at(11), at(12), at(13), at(14), at(15));
}

inline float highest(Floats values) {
    values = higher(values, turned<8>(values));
    values = higher(values, turned<4>(values));
    values = higher(values, turned<2>(values));
    return higher(values, turned<1>(values))[0];
}

inline float total(Floats values) {
    values += turned<8>(values);
    values += turned<4>(values);
    values += turned<2>(values);
    return (values + turned<1>(values))[0];
}

// Combines each block of STEP lanes with the next one, those of `left` into even blocks and those of `right` into odd ones.
template <int STEP, typename Combine>
inline Floats folded(Floats left, Floats right, const Combine& combine) {
    constexpr auto from = [](int lane, bool is_upper) {
        const int within = lane % (2 * STEP), start = lane - within;
        const bool is_right = within >= STEP;
        return start + within % STEP + (is_upper ? STEP : 0) + (is_right ? LANES : 0);
    };
#define LANES_OF(upper)                                                                                               \
    from(0, upper), from(1, upper), from(2, upper), from(3, upper), from(4, upper), from(5, upper), from(6, upper),    \
        from(7, upper), from(8, upper), from(9, upper), from(10, upper), from(11, upper), from(12, upper),             \
        from(13, upper), from(14, upper), from(15, upper)
    return combine(__builtin_shufflevector(left, right, LANES_OF(false)),
                   __builtin_shufflevector(left, right, LANES_OF(true)));
#undef LANES_OF
}

// Lane i of the result is what the lanes of vector i come to.
template <typename Combine>
inline Floats folded_all(Floats (&vectors)[LANES], const Combine& combine) {
    for (int i = 0; i < 8; ++i) vectors[i] = folded<8>(vectors[i], vectors[i + 8], combine);
    for (int i = 0; i < 4; ++i) vectors[i] = folded<4>(vectors[i], vectors[i + 4], combine);
    for (int i = 0; i < 2; ++i) vectors[i] = folded<2>(vectors[i], vectors[i + 2], combine);
    return folded<1>(vectors[0], vectors[1], combine);
}

inline Floats totals(Floats (&vectors)[LANES]) {
    return folded_all(vectors, [](Floats left, Floats right) { return left + right; });
}
inline Floats tops(Floats (&vectors)[LANES]) { return folded_all(vectors, higher); }

// e^x for x <= 0, within 2 units in the last place; 0 below -87. Cody and Waite's reduction, a polynomial of degree 6.
inline Floats exp_nonpositive(Floats x) {
    const Floats floor = broadcast(-87.0f);
    const Ints is_low = x < floor;
    x = is_low ? floor : x;
    const Floats shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Floats shifted = x * 1.44269504088896341f + shifter;
    const Floats whole = shifted - shifter;
    const Floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Floats sum = broadcast(1.9875691500e-4f);
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    const Ints power = (reinterpret_cast<const Ints&>(shifted) - 0x4B400000) << 23;
    const Ints scaled = reinterpret_cast<const Ints&>(sum) + power;
    return is_low ? Floats{} : reinterpret_cast<const Floats&>(scaled);
}

// x * Phi(x) by the usual approximation, 0.5 x (1 + tanh(u)), which is x / (1 + e^(-2u)).
inline Floats gelu(Floats x) {
    const Floats twice = x * 1.5957691216057308f * (1.0f + 0.044715f * x * x);
    const Ints is_negative = twice < Floats{};
    const Floats small = exp_nonpositive(is_negative ? twice : -twice);
    return x * (is_negative ? small : broadcast(1.0f)) / (1.0f + small);
}

// bfloat16 is the upper half of a float32.
struct BFloat16 {
    uint16_t bits;
};

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

// 2 * LANES elements as two vectors: of float32 the first half and the second, of bfloat16 those at even places and those at
// odd ones, which takes no shuffle.
constexpr int PAIR = 2 * LANES;
struct Pair {
    Floats first, second;
};

inline Pair load_pair(const float* from) { return {load(from), load(from + LANES)}; }
inline Pair load_pair(const BFloat16* from) {
    const Words words = *reinterpret_cast<const Words*>(from);
    const Words even = words << 16, odd = words & 0xFFFF0000;
    return {reinterpret_cast<const Floats&>(even), reinterpret_cast<const Floats&>(odd)};
}

// As bfloat16, rounded to nearest, ties to even.
inline Words rounded(Floats values) {
    const Words bits = reinterpret_cast<const Words&>(values);
    return values == values ? (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 : Words{} + 0x7FC0;
}

inline void store(float* to, float value) { *to = value; }
inline void store(BFloat16* to, float value) { to->bits = rounded(broadcast(value))[0]; }

typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
inline void store(float* to, Floats values) { *reinterpret_cast<Floats*>(to) = values; }
inline void store(BFloat16* to, Floats values) {
    *reinterpret_cast<Halves*>(to) = __builtin_convertvector(rounded(values), Halves);
}

inline void store_pair(float* to, const Pair& pair) {
    *reinterpret_cast<Floats*>(to) = pair.first;
    *reinterpret_cast<Floats*>(to + LANES) = pair.second;
}
inline void store_pair(BFloat16* to, const Pair& pair) {
    *reinterpret_cast<Words*>(to) = rounded(pair.first) | rounded(pair.second) << 16;
}

}  // namespace
