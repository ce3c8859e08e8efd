// Linear layers of many rows over packed weights, on one thread.
//
// A decode step reads every weight once and little of it twice, so memory sets its pace, unless something else is done while
// weights are on their way. Columns are taken in groups. While all rows are multiplied with one group, the next one is
// fetched, from four places in turn: a processor follows each of them with fetches of its own and has more of them under way.
// Weights of layers that follow each other lie one behind the other, so the next group may be the next layer's.
//
// A sum takes its terms in the order of the inputs, whatever rows it is computed beside. Shape letters: B rows, I inputs, O
// outputs.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES
#endif

#include "fetch.h"
#include "vectors.h"

namespace {

// x * Phi(x) by the usual approximation, 0.5 x (1 + tanh(u)), which is x / (1 + e^(-2u)).
inline Floats gelu(Floats x) {
    const Floats twice = x * 1.5957691216057308f * (1.0f + 0.044715f * x * x);
    const Ints is_negative = twice < Floats{};
    const Floats small = exp_nonpositive(is_negative ? twice : -twice);
    return x * (is_negative ? small : broadcast(1.0f)) / (1.0f + small);
}

// Sums (rows, `width`) plus bias, through the activation, to `count` columns of each row of `out`.
template <typename Element>
void finish(const float* sums, int64_t width, int64_t rows, int64_t count, const float* bias, bool is_gelu, Element* out,
            int64_t stride) {
    for (int64_t row = 0; row < rows; ++row, sums += width, out += stride) {
        for (int64_t column = 0; column < count; column += LANES) {
            const Floats sum = load(sums + column) + load(bias + column), value = is_gelu ? gelu(sum) : sum;
            if (column + LANES <= count) {
                store(out + column, value);
            } else {
                for (int64_t lane = 0; column + lane < count; ++lane) store(out + column + lane, value[lane]);
            }
        }
    }
}

#ifdef __AVX512F__
struct Wide {
    static constexpr int64_t COLUMNS = 48, ROWS = 8, STEP = 16;  // 24 registers of sums; inputs of a step
    static constexpr int64_t STEPS = 1;                          // of fetching while a step of inputs is multiplied

    const float* x;
    int64_t inputs;

    Wide(const float* x, int64_t, int64_t inputs) : x(x), inputs(inputs) {}

    void multiply(int64_t first, int64_t rows, const float* weights, Fetch& fetch, int64_t lines, float* sums) const {
        block<ROWS>(x + first * inputs, rows, weights, fetch, lines, sums);
    }

    template <int MOST>
    void block(const float* from, int64_t rows, const float* weights, Fetch& fetch, int64_t lines, float* sums) const {
        if constexpr (MOST > 1) {
            if (rows < MOST) return block<MOST - 1>(from, rows, weights, fetch, lines, sums);
        }
        constexpr int VECTORS = COLUMNS / LANES;
        Floats totals[MOST][VECTORS] = {};
        for (int64_t input = 0; input < inputs; input += STEP) {
            fetch.some(lines);
#pragma GCC unroll 4
            for (int64_t i = input; i < input + STEP; ++i, weights += COLUMNS) {
#pragma GCC unroll 8
                for (int row = 0; row < MOST; ++row) {
                    const Floats value = broadcast(from[row * inputs + i]);
#pragma GCC unroll 3
                    for (int v = 0; v < VECTORS; ++v) totals[row][v] += value * load(weights + v * LANES);
                }
            }
        }
        std::memcpy(sums, totals, sizeof totals);
    }
};
#endif

#ifdef HAS_TILES
// Matrix registers: eight tiles of 16 rows of 64 bytes.
struct TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct Tiles {
    static constexpr int64_t COLUMNS = 64, ROWS = 32, STEP = 32;
    static constexpr int64_t STEPS = 2;
    static constexpr int64_t SIDE = 16, TILE = 1024, WIDTH = COLUMNS * 4;  // rows, bytes; bytes of a row of sums

    int64_t tile_row;  // bytes of 16 rows of inputs, or of 16 columns of weights
    const char* packed;

    // Inputs are packed tile by tile, with zeros for rows that are missing.
    Tiles(const BFloat16* x, int64_t rows, int64_t inputs) : tile_row(inputs / STEP * TILE) {
        static thread_local std::vector<char> room;
        const int64_t tiles = (rows + SIDE - 1) / SIDE;
        room.resize(std::max<size_t>(room.size(), tiles * tile_row + LINE));
        char* start = room.data() + (-reinterpret_cast<uintptr_t>(room.data()) & (LINE - 1));
        for (int64_t row = 0; row < tiles * SIDE; ++row) {
            char* to = start + row / SIDE * tile_row + row % SIDE * LINE;
            for (int64_t step = 0; step < inputs / STEP; ++step, to += TILE) {
                if (row < rows) {
                    std::memcpy(to, x + row * inputs + step * STEP, LINE);
                } else {
                    std::memset(to, 0, LINE);
                }
            }
        }
        packed = start;
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }

    void multiply(int64_t first, int64_t count, const BFloat16* weights, Fetch& fetch, int64_t lines, float* sums) const {
        const char* from = packed + first / SIDE * tile_row;
        const char* by = reinterpret_cast<const char*>(weights);
        for (int half = 0; half < 2; ++half, by += 2 * tile_row, sums += 2 * SIDE) {
            count > SIDE ? block<true>(from, by, fetch, lines, sums) : block<false>(from, by, fetch, lines, sums);
        }
    }

    // 16 or, with `IS_PAIR`, 32 rows with 32 columns. After a run of more than twenty steps the tiles are slow to store, by as
    // much as ten steps take, so sums are put down every eight steps where there are not many.
    template <bool IS_PAIR>
    void block(const char* from, const char* by, Fetch& fetch, int64_t lines, float* sums) const {
        const int64_t steps = tile_row / TILE, run = steps <= 32 ? 8 : steps;
        for (int64_t step = 0; step < steps;) {
            step == 0 ? clear() : load_sums<IS_PAIR>(sums);
            for (const int64_t end = std::min(step + run, steps); step < end; ++step) {
                _tile_loadd(6, by, LINE);
                fetch.some((lines + 3) / 4);
                _tile_loadd(4, from, LINE);
                fetch.some((lines + 1) / 4);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, by + tile_row, LINE);
                fetch.some((lines + 2) / 4);
                _tile_dpbf16ps(1, 4, 7);
                fetch.some(lines / 4);
                if (IS_PAIR) {
                    _tile_loadd(5, from + tile_row, LINE);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                from += TILE;
                by += TILE;
            }
            store_sums<IS_PAIR>(sums);
        }
    }

    void clear() const {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }

    template <bool IS_PAIR>
    void load_sums(const float* sums) const {
        _tile_loadd(0, sums, WIDTH);
        _tile_loadd(1, sums + SIDE, WIDTH);
        if (IS_PAIR) {
            _tile_loadd(2, sums + SIDE * COLUMNS, WIDTH);
            _tile_loadd(3, sums + SIDE * COLUMNS + SIDE, WIDTH);
        }
    }

    template <bool IS_PAIR>
    void store_sums(float* sums) const {
        _tile_stored(0, sums, WIDTH);
        _tile_stored(1, sums + SIDE, WIDTH);
        if (IS_PAIR) {
            _tile_stored(2, sums + SIDE * COLUMNS, WIDTH);
            _tile_stored(3, sums + SIDE * COLUMNS + SIDE, WIDTH);
        }
    }
};
#endif

template <typename Way, typename Element>
void linear(const Element* x, const Element* weights, const float* bias, int64_t rows, int64_t inputs, int64_t outputs,
            bool is_gelu, Element* out) {
    const Way way(x, rows, inputs);
    const int64_t group = inputs * Way::COLUMNS, half = group * sizeof(Element) / 2;
    const int64_t num_blocks = (rows + Way::ROWS - 1) / Way::ROWS, steps = num_blocks * Way::STEPS * inputs / Way::STEP;
    const int64_t lines = (2 * half / (Fetch::STREAMS * LINE) + steps - 1) / steps;  // to fetch of each stream in a step
    alignas(LINE) float sums[Way::ROWS * Way::COLUMNS];
    for (int64_t column = 0; column < outputs; column += Way::COLUMNS, weights += group) {
        const char* next = reinterpret_cast<const char*>(weights + group);
        Fetch fetch(next, next + half, half);
        for (int64_t first = 0; first < rows; first += Way::ROWS) {
            const int64_t count = std::min(Way::ROWS, rows - first);
            way.multiply(first, count, weights, fetch, lines, sums);
            finish(sums, Way::COLUMNS, count, std::min(Way::COLUMNS, outputs - column), bias + column, is_gelu,
                   out + first * outputs + column, outputs);
        }
    }
}

}  // namespace

extern "C" {

// Whether `linear_float32` works on this processor.
bool multiplies_float32() {
#ifdef __AVX512F__
    return true;
#else
    return false;
#endif
}

// Whether `linear_bfloat16` does. The system must allow a process its matrix registers.
bool multiplies_bfloat16() {
#ifdef HAS_TILES
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}

// Multiply `x` (B, I) with packed weights, add `bias` and apply GELU if asked: `out` (B, O). Outputs are taken in groups of 48,
// the last one filled with zeros; `bias` is as long. `weights` holds a group after the other, (I, 48) each; I is a multiple of
// 16.
void linear_float32(const float* x, const float* weights, const float* bias, int64_t rows, int64_t inputs,
                    int64_t outputs, int64_t is_gelu, float* out) {
#ifdef __AVX512F__
    linear<Wide>(x, weights, bias, rows, inputs, outputs, is_gelu, out);
#endif
}

// The same in bfloat16, with sums in float32, in groups of 64 outputs. `weights` holds of each group (4, I / 32, 16, 16, 2):
// sixteen outputs, inputs, pairs of inputs, outputs, the two of a pair; I is a multiple of 32.
void linear_bfloat16(const BFloat16* x, const BFloat16* weights, const float* bias, int64_t rows, int64_t inputs,
                     int64_t outputs, int64_t is_gelu, BFloat16* out) {
#ifdef HAS_TILES
    linear<Tiles>(x, weights, bias, rows, inputs, outputs, is_gelu, out);
#endif
}

}  // extern "C"
