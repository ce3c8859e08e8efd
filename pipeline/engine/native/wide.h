// Products of float32 by wide vectors.

#pragma once

#include "fetch.h"
#include "linear.h"
#include "vectors.h"

#ifdef __AVX512F__
#define HAS_WIDE

namespace {

struct Wide {
    static constexpr int64_t COLUMNS = GROUP, ROWS = 12, STEP = 32;  // 24 registers of sums; inputs between fetches

    // See `linear_float32`.
    static void multiply(const float* x, const float* weights, const float* bias, int64_t rows, int64_t inputs, int64_t outputs,
                         bool is_gelu, const Layout& layout, float* out) {
        const int64_t group = inputs * COLUMNS, half = group / 2 * sizeof(float);
        const int64_t steps = (rows + ROWS - 1) / ROWS * (inputs / STEP);
        alignas(LINE) float sums[ROWS * COLUMNS];
        for (int64_t column = 0; column < outputs; column += COLUMNS, weights += group) {
            Fetch fetch(weights + group, weights + group + group / 2, half, steps);
            for (int64_t first = 0; first < rows; first += ROWS) {
                const int64_t count = std::min(ROWS, rows - first);
                block<ROWS>(x + first * inputs, count, inputs, weights, fetch, sums);
                finish(sums, count, bias + column, is_gelu, out + first * layout.row + column / GROUP * layout.group,
                       layout.row);
            }
        }
    }

  private:
    template <int MOST>
    static void block(const float* x, int64_t rows, int64_t inputs, const float* weights, Fetch& fetch, float* sums) {
        if constexpr (MOST > 1) {
            if (rows < MOST) return block<MOST - 1>(x, rows, inputs, weights, fetch, sums);
        }
        constexpr int VECTORS = COLUMNS / LANES;
        Floats totals[MOST][VECTORS] = {};
        for (int64_t input = 0; input < inputs; input += STEP) {
            fetch.some();
#pragma GCC unroll 4
            for (int64_t i = input; i < input + STEP; ++i, weights += LANES) {
#pragma GCC unroll 12
                for (int row = 0; row < MOST; ++row) {
                    const Floats value = broadcast(x[row * inputs + i]);
#pragma GCC unroll 2
                    for (int v = 0; v < VECTORS; ++v) totals[row][v] += value * load(weights + v * STEP * LANES);
                }
            }
            weights += (VECTORS - 1) * STEP * LANES;
        }
        std::memcpy(sums, totals, sizeof totals);
    }

    // Sums plus bias, through the activation, to rows that lie `stride` apart.
    static void finish(const float* sums, int64_t rows, const float* bias, bool is_gelu, float* out, int64_t stride) {
        for (int64_t row = 0; row < rows; ++row, sums += COLUMNS, out += stride) {
            for (int64_t column = 0; column < COLUMNS; column += LANES) {
                const Floats sum = load(sums + column) + load(bias + column);
                store(out + column, is_gelu ? gelu(sum) : sum);
            }
        }
    }
};

}  // namespace
#endif
