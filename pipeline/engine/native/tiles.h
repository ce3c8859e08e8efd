// Products by matrix registers: eight tiles of 16 rows of 64 bytes, which multiply bfloat16 and add up in float32.
//
// A float32 number is the sum of three in bfloat16, its parts: the nearest to it, the nearest to what is left, the rest. Of the
// nine products of the parts of two numbers six are added up, the others are too small to be seen (Henry, Tang and Heinecke
// 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations"). Those of a slab of
// inputs are added up by themselves, small ones first, and then to the sum, so that little is rounded in its size: it comes out
// nearer to the exact one than by a chain of fused additions.

#pragma once

#include <iterator>
#include <utility>

#include "fetch.h"
#include "linear.h"
#include "scratch.h"
#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <immintrin.h>
#define HAS_TILES

namespace {

constexpr int64_t SIDE = 16, TILE = 1024;  // rows of a tile, or columns of sums; bytes
constexpr int64_t STEP = 32;               // inputs of a tile
constexpr int64_t BLOCK = 2 * TILE;        // 32 rows, or columns, by 32 inputs; bytes
constexpr int64_t MANY = 97;               // rows from which on products set the pace, not memory

// A quotient, rounded up.
inline int64_t up(int64_t all, int64_t by) { return (all + by - 1) / by; }

struct Shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

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

// Which part of the inputs is multiplied with which of the weights: the nearest, or all others that matter, in an order that
// leaves one of the two loaded.
struct Term {
    int x, weights;
};
struct Large {
    static constexpr Term TERMS[] = {{0, 0}};
};
struct Small {
    static constexpr Term TERMS[] = {{0, 2}, {0, 1}, {1, 1}, {1, 0}, {2, 0}};
};

// Parts of a dtype's numbers, and how many steps make a slab, of few rows and of many: one of weights and one of inputs stay in
// the first-level cache, and of many rows their sums.
template <typename Element>
struct Format;

template <>
struct Format<BFloat16> {
    static constexpr int64_t PARTS = 1, SLAB = 8, LONG_SLAB = 12;

    // A line of a tile, 32 inputs of a row, from two vectors of them.
    static void put(__m512 left, __m512 right, char* to) {
        _mm512_store_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(right, left)));
    }
    static void put(const BFloat16* x, char* to) { std::memcpy(to, x, LINE); }

    static void store(__m512 left, __m512 right, BFloat16* to) {
        _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(right, left)));
    }
    static void stream(__m512 left, __m512 right, BFloat16* to) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(right, left)));
    }

    static __m512 activated(__m512 x) { return rough_gelu(x); }
};

template <>
struct Format<float> {
    static constexpr int64_t PARTS = 3, SLAB = 3, LONG_SLAB = 3;

    // A line of each part, a block apart. Input i stands beside input 16 + i, in lines of weights too.
    static void put(__m512 left, __m512 right, char* to) {
        for (int64_t part = 0; part < PARTS; ++part, to += BLOCK) {
            const __m512i one = take_nearest(left), other = take_nearest(right);
            _mm512_store_si512(to, _mm512_or_si512(_mm512_srli_epi32(one, 16), other));
        }
    }
    static void put(const float* x, char* to) { put(_mm512_loadu_ps(x), _mm512_loadu_ps(x + SIDE), to); }

    static void store(__m512 left, __m512 right, float* to) {
        _mm512_storeu_ps(to, left);
        _mm512_storeu_ps(to + SIDE, right);
    }
    static void stream(__m512 left, __m512 right, float* to) {
        _mm512_stream_ps(to, left);
        _mm512_stream_ps(to + SIDE, right);
    }

    static __m512 activated(__m512 x) { return reinterpret_cast<__m512>(gelu(reinterpret_cast<Floats>(x))); }

  private:
    // The nearest in bfloat16, the upper half of each lane, which is taken off; of a number that is not finite NaN is left.
    static __m512i take_nearest(__m512& x) {
        const __m512i up = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
        const __m512i nearest = _mm512_and_si512(up, _mm512_set1_epi32(0xFFFF0000));
        x = _mm512_sub_ps(x, _mm512_castsi512_ps(nearest));
        return nearest;
    }
};

// Rows as inputs of a product: 32 of them by 32 inputs are a block of each part. Slabs of inputs lie one behind the other, in
// each the rows, in these the inputs.
template <typename Element>
struct PackedRows {
    static constexpr int64_t ROWS = 2 * SIDE, BYTES = Format<Element>::PARTS * BLOCK;  // of the parts of a block

    // Steps are blocks of a row. Where one block of bfloat16 has all rows nothing is used twice, and all steps are one slab.
    const int64_t rows, steps, slab;

    PackedRows(Scratch& scratch, int64_t rows, int64_t inputs)
        : rows(rows),
          steps(inputs / STEP),
          slab(Format<Element>::PARTS == 1 && rows <= ROWS ? steps
               : rows < MANY                                ? Format<Element>::SLAB
                                                            : Format<Element>::LONG_SLAB) {
        start = scratch.take<char>(num_blocks() * steps * BYTES);
    }

    int64_t num_blocks() const { return up(rows, ROWS); }  // one below the other

    // Where a row's inputs are from `step` on, up to the end of the slab: LINE bytes of each block.
    char* at(int64_t row, int64_t step) const {
        const int64_t first = step / slab * slab, width = std::min(slab, steps - first);
        return start + BYTES * (first * num_blocks() + row / ROWS * width + step - first) + row % ROWS * LINE;
    }

    // From rows of a matrix. Those that are missing from the last block hold anything: no other row sees them.
    void fill(const Element* x) const {
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t step = 0; step < steps; ++step, x += STEP) Format<Element>::put(x, at(row, step));
        }
    }

  private:
    char* start;
};

// Puts outputs where they are asked for. More than the caches hold go past them: reading what is about to be overwritten would
// take as long as writing.
template <typename Element>
class ToLayout {
  public:
    ToLayout(Element* out, const Layout& layout, int64_t bytes)
        : out(out), layout(layout), is_streamed(bytes > MOST && is_aligned(out, layout)) {}
    ToLayout(const ToLayout&) = delete;
    ~ToLayout() {
        if (is_streamed) _mm_sfence();
    }

    void operator()(int64_t row, int64_t column, __m512 left, __m512 right) const {
        Element* to = out + row * layout.row + column / GROUP * layout.group;
        is_streamed ? Format<Element>::stream(left, right, to) : Format<Element>::store(left, right, to);
    }

  private:
    static constexpr int64_t MOST = 4 << 20;  // bytes

    Element* const out;
    const Layout layout;
    const bool is_streamed;

    static bool is_aligned(const Element* out, const Layout& layout) {
        const int64_t strides = (layout.row | layout.group) * sizeof(Element);
        return (reinterpret_cast<uintptr_t>(out) | strides) % LINE == 0;
    }
};

// Puts outputs where the next product wants its inputs.
template <typename Element>
struct ToInputs {
    const PackedRows<Element>& inputs;

    void operator()(int64_t row, int64_t column, __m512 left, __m512 right) const {
        Format<Element>::put(left, right, inputs.at(row, column / STEP));
    }
};

// Weights of a product, groups of 32 outputs that lie `stride` bytes apart, and what is read after them.
struct PackedWeights {
    const char* start;
    int64_t stride;
    const char* next;
};

// Sums of a product, those of a group `stride` apart; whether it is the first to add to them, and the last.
struct Sums {
    float* start;
    int64_t stride;
    bool is_first, is_last;
};

// Weights of float32 on their way to tiles, a few lines at a time.
class Split {
  public:
    Split(const char* from, char* to, int64_t steps)
        : from(reinterpret_cast<const float*>(from)), to(to), num_lines(steps * 2 * SIDE) {}

    void some(int64_t count) {
        for (const int64_t end = std::min(next + count, num_lines); next < end; ++next) {
            const int64_t tile = next / SIDE, line = next % SIDE;
            const float* inputs = from + (tile * STEP + line) * SIDE;
            char* place = to + tile / 2 * Format<float>::PARTS * BLOCK + tile % 2 * TILE + line * LINE;
            Format<float>::put(_mm512_load_ps(inputs), _mm512_load_ps(inputs + SIDE * SIDE), place);
        }
    }

    void rest() { some(num_lines); }

  private:
    const float* const from;
    char* const to;
    const int64_t num_lines;
    int64_t next = 0;
};

template <typename Element>
struct Tiles {
    static constexpr int64_t COLUMNS = GROUP;

    // See `linear_float32`.
    static void linear(const Element* x, const Element* weights, const float* bias, int64_t rows, int64_t inputs,
                       int64_t outputs, int64_t is_gelu, const Layout& layout, Element* out) {
        const int64_t bytes = inputs * COLUMNS * sizeof(Element), groups = up(outputs, COLUMNS);
        const char* start = reinterpret_cast<const char*>(weights);
        const PackedWeights by{start, bytes, start + groups * bytes};
        in_pieces(rows, inputs, [&](int64_t first, int64_t count) {
            const PackedRows<Element> packed(scratch.outer, count, inputs);
            packed.fill(x + first * inputs);
            const ToLayout<Element> put(out + first * layout.row, layout, count * outputs * sizeof(Element));
            is_gelu ? multiply<true>(packed, by, bias, outputs, own_sums(count), put)
                    : multiply<false>(packed, by, bias, outputs, own_sums(count), put);
        });
    }

    // See `mlp_float32`. About as many inner states are worked out at a time as there are inputs, in whole slabs, and what they
    // add to the outputs.
    static void mlp(const Element* x, const Element* weights_in, const float* bias_in, const Element* weights_out,
                    const float* bias_out, int64_t rows, int64_t inputs, int64_t inner, Element* out) {
        constexpr int64_t WIDTH = COLUMNS * sizeof(Element);
        const int64_t panel = up(inputs, STEP * Format<Element>::SLAB) * STEP * Format<Element>::SLAB;
        const char *in = reinterpret_cast<const char*>(weights_in), *back = reinterpret_cast<const char*>(weights_out);
        in_pieces(rows, inputs, [&](int64_t first, int64_t count) {
            const PackedRows<Element> outer(scratch.outer, count, inputs);
            outer.fill(x + first * inputs);
            const int64_t area = whole_blocks(count) * COLUMNS;
            float* sums = scratch.all_sums.template take<float>(area * (inputs / COLUMNS));
            const ToLayout<Element> put(out + first * inputs, {inputs, GROUP}, count * inputs * sizeof(Element));
            for (int64_t state = 0, end; state < inner; state = end) {
                end = std::min(state + panel, inner);
                const char* own_in = in + state * inputs * sizeof(Element);
                const char* own_back = back + state * WIDTH;
                const char* next = end < inner ? in + end * inputs * sizeof(Element) : back + inner * inputs * sizeof(Element);
                const PackedRows<Element> between(scratch.inner, count, end - state);
                multiply<true>(outer, {own_in, inputs * WIDTH, own_back}, bias_in + state, end - state, own_sums(count),
                               ToInputs<Element>{between});
                multiply<false>(between, {own_back, inner * WIDTH, next}, bias_out, inputs,
                                {sums, area, state == 0, end == inner}, put);
            }
        });
    }

  private:
    using Rows = PackedRows<Element>;
    static constexpr bool IS_SPLIT = Format<Element>::PARTS > 1;

    struct Memory {
        Scratch outer, inner, sums, all_sums, parts;
    };
    static inline thread_local Memory scratch;

    static int64_t whole_blocks(int64_t rows) { return up(rows, Rows::ROWS) * Rows::ROWS; }

    // Calls with the first row and how many there are of pieces that are alike, so that their inputs stay in the second-level
    // cache beside outputs.
    template <typename Call>
    static void in_pieces(int64_t rows, int64_t inputs, const Call& call) {
        constexpr int64_t MOST = 800 << 10;  // bytes
        const int64_t most = std::max<int64_t>(1, MOST / (inputs / STEP * Rows::BYTES)) * Rows::ROWS;
        const int64_t num_pieces = std::max<int64_t>(1, up(rows, most)), size = whole_blocks(up(rows, num_pieces));
        for (int64_t first = 0; first < rows; first += size) call(first, std::min(size, rows - first));
    }

    // For a product that is done with a group's sums when it goes on to the next.
    static Sums own_sums(int64_t rows) {
        return {scratch.sums.template take<float>(whole_blocks(rows) * COLUMNS), 0, true, true};
    }

    // Adds a product to sums. Those that are whole then go through bias and activation; `put` is given a row, a column, and
    // what 32 outputs from there on came to.
    template <bool IS_GELU, typename Put>
    static void multiply(const Rows& x, const PackedWeights& weights, const float* bias, int64_t outputs, const Sums& sums,
                         const Put& put) {
        constexpr int64_t BYTES = STEP * COLUMNS * sizeof(Element);
        constexpr int64_t TURNS = std::size(Large::TERMS) + IS_SPLIT * std::size(Small::TERMS);
        const Shapes shapes;
        _tile_loadconfig(&shapes);
        const int64_t bytes = x.steps * BYTES, turns = x.num_blocks() * TURNS;
        const int64_t lines = up(2 * SIDE, turns);
        char *ready = nullptr, *coming = nullptr;
        if (IS_SPLIT) {
            ready = scratch.parts.template take<char>(2 * x.slab * Rows::BYTES);
            coming = ready + x.slab * Rows::BYTES;
            Split(weights.start, ready, std::min(x.slab, x.steps)).rest();
        }
        const char* group = weights.start;
        float* own = sums.start;
        for (int64_t column = 0; column < outputs; column += COLUMNS, group += weights.stride, own += sums.stride) {
            const bool is_last = column + COLUMNS >= outputs;
            const char* next = is_last ? weights.next : group + weights.stride;
            const int places = x.rows < MANY ? Fetch::MOST : Fetch::FEW;
            const int64_t calls = 4 * x.steps * turns + (IS_GELU ? x.rows : 0);
            Fetch fetch(next, next + bytes / 2, bytes / 2, calls, places);
            for (int64_t step = 0, end; step < x.steps; step = end) {
                end = std::min(step + x.slab, x.steps);
                const bool is_end = end == x.steps;
                const int64_t following = is_end ? is_last ? 0 : std::min(x.slab, x.steps) : std::min(x.slab, x.steps - end);
                Split split(is_end ? next : group + end * BYTES, coming, IS_SPLIT ? following : 0);
                const auto meanwhile = [&](bool is_fourth) {  // of a term
                    fetch.some();
                    if (IS_SPLIT && is_fourth) split.some(lines);
                };
                const char* by = IS_SPLIT ? ready : group + step * BYTES;
                for (int64_t row = 0; row < x.rows; row += Rows::ROWS) {
                    float* const kept = own + row * COLUMNS;
                    const bool is_new = sums.is_first && step == 0;
                    x.rows - row > SIDE ? add_slab<true>(x.at(row, step), by, end - step, is_new, meanwhile, kept)
                                        : add_slab<false>(x.at(row, step), by, end - step, is_new, meanwhile, kept);
                    if (!is_end || !sums.is_last) continue;
                    finish<IS_GELU>(kept, std::min(Rows::ROWS, x.rows - row), bias + column,
                                    [&](int64_t i, __m512 left, __m512 right) {
                                        if (IS_GELU) fetch.some();
                                        put(row + i, column, left, right);
                                    });
                }
                split.rest();
                std::swap(ready, coming);
            }
        }
        _tile_release();
    }

    // Adds products of 16 or, if `IS_PAIR`, 32 rows with 32 columns to their sums, four tiles. A slab of weights stays in the
    // first-level cache for the next rows.
    template <bool IS_PAIR, typename Meanwhile>
    static void add_slab(const char* from, const char* by, int64_t steps, bool is_new, const Meanwhile& meanwhile,
                         float* sums) {
        alignas(LINE) float fresh[Rows::ROWS * COLUMNS];
        char* const kept = reinterpret_cast<char*>(IS_SPLIT && !is_new ? fresh : sums);
        if (IS_SPLIT || is_new) {  // products take many times as long on a tile that has never been set
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
        if (IS_SPLIT) {
            for (int64_t step = 0; step < steps; ++step) {
                add_terms<IS_PAIR, Small>(from + step * Rows::BYTES, by + step * Rows::BYTES, meanwhile);
            }
        }
        for (int64_t step = 0; step < steps; ++step) {
            add_terms<IS_PAIR, Large>(from + step * Rows::BYTES, by + step * Rows::BYTES, meanwhile);
        }
        _tile_stored(0, kept, LINE);
        _tile_stored(1, kept + TILE, LINE);
        if (IS_PAIR) {
            _tile_stored(2, kept + 2 * TILE, LINE);
            _tile_stored(3, kept + 3 * TILE, LINE);
        }
        if (!IS_SPLIT || is_new) return;
        for (int64_t i = 0; i < (IS_PAIR ? 2 : 1) * SIDE * COLUMNS; i += SIDE) {
            _mm512_store_ps(sums + i, _mm512_add_ps(_mm512_load_ps(sums + i), _mm512_load_ps(fresh + i)));
        }
    }

    // Adds the products of a step, from the FIRST term on. What the one before was multiplied with is still loaded. Inputs are
    // loaded as what is not used again soon: the first-level cache is for weights and sums.
    template <bool IS_PAIR, typename Terms, size_t FIRST = 0, typename Meanwhile>
    static void add_terms(const char* from, const char* by, const Meanwhile& meanwhile) {
        if constexpr (FIRST < std::size(Terms::TERMS)) {
            constexpr Term TERM = Terms::TERMS[FIRST], BEFORE = FIRST ? Terms::TERMS[FIRST - 1] : Term{-1, -1};
            constexpr bool IS_X_NEW = TERM.x != BEFORE.x, ARE_WEIGHTS_NEW = TERM.weights != BEFORE.weights;
            const char *x = from + TERM.x * BLOCK, *weights = by + TERM.weights * BLOCK;
            if (ARE_WEIGHTS_NEW) _tile_loadd(6, weights, LINE);
            meanwhile(false);
            if (IS_X_NEW) _tile_stream_loadd(4, x, LINE);
            meanwhile(false);
            _tile_dpbf16ps(0, 4, 6);
            if (ARE_WEIGHTS_NEW) _tile_loadd(7, weights + TILE, LINE);
            meanwhile(false);
            _tile_dpbf16ps(1, 4, 7);
            meanwhile(true);
            if (IS_PAIR) {
                if (IS_X_NEW) _tile_stream_loadd(5, x + TILE, LINE);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            add_terms<IS_PAIR, Terms, FIRST + 1>(from, by, meanwhile);
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
            if (IS_GELU) left = Format<Element>::activated(left), right = Format<Element>::activated(right);
            put(row, left, right);
        }
    }
};

}  // namespace
#endif
