// Products with a matrix that lies packed, in the order in which the processor multiplies it, and a projection with an
// adapter that is made of them.
//
// A weight (N, K) is packed in blocks of LANES outputs, the last one filled up with zeros: block after block, and
// within a block input after input, LANES values each; of bfloat16 two inputs side by side, as the processor multiplies
// them.

#pragma once

#include "kernels.h"

#include <memory>
#include <omp.h>

// The rows and blocks of a tile: as many as find a place in the processor's registers.
#if defined(__AVX512F__)
static const int ROWS = 8, BLOCKS = 3;
#else
static const int ROWS = 2, BLOCKS = 2;
#endif

// A matrix on the left (rows, K): entry (r, k) is at r * row + k * step, or, of pairs, the first of two at an even k.
template <typename T> struct Left {
    const T *x;
    long row, step;
    Left at(long r) const { return {x + r * row, row, step}; }
};

// Row by row.
template <typename T> static inline Left<T> by_rows(const T *x, long stride) { return {x, stride, 1}; }

static inline Floats everywhere(float x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_set1_ps(x);
#else
    return x - Floats{};
#endif
}

// Memory that is not cleared.
template <typename T> struct Room {
    std::unique_ptr<T[]> values;
    long size = 0;
    T *of(long wanted) {
        if (wanted > size) values.reset(new T[size = wanted]);
        return values.get();
    }
};

// One step along the inputs: SIZE of them. `Operand` is what the left side has to be for that; `operand` makes it so.
template <typename T> struct Step;

template <> struct Step<float> {
    static const long SIZE = 1;
    typedef float Operand;
    static inline Left<float> operand(Left<float> x, long, long, Room<float> &) { return x; }
    template <int R, int B>
    static inline void add(Floats (&sums)[R][B], const float *left, long row, const float *w, long block_stride) {
        Floats right[B];
        for (int b = 0; b < B; b++) right[b] = load(w + b * block_stride);
        for (int r = 0; r < R; r++) {
            const Floats value = everywhere(left[r * row]);
            for (int b = 0; b < B; b++) sums[r][b] += value * right[b];
        }
    }
};

// Pairs of bfloat16 are multiplied by the instruction for that, where it is the quickest way. On Intel's processors it
// takes four times as long as one on twice as wide values, so that these come to more: see `kernels._own_flags`.
#if defined(__AVX512BF16__) && !defined(LORAGYM_WIDENED)
template <> struct Step<bfloat16> {
    static const long SIZE = 2;
    typedef bfloat16 Operand;
    static inline Left<bfloat16> operand(Left<bfloat16> x, long, long, Room<float> &) { return x; }
    template <int R, int B>
    static inline void add(Floats (&sums)[R][B], const bfloat16 *left, long row, const bfloat16 *w, long block_stride) {
        __m512bh right[B];
        for (int b = 0; b < B; b++) right[b] = (__m512bh)_mm512_loadu_si512(w + b * block_stride);
        for (int r = 0; r < R; r++) {
            int32_t pair;
            std::memcpy(&pair, left + r * row, sizeof pair);
            const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
            for (int b = 0; b < B; b++) sums[r][b] = (Floats)_mm512_dpbf16_ps((__m512)sums[r][b], value, right[b]);
        }
    }
};
#else
template <> struct Step<bfloat16> {
    static const long SIZE = 2;
    typedef float Operand;
    static inline Left<float> operand(Left<bfloat16> x, long rows, long K, Room<float> &room) {
        // Lines of values that adjoin: a row, or, turned, all rows' pairs of one step. A cache keeps lines that are a
        // large power of two apart in the same few places, hence the room between them.
        const bool turned = x.step != 1;
        const long lines = turned ? K / SIZE : rows, length = turned ? SIZE * rows : K;
        const long apart = turned ? SIZE * x.step : x.row, stride = (length + 2 * LANES - 1) / LANES * LANES;
        float *to = room.of(lines * stride);
        for (long line = 0; line < lines; line++) {
            const bfloat16 *from = x.x + line * apart;
            float *place = to + line * stride;
            long i = 0;
            for (; i + LANES <= length; i += LANES) store(place + i, load(from + i));
            for (; i < length; i++) place[i] = widen(from[i]);
        }
        return turned ? Left<float>{to, SIZE, stride / SIZE} : Left<float>{to, stride, 1};
    }
    template <int R, int B>
    static inline void add(Floats (&sums)[R][B], const float *left, long row, const bfloat16 *w, long block_stride) {
        Words pairs[B];
        Floats right[B];
        for (int b = 0; b < B; b++) {
            std::memcpy(&pairs[b], w + b * block_stride, sizeof pairs[b]);
            right[b] = (Floats)(pairs[b] << 16);
        }
        for (int r = 0; r < R; r++) {
            const Floats value = everywhere(left[r * row]);
            for (int b = 0; b < B; b++) sums[r][b] += value * right[b];
        }
        for (int b = 0; b < B; b++) right[b] = (Floats)(pairs[b] & 0xffff0000u);
        for (int r = 0; r < R; r++) {
            const Floats value = everywhere(left[r * row + 1]);
            for (int b = 0; b < B; b++) sums[r][b] += value * right[b];
        }
    }
};
#endif

template <typename T> using Operand = typename Step<T>::Operand;

// Adds x w^T to the sums (R, B) of a tile, which may be `fresh`; `w` is the tile's first block, `next` what will be
// wanted after it, or null. Never inlined: compiled once for each shape of a tile, not for each use as well.
template <typename T, int R, int B>
__attribute__((noinline)) static void accumulate(Floats *sums, bool fresh, Left<Operand<T>> x, const T *w,
                                                 long block_stride, long K, const T *next) {
    Floats found[R][B];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) found[r][b] = fresh ? Floats{} : sums[r * B + b];
    // One pointer each that goes on, and no branch: the loop has no register to spare. With nothing to fetch, what is
    // at hand is fetched again.
    const Operand<T> *at = x.x;
    const T *fetched = next ? next : w;
    for (long k = 0; k < K; k += Step<T>::SIZE) {
        for (int b = 0; b < B; b++) __builtin_prefetch(fetched + b * block_stride, 0, 2);
        Step<T>::add(found, at, x.row, w, block_stride);
        at += Step<T>::SIZE * x.step;
        w += Step<T>::SIZE * LANES;
        fetched += Step<T>::SIZE * LANES;
    }
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) sums[r * B + b] = found[r][b];
}

template <typename T> using Accumulate = void (*)(Floats *, bool, Left<Operand<T>>, const T *, long, long, const T *);

template <typename T, int R> static Accumulate<T> of_blocks(long blocks) {
    if constexpr (BLOCKS > 2)
        if (blocks == 3) return accumulate<T, R, 3>;
    return blocks == 2 ? accumulate<T, R, 2> : accumulate<T, R, 1>;
}

// The function for tiles of a shape; rows are ROWS, or fewer by powers of two.
template <typename T> static Accumulate<T> accumulator(long rows, long blocks) {
    if constexpr (ROWS > 4)
        if (rows == 8) return of_blocks<T, 8>(blocks);
    if constexpr (ROWS > 2)
        if (rows == 4) return of_blocks<T, 4>(blocks);
    return rows == 2 ? of_blocks<T, 2>(blocks) : of_blocks<T, 1>(blocks);
}

// A product in parts: `finish` gets each with its first row and block, its sums (rows, blocks), and their numbers.
struct Tile {
    long row, block, rows, blocks;
    Floats sums[ROWS * BLOCKS];
};

// Calls f(row, block, sum) for each sum of a tile, whose shape is most often the full one, known when this is compiled.
template <typename Part, typename F> static inline void each(Part &tile, F f) {
    if (tile.rows == ROWS && tile.blocks == BLOCKS) {
#pragma GCC unroll 8
        for (long r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (long b = 0; b < BLOCKS; b++) f(r, b, tile.sums[r * BLOCKS + b]);
    } else {
        for (long r = 0; r < tile.rows; r++)
            for (long b = 0; b < tile.blocks; b++) f(r, b, tile.sums[r * tile.blocks + b]);
    }
}

// Adds a product with few inputs to a tile.
template <typename T> static inline void add_product(Tile &tile, Left<T> x, const T *w, long block_stride, long K) {
    static thread_local Room<float> room;
    accumulator<T>(tile.rows, tile.blocks)(tile.sums, false, Step<T>::operand(x, tile.rows, K, room), w, block_stride,
                                           K, nullptr);
}

static const auto NOTHING_AHEAD = [](Tile &) { return true; };

// Fetches the places of a tile's results, to be written to or read while it is finished.
template <int write, typename T> static inline void fetch(const T *place, long stride, long rows, long blocks) {
    for (long r = 0; r < rows; r++) {
        __builtin_prefetch(place + r * stride, write, 3);
        __builtin_prefetch(place + r * stride + blocks * LANES - 1, write, 3);
    }
}

// x (rows, K) times the blocks from `first` to `last` of a packed weight. `ahead` gets each tile before it is computed
// and says whether it begins with nothing; if not, it has put into the tile what it begins with.
template <typename T, typename Finish, typename Ahead = decltype(NOTHING_AHEAD)>
static inline void multiply(Left<T> x, long rows, const T *w, long block_stride, long K, long first, long last,
                            Finish finish, Ahead ahead = NOTHING_AHEAD) {
    static thread_local Room<float> room;
    const Left<Operand<T>> left = Step<T>::operand(x, rows, K, room);
    Tile tile;
    for (tile.block = first; tile.block < last; tile.block += tile.blocks) {
        // Four are two and two, for one alone leaves the processor waiting.
        tile.blocks = last - tile.block == 4 ? 2 : std::min<long>(BLOCKS, last - tile.block);
        const T *blocks = w + tile.block * block_stride;
        // While a tile computes on blocks that are at hand, the next ones are fetched: by the second, if there is one.
        const T *next = tile.block + 2 * BLOCKS <= last ? blocks + BLOCKS * block_stride : nullptr;
        const long fetching = rows >= 2 * ROWS ? ROWS : 0;
        for (tile.row = 0; tile.row < rows; tile.row += tile.rows) {
            tile.rows = ROWS;
            while (tile.rows > rows - tile.row) tile.rows /= 2;
            const bool fresh = ahead(tile);
            accumulator<T>(tile.rows, tile.blocks)(tile.sums, fresh, left.at(tile.row), blocks, block_stride, K,
                                                   tile.row == fetching ? next : nullptr);
            finish(tile);
        }
    }
}

// How a product is shared out among threads: columns first, for then each thread reads its own weights, and rows where
// there are few columns. Rows go block by block, so that a block's inputs stay at hand from one panel to the next.
struct Share {
    long from, to, first, last;  // rows and blocks
};

static inline Share share_of(long me, long team, long rows, long blocks) {
    long parts = 1;
    while (2 * parts <= team && blocks * parts < 2 * BLOCKS * team && rows >= 2 * parts * ROWS) parts *= 2;
    const long columns = std::max(1L, team / parts), part = me / columns, column = me % columns;
    if (part >= parts) return {0, 0, 0, 0};
    return {rows * part / parts, rows * (part + 1) / parts, blocks * column / columns, blocks * (column + 1) / columns};
}

static inline long rows_at_once(long K) { return std::max<long>(8 * ROWS, (1 << 17) / K / ROWS * ROWS); }

// Inputs that are multiplied at once where blocks are packed on the way, and values that are packed at once.
static const long INPUTS = 1024, PACKED = 1 << 21;

#if defined(__AVX512F__)
// The transpose of 16 by 16 words.
static inline void turn_words(const char *from, long stride, char *to) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * stride);
    for (int i = 0; i < 8; i++) {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            a[4 * i + 2 * j] = _mm512_unpacklo_epi64(b[4 * i + j], b[4 * i + j + 2]);
            a[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(b[4 * i + j], b[4 * i + j + 2]);
        }
    // a[4 i + c] has of the rows 4 i to 4 i + 3 the columns c, 4 + c, 8 + c and 12 + c, a quarter each.
    for (int c = 0; c < 4; c++) {
        const __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88),
                      high = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
        const __m512i low2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
        const __m512i high2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        _mm512_storeu_si512(to + 64 * c, _mm512_shuffle_i32x4(low, low2, 0x88));
        _mm512_storeu_si512(to + 64 * (8 + c), _mm512_shuffle_i32x4(low, low2, 0xdd));
        _mm512_storeu_si512(to + 64 * (4 + c), _mm512_shuffle_i32x4(high, high2, 0x88));
        _mm512_storeu_si512(to + 64 * (12 + c), _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
}
#endif

// Packs one block from the `count` rows of x that are its outputs, K values each.
template <typename T> static inline void pack_outputs(const T *x, long stride, long count, long K, T *to) {
    const long S = Step<T>::SIZE;
    long k = 0;
#if defined(__AVX512F__)
    if (count >= LANES)
        for (; k + 16 * S <= K; k += 16 * S)
            turn_words(reinterpret_cast<const char *>(x + k), stride * sizeof(T),
                       reinterpret_cast<char *>(to + k * LANES));
#endif
    for (; k < K; k += S)
        for (long lane = 0; lane < LANES; lane++) {
            T *place = to + k * LANES + lane * S;
            if (lane < count)
                std::memcpy(place, x + lane * stride + k, S * sizeof(T));
            else
                std::memset(place, 0, S * sizeof(T));
        }
}

static inline void interleave(const float *first, const float *, float *to) {
    std::memcpy(to, first, LANES * sizeof *to);
}

static inline void interleave(const bfloat16 *first, const bfloat16 *second, bfloat16 *to) {
    Halves low, high;
    std::memcpy(&low, first, sizeof low);
    std::memcpy(&high, second, sizeof high);
    const Words words = __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
    std::memcpy(to, &words, sizeof words);
}

// Packs blocks from rows of x that are their inputs, `blocks` * LANES outputs each; the inputs are filled up with zeros
// to a whole step. With a block stride of LANES * Step<T>::SIZE, and `step` the whole width, it is a matrix on the left
// instead: x transposed, see `turned`.
template <typename T>
static inline void pack_inputs(const T *x, long stride, long count, long blocks, T *to, long block_stride,
                               long step = LANES) {
    const long S = Step<T>::SIZE;
    const T zeros[LANES] = {};
    for (long k = 0; k < count; k += S)
        for (long block = 0; block < blocks; block++) {
            const T *first = x + k * stride + block * LANES;
            interleave(first, k + 1 < count ? first + stride : zeros, to + block * block_stride + k * step);
        }
}

// The transpose of x (count, blocks * LANES) as a matrix on the left: (blocks * LANES, count), filled up with a zero to
// a whole step. There is room for one more row than there are in `to`.
template <typename T> static inline Left<T> turned(const T *x, long stride, long count, long blocks, T *to) {
    pack_inputs(x, stride, count, blocks, to, LANES * Step<T>::SIZE, blocks * LANES);
    return {to, Step<T>::SIZE, blocks * LANES};
}

// x (rows, K) times blocks that are packed on the way: `pack` gets the first of them and their number, the first of
// some inputs and their number, and where to. Sums over more inputs than INPUTS are kept from one part to the next.
// `finish` gets each tile once, with its row and block, `ahead` before that.
template <typename T, typename Pack, typename Finish, typename Ahead>
static inline void multiply_packing(Left<T> x, long rows, long K, long first, long last, Room<T> &room, Pack pack,
                                    Finish finish, Ahead ahead) {
    static thread_local Room<float> sums;
    const long S = Step<T>::SIZE, parts = (K + INPUTS - 1) / INPUTS, depth = ((K + parts - 1) / parts + S - 1) / S * S;
    const long most = std::max<long>(1, PACKED / (depth * LANES * BLOCKS)) * BLOCKS;
    T *packed = room.of(std::min(most, last - first) * depth * LANES);
    for (long block = first; block < last; block += most) {
        const long count = std::min(most, last - block), width = count * LANES;
        float *kept = parts > 1 ? sums.of(rows * width) : nullptr;
        for (long k = 0; k < K; k += depth) {
            const long inputs = std::min(depth, K - k), at_once = rows_at_once(inputs);
            const bool ends = k + inputs == K;
            pack(block, count, k, inputs, packed);
            for (long row = 0; row < rows; row += at_once) {
                const Left<T> part{x.x + row * x.row + k * x.step, x.row, x.step};
                auto kept_at = [=](const Tile &tile) { return kept + (row + tile.row) * width + tile.block * LANES; };
                multiply<T>(
                    part, std::min(at_once, rows - row), packed, inputs * LANES, inputs, 0, count,
                    [=](Tile &tile) {
                        if (ends) return finish(tile, row + tile.row, block + tile.block);
                        float *to = kept_at(tile);
                        each(tile, [=](long r, long b, Floats sum) { store(to + r * width + b * LANES, sum); });
                    },
                    [=](Tile &tile) {
                        if (ends) ahead(tile, row + tile.row, block + tile.block);
                        if (!k) return true;
                        const float *from = kept_at(tile);
                        each(tile, [=](long r, long b, Floats &sum) { sum = load(from + r * width + b * LANES); });
                        return false;
                    });
            }
        }
    }
}

struct Projection {
    const void *weight, *bias;        // the bias may be null
    int64_t outputs, inputs, packed;  // whether the weight is packed, or row by row
};

// The adapter's part of a projection: `parts` adapters side by side, with ranks and outputs from each number to the
// next. `a` is packed as one weight (ranks, inputs); `b` part by part (its outputs, its ranks), scaled. Null where
// there is none.
struct Update {
    const void *a, *b;
    int64_t parts, ranks[4], outputs[4];
};

// y = x w^T + bias + residual and the adapter's update, rounded once; `inner` is the update's (rows, ranks). For a
// thread of a team; ends with a barrier.
template <typename T>
static void project(const T *x, long rows, const Projection &projection, const Update *update, T *inner,
                    const T *residual, T *y, Room<T> &room) {
    const long N = projection.outputs, K = projection.inputs;
    const long ranks = update && update->a ? update->ranks[update->parts] : 0;
    if (ranks) {
        const T *a = static_cast<const T *>(update->a);
        const Share share = share_of(omp_get_thread_num(), omp_get_num_threads(), rows, ranks / LANES);
        for (long row = share.from; row < share.to; row += rows_at_once(K))
            multiply<T>(by_rows(x + row * K, K), std::min(rows_at_once(K), share.to - row), a, K * LANES, K,
                        share.first, share.last, [=](const Tile &tile) {
                            T *place = inner + (row + tile.row) * ranks + tile.block * LANES;
                            each(tile, [=](long r, long b, Floats sum) { store(place + r * ranks + b * LANES, sum); });
                        });
#pragma omp barrier
    }
    const Share share = share_of(omp_get_thread_num(), omp_get_num_threads(), rows, N / LANES);
    const T *bias = static_cast<const T *>(projection.bias), *weight = static_cast<const T *>(projection.weight);
    const T *b = ranks ? static_cast<const T *>(update->b) : nullptr;
    for (long part = 0; part < (ranks ? update->parts : 1); part++) {
        const long begin = ranks ? update->outputs[part] / LANES : 0;
        const long end = ranks ? update->outputs[part + 1] / LANES : N / LANES;
        const long rank = ranks ? update->ranks[part + 1] - update->ranks[part] : 0;
        const T *left = rank ? inner + update->ranks[part] : nullptr, *right = b;
        auto finish = [=](Tile &tile, long row, long block) {
            const long place = row * N + block * LANES;
            if (bias) each(tile, [=](long, long b, Floats &sum) { sum += load(bias + (block + b) * LANES); });
            if (residual)
                each(tile, [=](long r, long b, Floats &sum) { sum += load(residual + place + r * N + b * LANES); });
            if (rank)
                add_product<T>(tile, by_rows(left + row * ranks, ranks), right + (block - begin) * rank * LANES,
                               rank * LANES, rank);
            each(tile, [=](long r, long b, Floats sum) { store(y + place + r * N + b * LANES, sum); });
        };
        auto ahead = [=](const Tile &tile, long row, long block) {
            fetch<1>(y + row * N + block * LANES, N, tile.rows, tile.blocks);
            if (residual) fetch<0>(residual + row * N + block * LANES, N, tile.rows, tile.blocks);
        };
        const long first = std::max(share.first, begin), last = std::min(share.last, end);
        if (projection.packed)
            for (long start = share.from; start < share.to; start += rows_at_once(K))
                multiply<T>(
                    by_rows(x + start * K, K), std::min(rows_at_once(K), share.to - start), weight, K * LANES, K, first,
                    last, [=](Tile &tile) { finish(tile, start + tile.row, tile.block); },
                    [=](const Tile &tile) {
                        ahead(tile, start + tile.row, tile.block);
                        return true;
                    });
        else
            multiply_packing<T>(
                by_rows(x + share.from * K, K), share.to - share.from, K, first, last, room,
                [=](long block, long count, long k, long inputs, T *to) {
                    for (long i = 0; i < count; i++)
                        pack_outputs(weight + (block + i) * LANES * K + k, K, LANES, inputs, to + i * inputs * LANES);
                },
                [=](Tile &tile, long row, long block) { finish(tile, share.from + row, block); },
                [=](const Tile &tile, long row, long block) { ahead(tile, share.from + row, block); });
        if (rank) b += (end - begin) * LANES * rank;
    }
#pragma omp barrier
}
