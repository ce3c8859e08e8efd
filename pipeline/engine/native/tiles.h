// Products of bfloat16 by matrix registers: tiles of 16 rows of 64 bytes, eight of them.

#pragma once

#include "fetch.h"
#include "scratch.h"
#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <immintrin.h>
#define HAS_TILES

namespace {

constexpr int64_t SIDE = 16, TILE = 1024;  // rows of a tile, or columns of sums; bytes
constexpr int64_t STEP = 32;               // inputs of a tile

// x / (1 + e^(-2u)), as good as bfloat16 shows it.
inline __m512 rough_gelu(__m512 x) {
    const __m512 cubic = _mm512_set1_ps(-0.1029432397f), linear = _mm512_set1_ps(-2.302208198f);  // -2u * log2(e) is both
    const __m512 power = _mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_mul_ps(x, x), cubic, linear));
    const __m512 bounded = _mm512_min_ps(_mm512_max_ps(power, _mm512_set1_ps(-126)), _mm512_set1_ps(126));
    const __m512 whole = _mm512_roundscale_ps(bounded, 0), rest = _mm512_sub_ps(bounded, whole);
    __m512 sum = _mm512_set1_ps(0.0096181291f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.0555041087f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.2402265070f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.6931471806f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1));
    return _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(_mm512_scalef_ps(sum, whole), _mm512_set1_ps(1))));
}

struct Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Rows as inputs of a product: 32 of them by 32 inputs are two tiles, a block. Slabs of inputs lie one behind the other, in
// each the rows, in these the inputs.
struct PackedRows {
    static constexpr int64_t ROWS = 2 * SIDE, BLOCK = 2 * TILE;  // rows, bytes

    // Steps are blocks of a row. A slab of weights and one of inputs fit the first-level cache together; where one block has
    // all rows nothing is used twice, and all steps are one slab.
    const int64_t rows, steps, slab;

    PackedRows(Scratch& scratch, int64_t rows, int64_t inputs)
        : rows(rows), steps(inputs / STEP), slab(rows <= ROWS ? steps : 6) {
        start = scratch.take<char>(num_blocks() * steps * BLOCK);
    }

    int64_t num_blocks() const { return (rows + ROWS - 1) / ROWS; }  // one below the other

    // Where a row's inputs are from `step` on, up to the end of the slab: LINE bytes of each block.
    char* at(int64_t row, int64_t step) const {
        const int64_t first = step / slab * slab, width = std::min(slab, steps - first);
        return start + BLOCK * (first * num_blocks() + row / ROWS * width + step - first) + row % ROWS * LINE;
    }

    // From rows of a matrix. Those that are missing from the last block hold anything: no other row sees them.
    void fill(const BFloat16* x) const {
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t step = 0; step < steps; ++step, x += STEP) std::memcpy(at(row, step), x, LINE);
        }
    }

  private:
    char* start;
};

struct Tiles {
    static constexpr int64_t COLUMNS = 2 * SIDE;

    // Inputs of so many rows and outputs of their product stay in the second-level cache.
    static int64_t rows_together(int64_t inputs) {
        constexpr int64_t BYTES = 800 << 10;
        return std::max(PackedRows::ROWS, BYTES / (inputs * 2) / PackedRows::ROWS * PackedRows::ROWS);
    }

    // See `linear_bfloat16`. `put` is given a row, a column, and what 32 outputs from there on came to.
    template <bool IS_GELU, typename Put>
    static void multiply(const PackedRows& x, const BFloat16* weights, const float* bias, int64_t outputs, const Put& put) {
        constexpr int64_t BLOCK = PackedRows::BLOCK;
        static thread_local Scratch scratch;
        float* sums = scratch.take<float>(x.num_blocks() * PackedRows::ROWS * COLUMNS);
        const Shapes shapes;
        _tile_loadconfig(&shapes);
        const char* group = reinterpret_cast<const char*>(weights);
        const int64_t bytes = x.steps * BLOCK, rounds = Fetch::rounds(bytes, x.num_blocks() * x.steps);
        for (int64_t column = 0; column < outputs; column += COLUMNS, group += bytes) {
            Fetch fetch(group + bytes, group + bytes + bytes / 2, bytes / 2);
            for (int64_t step = 0; step < x.steps; step += x.slab) {
                const int64_t count = std::min(x.slab, x.steps - step);
                for (int64_t row = 0; row < x.rows; row += PackedRows::ROWS) {
                    float* own = sums + row * COLUMNS;
                    const auto add = x.rows - row > SIDE ? add_slab<true> : add_slab<false>;
                    add(x.at(row, step), group + step * BLOCK, count, step == 0, fetch, rounds, own);
                    if (step + x.slab < x.steps) continue;
                    finish<IS_GELU>(own, std::min(PackedRows::ROWS, x.rows - row), bias + column,
                                    [&](int64_t i, __m512i values) { put(row + i, column, values); });
                }
            }
        }
        _tile_release();
    }

  private:
    // Adds products of 16 or, if `IS_PAIR`, 32 rows with 32 columns to their sums, four tiles. A slab of weights stays in the
    // first-level cache for the next rows.
    template <bool IS_PAIR>
    static void add_slab(const char* from, const char* by, int64_t count, bool is_first, Fetch& fetch, int64_t rounds,
                         float* sums) {
        char* const kept = reinterpret_cast<char*>(sums);
        if (is_first) {  // products take many times as long on a tile that has never been set
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        } else {
            _tile_loadd(0, kept, LINE);
            _tile_loadd(1, kept + TILE, LINE);
            if (IS_PAIR) {
                _tile_loadd(2, kept + 2 * TILE, LINE);
                _tile_loadd(3, kept + 3 * TILE, LINE);
            }
        }
        for (int64_t step = 0; step < count; ++step, from += 2 * TILE, by += 2 * TILE) {
            _tile_loadd(6, by, LINE);
            fetch.some((rounds + 3) / 4);
            _tile_loadd(4, from, LINE);
            fetch.some((rounds + 1) / 4);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, by + TILE, LINE);
            fetch.some((rounds + 2) / 4);
            _tile_dpbf16ps(1, 4, 7);
            fetch.some(rounds / 4);
            if (IS_PAIR) {
                _tile_loadd(5, from + TILE, LINE);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, kept, LINE);
        _tile_stored(1, kept + TILE, LINE);
        if (IS_PAIR) {
            _tile_stored(2, kept + 2 * TILE, LINE);
            _tile_stored(3, kept + 3 * TILE, LINE);
        }
    }

    // Sums plus bias, through the activation.
    template <bool IS_GELU, typename Put>
    static void finish(const float* sums, int64_t rows, const float* bias, const Put& put) {
        const __m512 biases[] = {_mm512_loadu_ps(bias), _mm512_loadu_ps(bias + SIDE)};
        for (int64_t row = 0; row < rows; ++row) {
            const float* own = sums + (row / SIDE * 2 * SIDE + row % SIDE) * SIDE;  // a tile and the one beside it
            __m512 left = _mm512_add_ps(_mm512_loadu_ps(own), biases[0]);
            __m512 right = _mm512_add_ps(_mm512_loadu_ps(own + SIDE * SIDE), biases[1]);
            if (IS_GELU) left = rough_gelu(left), right = rough_gelu(right);
            put(row, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(right, left)));
        }
    }
};

}  // namespace
#endif
