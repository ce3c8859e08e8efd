// What a decode step does besides matrix products, each in one pass over memory, on one thread.
//
// Every function here has a plain counterpart in torch that defines what it computes; see `native/__init__.py`. Tensors are
// contiguous, but rows of logits or scores lie `stride` apart. Shape letters: B rows, E width, H heads, D head size, T
// positions, V vocabulary, K kept.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "attention.h"
#include "norm.h"
#include "vectors.h"

namespace {

struct Scored {
    float score;
    int32_t token;
};

inline bool comes_first(const Scored& one, const Scored& other) {
    return one.score > other.score || (one.score == other.score && one.token < other.token);
}

constexpr int64_t BLOCK = 2 * LANES;

// Highest of each lane of `count` scores, a multiple of PAIR; NaN is passed over.
template <typename Element>
inline Floats best_lanes(const Element* scores, int64_t count) {
    Floats best = broadcast(-INF);
    for (int64_t place = 0; place < count; place += PAIR) {
        const Pair next = load_pair(scores + place);
        best = higher(next.second, higher(next.first, best));
    }
    return best;
}

template <typename Element>
inline float best_of(const Element* scores, int64_t count) {
    const int64_t whole = count / PAIR * PAIR;
    float top = highest(best_lanes(scores, whole));
    for (int64_t place = whole; place < count; ++place) top = std::max(top, to_float(scores[place]));
    return top;
}

// Best score of each block of so many tokens, the last one shorter; returns the best of all.
template <int64_t SIZE, typename Element>
float block_maxima(const Element* scores, int64_t vocab, std::vector<float>& maxima) {
    maxima.resize((vocab + SIZE - 1) / SIZE);
    int64_t start = 0, block = 0;
    for (; start + LANES * SIZE <= vocab; start += LANES * SIZE, block += LANES) {
        Floats best[LANES];
        for (int i = 0; i < LANES; ++i) best[i] = best_lanes(scores + start + i * SIZE, SIZE);
        store(maxima.data() + block, tops(best));
    }
    for (; start < vocab; start += SIZE) maxima[block++] = best_of(scores + start, std::min(SIZE, vocab - start));
    return best_of(maxima.data(), maxima.size());
}

// Finds the best tokens of a row, by the best of each block of its tokens and the best of each block of those.
class Finder {
  public:
    // Looks at a row; returns its best score.
    template <typename Element>
    float look_at(const Element* scores, int64_t vocab) {
        block_maxima<BLOCK>(scores, vocab, maxima);
        return block_maxima<BLOCK>(maxima.data(), maxima.size(), crests);
    }

    // The k best tokens of the row, by score descending, then token id ascending, and their scores.
    template <typename Element, typename Id>
    void find(const Element* scores, int64_t vocab, int64_t k, Id* token_ids, float* values) {
        if (k == 0) return;
        const float least = bound(k);
        found.clear();
        each_from(least, [&](int64_t block) {
            const int64_t start = block * BLOCK, end = std::min<int64_t>(start + BLOCK, vocab);
            for (int64_t token = start; token < end; ++token) {
                const float score = to_float(scores[token]);
                if (score >= least) found.push_back({score, static_cast<int32_t>(token)});
            }
        });
        while (static_cast<int64_t>(found.size()) < k) found.push_back({std::nanf(""), 0});  // the row holds NaN
        if (k < static_cast<int64_t>(found.size())) {
            std::nth_element(found.begin(), found.begin() + k, found.end(), comes_first);
        }
        std::sort(found.begin(), found.begin() + k, comes_first);
        for (int64_t place = 0; place < k; ++place) {
            token_ids[place] = found[place].token, values[place] = found[place].score;
        }
    }

  private:
    std::vector<float> maxima, crests, some;  // of blocks; of blocks of those
    std::vector<Scored> found;

    // The k-th best maximum, which bounds the k best scores; those of blocks bound it in turn.
    float bound(int64_t k) {
        if (k > static_cast<int64_t>(maxima.size())) return -INF;
        some = crests;
        const float least = k > static_cast<int64_t>(crests.size()) ? -INF : kth(k);
        some.clear();
        each_from(least, [&](int64_t block) { some.push_back(maxima[block]); });
        return kth(k);
    }

    float kth(int64_t k) {
        std::nth_element(some.begin(), some.begin() + (k - 1), some.end(), std::greater<float>());
        return some[k - 1];
    }

    // Calls with each block whose best score is at least so high.
    template <typename Call>
    void each_from(float least, const Call& call) const {
        for (size_t set = 0; set < crests.size(); ++set) {
            if (crests[set] < least) continue;
            for (size_t block = set * BLOCK, end = std::min(block + BLOCK, maxima.size()); block < end; ++block) {
                if (maxima[block] >= least) call(block);
            }
        }
    }
};

// What the tokens of a row weigh beside the best one.
struct Shares {
    double sum = 0, weighted = 0, broken = 0;  // of shares, of shares times their logarithms, of NaN

    float log_sum() const { return static_cast<float>(std::log(sum) + broken); }
};

// Fetches a row, or nothing where there is none.
template <typename Element>
Fetch fetching(const Element* scores, int64_t vocab, int64_t calls) {
    return Fetch(scores, scores + vocab / 2, vocab * sizeof(Element) / 2, calls);
}

template <bool WITH_WEIGHTED, typename Element>
Shares shares_of(const Element* scores, int64_t vocab, float best, float temperature, Fetch fetch) {
    Shares found;
    Floats sums{}, moments{}, marks{};
    const auto add = [&](Floats below) {
        if (temperature != 1) below /= temperature;
        const Floats share = exp_nonpositive(below);
        sums += share;
        if (WITH_WEIGHTED) moments += share * (below < -87.0f ? Floats{} : below);
        marks = below != below ? below : marks;
    };
    int64_t token = 0;
    for (int64_t round = 0; token + PAIR <= vocab; token += PAIR) {
        const Pair pair = load_pair(scores + token);
        add(pair.first - best), add(pair.second - best);
        fetch.some();
        if (++round % 32 == 0) {  // float32 holds so many; their sum is kept in float64
            found.sum += total(sums), found.weighted += total(moments);
            sums = Floats{}, moments = Floats{};
        }
    }
    found.sum += total(sums), found.weighted += total(moments), found.broken += total(marks);
    for (; token < vocab; ++token) {
        const double below = (static_cast<double>(to_float(scores[token])) - best) / temperature;
        if (below != below) found.broken = below;
        if (below < -87) continue;
        found.sum += std::exp(below), found.weighted += std::exp(below) * below;
    }
    return found;
}

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15;

constexpr int HASHES = 8;
typedef uint64_t Hashes __attribute__((vector_size(8 * HASHES), aligned(8), may_alias));

template <typename Bits>
inline Bits nearly_mixed(Bits x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    return (x ^ (x >> 27)) * 0x94D049BB133111EB;
}

inline uint64_t mix(uint64_t x) {  // the finaliser of splitmix64
    x = nearly_mixed(x);
    return x ^ (x >> 31);
}

inline double gumbel(uint64_t bits) {
    const double uniform = (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
    return -std::log(-std::log(uniform));
}

// Orders floats from the highest down; both zeros are alike.
inline uint32_t descending(float value) {
    value += 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits >> 31 ? bits : ~bits & 0x7FFFFFFF;
}

// Tokens whose keys lie from `start` to before `end`: what they weigh, and how many they are.
struct Range {
    int64_t start, end;
    double mass;
    int64_t count;
};

Range range(const uint32_t* keys, const float* weights, int64_t vocab, int64_t start, int64_t end) {
    constexpr int WIDE = 8;
    typedef uint32_t Keys __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
    typedef float Weights __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
    typedef double Masses __attribute__((vector_size(8 * WIDE)));
    const uint32_t first = start, width = end - start;
    Masses masses{};
    Keys counts{};
    int64_t token = 0;
    for (; token + WIDE <= vocab; token += WIDE) {
        const auto is_in = (*reinterpret_cast<const Keys*>(keys + token) - first) < width;  // all bits set where it is
        const Weights weight = is_in ? *reinterpret_cast<const Weights*>(weights + token) : Weights{};
        masses += __builtin_convertvector(weight, Masses);
        counts -= reinterpret_cast<const Keys&>(is_in);
    }
    Range found{start, end, 0, 0};
    for (int lane = 0; lane < WIDE; ++lane) found.mass += masses[lane], found.count += counts[lane];
    for (; token < vocab; ++token) {
        if (keys[token] - first < width) found.mass += weights[token], ++found.count;
    }
    return found;
}

template <typename Element>
void measure(const Element* logits, int64_t rows, int64_t vocab, int64_t stride, int64_t k, float* log_normalisers,
             float* entropies, int32_t* token_ids, float* probs) {
    Finder finder;
    for (int64_t row = 0; row < rows; ++row, logits += stride) {
        const float best = finder.look_at(logits, vocab);
        log_normalisers[row] = best, entropies[row] = std::nanf("");
        if (std::isfinite(best)) {
            const Shares shares = shares_of<true>(logits, vocab, best, 1, fetching(logits + stride, vocab, 1 + vocab / PAIR));
            log_normalisers[row] = best + shares.log_sum();
            entropies[row] = static_cast<float>(std::log(shares.sum) - shares.weighted / shares.sum);
        }
        float* own = probs + row * k;
        finder.find(logits, vocab, k, token_ids + row * k, own);
        for (int64_t place = 0; place < k; ++place) own[place] = std::exp(own[place] - log_normalisers[row]);
    }
}

template <typename Element>
void top_k(const Element* scores, int64_t rows, int64_t vocab, int64_t stride, int64_t k, int64_t* token_ids, float* values) {
    Finder finder;
    for (int64_t row = 0; row < rows; ++row, scores += stride) {
        finder.look_at(scores, vocab);
        finder.find(scores, vocab, k, token_ids + row * k, values + row * k);
    }
}

// Meanwhile the row at `next` is fetched.
template <typename Element>
int64_t rank_of(const Element* scores, int64_t vocab, int64_t chosen, const Element* next) {
    constexpr int64_t CHUNK = 512;
    Fetch fetch = fetching(next, vocab, 1 + vocab / CHUNK);
    const float score = to_float(scores[chosen]);
    int32_t above = 0, tied = 0;
    for (int64_t start = 0; start < vocab; start += CHUNK) {
        fetch.some();
        const int64_t end = std::min(start + CHUNK, vocab);
        for (int64_t token = start; token < end; ++token) above += to_float(scores[token]) > score;
    }
    for (int64_t token = 0; token < chosen; ++token) tied += to_float(scores[token]) == score;
    return 1 + above + tied;
}

template <typename Element>
void rank(const Element* scores, int64_t vocab, int64_t stride, const int64_t* rows, const int64_t* tokens, int64_t count,
          int64_t* ranks) {
    for (int64_t index = 0; index < count; ++index) {
        const Element* next = scores + rows[std::min(index + 1, count - 1)] * stride;
        ranks[index] = rank_of(scores + rows[index] * stride, vocab, tokens[index], next);
    }
}

template <typename Element>
void score(const Element* logits, int64_t vocab, int64_t stride, const float* log_normalisers, const int32_t* best, int64_t k,
           const int64_t* rows, const int64_t* tokens, int64_t count, float* logprobs, int64_t* ranks) {
    for (int64_t index = 0; index < count; ++index) {
        const int64_t row = rows[index], token = tokens[index];
        const int32_t *first = best + row * k, *found = std::find(first, first + k, token);
        const Element *own = logits + row * stride, *next = logits + rows[std::min(index + 1, count - 1)] * stride;
        logprobs[index] = to_float(own[token]) - log_normalisers[row];
        ranks[index] = found < first + k ? found - first + 1 : rank_of(own, vocab, token, next);
    }
}

// What the hashes of tokens from `first` to before `end` are at most, told from their upper 31 bits, which the last step of
// `mix` leaves as they are. `ids` are those of `draw`; `lanes` holds what is mixed for tokens 0 to 7.
inline uint64_t highest_hash(int64_t first, int64_t end, const int64_t* ids, uint64_t key, Hashes lanes) {
    if ((end - first) % HASHES) return UINT64_MAX;
    Hashes most{};
    for (; first < end; first += HASHES) {
        const Hashes own = ids ? *reinterpret_cast<const Hashes*>(ids + first) * GOLDEN + key : lanes + first * GOLDEN;
        const Hashes bits = nearly_mixed(own);
        most = bits > most ? bits : most;
    }
    uint64_t highest = 0;
    for (int lane = 0; lane < HASHES; ++lane) highest = std::max<uint64_t>(highest, most[lane]);
    return highest | UINT64_MAX >> 31;
}

// The least hash whose noise can lift a score to `best`; a little less, because both sides are rounded.
inline uint64_t needed_hash(float score, double best) {
    const double uniform = std::exp(-std::exp(score - best + 1e-6)) * (1 - 1e-9);
    return static_cast<uint64_t>(uniform * 0x1p52) << 12;
}

template <typename Element>
void draw(const Element* logits, const int64_t* token_ids, int64_t rows, int64_t vocab, int64_t stride, float temperature,
          const int64_t* seeds, const int64_t* steps, const float* log_normalisers, int64_t* tokens, float* logprobs) {
    constexpr int64_t CHUNK = 512, FEW = 64;
    std::vector<float> maxima;
    for (int64_t row = 0; row < rows; ++row, logits += stride) {
        Fetch fetch = fetching(logits + stride, vocab, 1 + vocab / CHUNK);
        const float top = block_maxima<CHUNK>(logits, vocab, maxima);
        if (top <= std::numeric_limits<float>::lowest()) {
            tokens[row] = 0, logprobs[row] = -INF;
            continue;
        }
        const auto score = [&](float logit) { return (logit - top) / temperature; };  // at most 0: none overflows
        const uint64_t key = mix(mix(static_cast<uint64_t>(seeds[row]) + GOLDEN) ^ static_cast<uint64_t>(steps[row]));
        const int64_t* ids = token_ids ? token_ids + row * vocab : nullptr;
        const auto hash = [&](int64_t token) { return mix((ids ? ids[token] : token) * GOLDEN + key); };
        Hashes lanes;
        for (int lane = 0; lane < HASHES; ++lane) lanes[lane] = lane * GOLDEN + key;
        // The most probable token first: of the others few can beat it.
        int64_t chosen = (std::find(maxima.begin(), maxima.end(), top) - maxima.begin()) * CHUNK;
        while (to_float(logits[chosen]) != top) ++chosen;
        double best = gumbel(hash(chosen));
        for (int64_t start = 0; start < vocab; start += CHUNK) {
            const int64_t end = std::min(start + CHUNK, vocab);
            const uint64_t least = needed_hash(score(maxima[start / CHUNK]), best);
            fetch.some();
            for (int64_t first = start, last; first < end; first = last) {
                last = std::min(first + FEW, end);
                const uint64_t most = highest_hash(first, last, ids, key, lanes);
                if (most < least) continue;
                const uint64_t needed = needed_hash(score(best_of(logits + first, last - first)), best);
                if (most < needed) continue;
                for (int64_t token = first; token < last; ++token) {
                    const uint64_t bits = hash(token);
                    if (bits < needed || to_float(logits[token]) == -INF) continue;
                    const double value = score(to_float(logits[token])) + gumbel(bits);
                    if (value > best || (value == best && token < chosen)) best = value, chosen = token;
                }
            }
        }
        tokens[row] = ids ? ids[chosen] : chosen;
        const float found = to_float(logits[chosen]);
        logprobs[row] = log_normalisers ? found / temperature - log_normalisers[row]
                                        : score(found) - shares_of<false>(logits, vocab, top, temperature, fetch).log_sum();
    }
}

}  // namespace

extern "C" {

// Keep the key and value of each of N tokens at its place in its slot, then attend from it to its slot up to there. `fused` (N,
// 3HD) holds queries, keys and values; `kept` the keys and values of a slot, (H, 2T, D), where `starts` and `capacities`, (C,),
// say; `slots`, `positions` (N,): tokens of one slot stand together, in the order of their positions, which follow each other;
// `out` (N, HD).
void attend_float32(const float* fused, float* kept, const int64_t* starts, const int64_t* capacities, const int64_t* slots,
                    const int64_t* positions, int64_t count, int64_t heads, int64_t size, float scale, float* out) {
    const Layout by_rows{3 * heads * size, GROUP};
    attend({fused, by_rows}, kept, {starts, capacities}, slots, positions, count, heads, size, scale, out);
}

void attend_bfloat16(const BFloat16* fused, BFloat16* kept, const int64_t* starts, const int64_t* capacities,
                     const int64_t* slots, const int64_t* positions, int64_t count, int64_t heads, int64_t size, float scale,
                     BFloat16* out) {
    const Layout by_rows{3 * heads * size, GROUP};
    attend({fused, by_rows}, kept, {starts, capacities}, slots, positions, count, heads, size, scale, out);
}

// Normalise each row of `x` (B, E) into `out`; `weight`, `bias` (E,). First add `update` (B, E) to it, in place, unless that is
// null.
void add_norm_float32(float* x, const float* update, const float* weight, const float* bias, int64_t rows, int64_t width,
                      float epsilon, float* out) {
    add_norm(x, update, Norm<float>{weight, bias}, rows, width, epsilon, out);
}

void add_norm_bfloat16(BFloat16* x, const BFloat16* update, const BFloat16* weight, const BFloat16* bias, int64_t rows,
                       int64_t width, float epsilon, BFloat16* out) {
    add_norm(x, update, Norm<BFloat16>{weight, bias}, rows, width, epsilon, out);
}

// Per row of `logits` (B, V): log-sum-exp and entropy (B,), and the k best tokens with their probabilities (B, K).
void measure_float32(const float* logits, int64_t rows, int64_t vocab, int64_t stride, int64_t k, float* log_normalisers,
                     float* entropies, int32_t* token_ids, float* probs) {
    measure(logits, rows, vocab, stride, k, log_normalisers, entropies, token_ids, probs);
}

void measure_bfloat16(const BFloat16* logits, int64_t rows, int64_t vocab, int64_t stride, int64_t k, float* log_normalisers,
                      float* entropies, int32_t* token_ids, float* probs) {
    measure(logits, rows, vocab, stride, k, log_normalisers, entropies, token_ids, probs);
}

// The k best tokens of each row of `scores` (B, V), and their scores, (B, K).
void top_k_float32(const float* scores, int64_t rows, int64_t vocab, int64_t stride, int64_t k, int64_t* token_ids,
                   float* values) {
    top_k(scores, rows, vocab, stride, k, token_ids, values);
}

void top_k_bfloat16(const BFloat16* scores, int64_t rows, int64_t vocab, int64_t stride, int64_t k, int64_t* token_ids,
                    float* values) {
    top_k(scores, rows, vocab, stride, k, token_ids, values);
}

// Rank of `tokens` (N,) in the rows `rows` (N,) of `scores` (B, V), from 1, ties by lower token id.
void rank_float32(const float* scores, int64_t vocab, int64_t stride, const int64_t* rows, const int64_t* tokens,
                  int64_t count, int64_t* ranks) {
    rank(scores, vocab, stride, rows, tokens, count, ranks);
}

void rank_bfloat16(const BFloat16* scores, int64_t vocab, int64_t stride, const int64_t* rows, const int64_t* tokens,
                   int64_t count, int64_t* ranks) {
    rank(scores, vocab, stride, rows, tokens, count, ranks);
}

// Log-probability and rank of `tokens` (N,) in the rows `rows` (N,) of `logits` (B, V), given their log-sum-exps (B,) and best
// tokens, (B, K) in order.
void score_float32(const float* logits, int64_t vocab, int64_t stride, const float* log_normalisers, const int32_t* best,
                   int64_t k, const int64_t* rows, const int64_t* tokens, int64_t count, float* logprobs, int64_t* ranks) {
    score(logits, vocab, stride, log_normalisers, best, k, rows, tokens, count, logprobs, ranks);
}

void score_bfloat16(const BFloat16* logits, int64_t vocab, int64_t stride, const float* log_normalisers, const int32_t* best,
                    int64_t k, const int64_t* rows, const int64_t* tokens, int64_t count, float* logprobs, int64_t* ranks) {
    score(logits, vocab, stride, log_normalisers, best, k, rows, tokens, count, logprobs, ranks);
}

// Gumbel-max over each row of `logits` (B, V) at a temperature: `seeds`, `steps` (B,); `tokens`, `logprobs` (B,) of what
// was drawn. `token_ids` (B, V), ascending, where the columns are not all tokens in order. `log_normalisers` (B,) are the
// log-sum-exps of logits over temperature, or null.
void draw_float32(const float* logits, const int64_t* token_ids, int64_t rows, int64_t vocab, int64_t stride,
                  float temperature, const int64_t* seeds, const int64_t* steps, const float* log_normalisers,
                  int64_t* tokens, float* logprobs) {
    draw(logits, token_ids, rows, vocab, stride, temperature, seeds, steps, log_normalisers, tokens, logprobs);
}

void draw_bfloat16(const BFloat16* logits, const int64_t* token_ids, int64_t rows, int64_t vocab, int64_t stride,
                   float temperature, const int64_t* seeds, const int64_t* steps, const float* log_normalisers,
                   int64_t* tokens, float* logprobs) {
    draw(logits, token_ids, rows, vocab, stride, temperature, seeds, steps, log_normalisers, tokens, logprobs);
}

// Which tokens of each row are the fewest, most preferred first, whose weights reach `goals` (B,): `preferences`, `weights`,
// `is_kept` (B, V). Halves the range of preferences in which the goal is crossed until few tokens are left to sort.
void keep_mass(const float* preferences, const float* weights, const double* goals, int64_t rows, int64_t vocab,
               bool* is_kept) {
    constexpr int64_t FEW = 128;
    std::vector<uint32_t> keys(vocab);
    std::vector<std::pair<uint32_t, int32_t>> found;
    for (int64_t row = 0; row < rows; ++row) {
        const float* weight = weights + row * vocab;
        bool* kept = is_kept + row * vocab;
        for (int64_t token = 0; token < vocab; ++token) keys[token] = descending(preferences[row * vocab + token]);
        uint32_t first = UINT32_MAX, last = 0;
        for (int64_t token = 0; token < vocab; ++token) {
            first = std::min(first, keys[token]), last = std::max(last, keys[token]);
        }
        Range left{first, static_cast<int64_t>(last) + 1, 0, vocab};  // tokens before it are kept, those after it are not
        double reached = 0;
        while (left.count > FEW && left.end - left.start > 1) {
            const Range upper = range(keys.data(), weight, vocab, left.start, (left.start + left.end) / 2);
            if (reached + upper.mass < goals[row]) {
                reached += upper.mass;
                left.start = upper.end, left.count -= upper.count;
            } else {
                left.end = upper.end, left.count = upper.count;
            }
        }
        found.clear();
        first = left.start, last = left.end - 1;
        for (int64_t token = 0; token < vocab; ++token) kept[token] = keys[token] < first;
        for (int64_t token = 0; token < vocab; ++token) {
            if (keys[token] - first <= last - first) found.push_back({keys[token], static_cast<int32_t>(token)});
        }
        std::sort(found.begin(), found.end());
        for (const auto& [key, token] : found) {
            if (!(reached < goals[row])) break;
            kept[token] = true;
            reached += weight[token];
        }
    }
}

// Scores and ids of the tokens kept of each row, (B, W), of `scores`, `is_kept` and `token_ids` (B, V), these as in `draw`.
// What a row does not fill is left as it is.
void pack(const float* scores, const int64_t* token_ids, const bool* is_kept, int64_t rows, int64_t vocab, int64_t width,
          float* packed, int64_t* packed_ids) {
    for (int64_t row = 0; row < rows; ++row) {
        int64_t place = row * width;
        for (int64_t at = row * vocab; at < (row + 1) * vocab; ++at) {
            if (is_kept[at]) packed[place] = scores[at], packed_ids[place++] = token_ids ? token_ids[at] : at - row * vocab;
        }
    }
}

}  // extern "C"
