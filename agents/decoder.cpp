// Products with packed weights, and the decoding step that is made of them: one new token for each of some rows, through
// all layers of a decoder in one call. What an operator costs to start is paid once a step, and the threads go on from
// one part to the next by barriers alone.
//
// A weight (N, K) is packed in blocks of LANES outputs, the last one filled up with zeros: block after block, and within
// a block input after input, LANES values each; of bfloat16 two inputs side by side, as the processor multiplies them.

#include "kernels.h"

#include <omp.h>

// The rows and blocks of a tile: as many as find a place in the processor's registers.
#if defined(__AVX512F__)
static const int ROWS = 8, BLOCKS = 3;
#else
static const int ROWS = 2, BLOCKS = 2;
#endif

template <typename T> struct Step;

template <> struct Step<float> {
    static const long SIZE = 1;
    typedef Floats Weights;
    static inline Floats left(const float *x) { return Floats{} + *x; }
    static inline Floats weights(const float *w) { return load(w); }
    static inline void add(Floats &sum, Floats left, Floats right) { sum += left * right; }
};

#if defined(__AVX512BF16__)
template <> struct Step<bfloat16> {
    static const long SIZE = 2;
    typedef __m512bh Weights;
    static inline __m512bh left(const bfloat16 *x) {
        int32_t pair;
        std::memcpy(&pair, x, sizeof pair);
        return (__m512bh)_mm512_set1_epi32(pair);
    }
    static inline __m512bh weights(const bfloat16 *w) { return (__m512bh)_mm512_loadu_si512(w); }
    static inline void add(Floats &sum, __m512bh left, __m512bh right) {
        sum = (Floats)_mm512_dpbf16_ps((__m512)sum, left, right);
    }
};
#endif

static inline Floats rounded_floats(const float *, Floats x) { return x; }

static inline Floats rounded_floats(const bfloat16 *, Floats x) {
    bfloat16 kept[LANES];
    store(kept, x);
    return load(kept);
}

// Adds x w^T to the sums (R, B) of a tile; `w` is the tile's first block, `next` what will be wanted after it, or null.
// Never inlined: compiled once for each shape of a tile, not for each use as well.
template <typename T, int R, int B>
__attribute__((noinline)) static void accumulate(Floats *sums, const T *x, long x_stride, const T *w,
                                                 long block_stride, long K, const T *next) {
    Floats found[R][B];
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) found[r][b] = sums[r * B + b];
    for (long k = 0; k < K; k += Step<T>::SIZE) {
        typename Step<T>::Weights right[B];
        for (int b = 0; b < B; b++) right[b] = Step<T>::weights(w + b * block_stride + k * LANES);
        if (next)
            for (int b = 0; b < B; b++) __builtin_prefetch(next + b * block_stride + k * LANES, 0, 2);
        for (int r = 0; r < R; r++) {
            auto left = Step<T>::left(x + r * x_stride + k);
            for (int b = 0; b < B; b++) Step<T>::add(found[r][b], left, right[b]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) sums[r * B + b] = found[r][b];
}

template <typename T> using Accumulate = void (*)(Floats *, const T *, long, const T *, long, long, const T *);

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

// x (rows, K) times the blocks from `first` to `last` of a packed weight.
template <typename T, typename Finish>
static inline void multiply(const T *x, long rows, long x_stride, const T *w, long block_stride, long K, long first,
                            long last, Finish finish) {
    Tile tile;
    for (tile.block = first; tile.block < last; tile.block += tile.blocks) {
        tile.blocks = std::min<long>(BLOCKS, last - tile.block);
        const T *blocks = w + tile.block * block_stride;
        // While a tile computes on blocks that are at hand, the next ones are fetched: by the second, if there is one.
        const T *next = tile.block + 2 * BLOCKS <= last ? blocks + BLOCKS * block_stride : nullptr;
        const long fetching = rows >= 2 * ROWS ? ROWS : 0;
        for (tile.row = 0; tile.row < rows; tile.row += tile.rows) {
            tile.rows = ROWS;
            while (tile.rows > rows - tile.row) tile.rows /= 2;
            for (long i = 0; i < tile.rows * tile.blocks; i++) tile.sums[i] = Floats{};
            accumulator<T>(tile.rows, tile.blocks)(tile.sums, x + tile.row * x_stride, x_stride, blocks, block_stride,
                                                   K, tile.row == fetching ? next : nullptr);
            finish(tile);
        }
    }
}

// Packs a weight whose entry (n, k) is at n * n_stride + k * k_stride; inputs are filled up to `padded`.
template <typename T>
static void pack(const T *weight, T *to, long N, long K, long n_stride, long k_stride, long padded, int threads) {
    const long blocks = (N + LANES - 1) / LANES, S = Step<T>::SIZE;
#pragma omp parallel for num_threads(threads) if (N * padded > WORTH_THREADS)
    for (long block = 0; block < blocks; block++)
        for (long k = 0; k < padded; k++)
            for (long lane = 0; lane < LANES; lane++) {
                const long n = block * LANES + lane;
                to[(block * padded + k / S * S) * LANES + lane * S + k % S] =
                    n < N && k < K ? weight[n * n_stride + k * k_stride] : narrow<T>(0.0f);
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

// y = x w^T + bias + other; bias and other may be null, and other may be y.
template <typename T>
static void product(const T *x, const T *w, const T *bias, const T *other, T *y, long rows, long N, long K,
                    int threads) {
    const long blocks = (N + LANES - 1) / LANES;
    auto finish = [=](const Tile &tile, long row) {
        for (long r = 0; r < tile.rows; r++)
            for (long b = 0; b < tile.blocks; b++) {
                const long column = (tile.block + b) * LANES, place = (row + tile.row + r) * N + column;
                Floats value = tile.sums[r * tile.blocks + b];
                if (column + LANES <= N) {
                    if (bias) value += load(bias + column);
                    if (other) value += load(other + place);
                    store(y + place, value);
                    continue;
                }
                float values[LANES];
                store(values, value);
                for (long i = 0; i < N - column; i++) {
                    if (bias) values[i] += widen(bias[column + i]);
                    if (other) values[i] += widen(other[place + i]);
                    y[place + i] = narrow<T>(values[i]);
                }
            }
    };
#pragma omp parallel num_threads(threads)
    {
        const Share share = share_of(omp_get_thread_num(), omp_get_num_threads(), rows, blocks);
        for (long row = share.from; row < share.to; row += rows_at_once(K))
            multiply<T>(x + row * K, std::min(rows_at_once(K), share.to - row), K, w, K * LANES, K, share.first,
                        share.last, [=](const Tile &tile) { finish(tile, row); });
    }
}

struct Norm {
    const void *weight;  // null: there is none
    double offset, eps;
};

struct Projection {
    const void *weight, *bias;  // packed; the bias may be null
    int64_t outputs, inputs;
};

// The adapter's part of a projection: `parts` adapters side by side, with ranks and outputs from each number to the next.
// `a` is packed as one weight (ranks, inputs); `b` part by part (its outputs, its ranks), scaled. Null where there is none.
struct Update {
    const void *a, *b;
    int64_t parts, ranks[4], outputs[4];
};

struct Layer {
    Projection qkv, o, gate_up, down;
    Norm before_attention, after_attention, before_mlp, after_mlp, of_queries, of_keys;
    int64_t angles, window;
    double scale, softcap;
};

struct Model {
    const Layer *layers;
    int64_t count, hidden, heads, groups, head_size, activation;
};

// A decoding step.
struct Call {
    void *x;  // (rows, hidden): the embedded tokens, which become the last layer's states
    int64_t rows;
    const Update *updates;  // for each layer those of qkv, o, gate_up and down; null without an adapter
    const void *const *cosines, *const *sines;  // (rows, head_size) for each kind of angles
    void *const *keys, *const *values;          // each layer's caches (at least rows, groups, capacity, head_size)
    int64_t capacity;
    const int64_t *places;          // (rows): where the row's new token goes in its cache
    const int64_t *prompt_lengths;  // (rows): tokens of a shared prompt in front of the cache
    const int64_t *chunks;          // (chunks, 4): wave, or -1; prompt in the wave; first and number of `members`
    const int64_t *members;         // rows that have the same prompt
    int64_t chunk_count;
    const void *const *wave_keys, *const *wave_values;  // (layers, waves): (prompts, groups) packed weights
    const int64_t *wave_lengths;                        // (waves): the tokens that their caches have room for
    int64_t waves;
};

template <typename T> static inline void norm_into(const Norm &norm, const T *in, T *out, long size) {
    norm_row(in, static_cast<const T *>(norm.weight), out, size, norm.offset, norm.eps);
}

// The functions below are for a thread of a team; each ends with a barrier.

template <typename T> static void norm_rows(const Norm &norm, const T *in, T *out, long rows, long size) {
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++) norm_into(norm, in + row * size, out + row * size, size);
}

template <typename T> static void add_normed_rows(const Norm &norm, T *in, T *to, long rows, long size) {
#pragma omp for schedule(static)
    for (long row = 0; row < rows; row++) {
        T *from = in + row * size, *x = to + row * size;
        norm_into(norm, from, from, size);
#pragma omp simd
        for (long i = 0; i < size; i++) x[i] = narrow<T>(widen(x[i]) + widen(from[i]));
    }
}

template <typename T, int activation> static void gate_rows(const T *gate_up, T *out, long rows, long size) {
    const long PART = 512, parts = (size + PART - 1) / PART;
#pragma omp for collapse(2) schedule(static)
    for (long row = 0; row < rows; row++)
        for (long part = 0; part < parts; part++) {
            const long first = part * PART, count = std::min(PART, size - first);
            const T *gate = gate_up + 2 * row * size + first;
            gate_row<T, activation>(gate, gate + size, out + row * size + first, count);
        }
}

// y = x w^T + bias + residual, rounded, and then with the adapter's update; `inner` is the update's (rows, ranks).
template <typename T>
static void project(const T *x, long rows, const Projection &projection, const Update *update, T *inner,
                    const T *residual, T *y) {
    const long N = projection.outputs, K = projection.inputs;
    const long ranks = update && update->a ? update->ranks[update->parts] : 0;
    if (ranks) {
        const T *a = static_cast<const T *>(update->a);
        const Share share = share_of(omp_get_thread_num(), omp_get_num_threads(), rows, ranks / LANES);
        for (long row = share.from; row < share.to; row += rows_at_once(K))
            multiply<T>(x + row * K, std::min(rows_at_once(K), share.to - row), K, a, K * LANES, K, share.first,
                        share.last, [=](const Tile &tile) {
                            for (long r = 0; r < tile.rows; r++)
                                for (long n = 0; n < tile.blocks; n++)
                                    store(inner + (row + tile.row + r) * ranks + (tile.block + n) * LANES,
                                          tile.sums[r * tile.blocks + n]);
                        });
#pragma omp barrier
    }
    const Share share = share_of(omp_get_thread_num(), omp_get_num_threads(), rows, N / LANES);
    const T *bias = static_cast<const T *>(projection.bias), *weight = static_cast<const T *>(projection.weight);
    for (long start = share.from; start < share.to; start += rows_at_once(K)) {
        const long count = std::min(rows_at_once(K), share.to - start);
        const T *b = ranks ? static_cast<const T *>(update->b) : nullptr;
        for (long part = 0; part < (ranks ? update->parts : 1); part++) {
            const long begin = ranks ? update->outputs[part] / LANES : 0;
            const long end = ranks ? update->outputs[part + 1] / LANES : N / LANES;
            const long rank = ranks ? update->ranks[part + 1] - update->ranks[part] : 0;
            const T *left = rank ? inner + start * ranks + update->ranks[part] : nullptr, *right = b;
            auto finish = [=](Tile &tile) {
                const long row = start + tile.row;
                for (long r = 0; r < tile.rows; r++)
                    for (long n = 0; n < tile.blocks; n++) {
                        Floats &value = tile.sums[r * tile.blocks + n];
                        const long column = (tile.block + n) * LANES;
                        if (bias) value += load(bias + column);
                        if (residual) value += load(residual + (row + r) * N + column);
                        if (rank) value = rounded_floats(y, value);
                    }
                if (rank)
                    accumulator<T>(tile.rows, tile.blocks)(tile.sums, left + tile.row * ranks, ranks,
                                                           right + (tile.block - begin) * rank * LANES, rank * LANES,
                                                           rank, nullptr);
                for (long r = 0; r < tile.rows; r++)
                    for (long n = 0; n < tile.blocks; n++)
                        store(y + (row + r) * N + (tile.block + n) * LANES, tile.sums[r * tile.blocks + n]);
            };
            multiply<T>(x + start * K, count, K, weight, K * LANES, K, std::max(share.first, begin),
                        std::min(share.last, end), finish);
            if (rank) b += (end - begin) * LANES * rank;
        }
    }
#pragma omp barrier
}

template <typename T> struct Scratch {
    std::vector<T> queries, scores;
    std::vector<float> own;
    std::vector<Floats> wide, sums;
};

// The scores (rows, L) of queries (rows, D) on a prompt's packed keys.
template <typename T>
static void score_prompt(const T *queries, long rows, long D, const T *keys, long L, float scale, T *scores) {
    multiply<T>(queries, rows, D, keys, D * LANES, D, 0, L / LANES, [=](const Tile &tile) {
        for (long r = 0; r < tile.rows; r++)
            for (long b = 0; b < tile.blocks; b++)
                store(scores + (tile.row + r) * L + (tile.block + b) * LANES, tile.sums[r * tile.blocks + b] * scale);
    });
}

// Adds a prompt's packed values, weighted by probabilities (rows, L), to sums (rows, parts); there is room for `room`.
template <typename T>
static void add_prompt(const T *probabilities, long rows, long L, const T *values, long room, long parts,
                       Floats *sums) {
    multiply<T>(probabilities, rows, L, values, room * LANES, L, 0, parts, [=](const Tile &tile) {
        for (long r = 0; r < tile.rows; r++)
            for (long b = 0; b < tile.blocks; b++)
                sums[(tile.row + r) * parts + tile.block + b] += tile.sums[r * tile.blocks + b];
    });
}

// Attention of the new tokens: over their own keys and values, which are written into the caches, and a shared prompt's.
template <typename T, int PARTS>
static void attend(const Model &model, const Layer &layer, long index, const Call &call, const T *qkv, T *mixed,
                   Scratch<T> &scratch) {
    const long D = PARTS * LANES, H = model.heads, G = model.groups, R = H / G, width = (H + 2 * G) * D;
    const T *cosines = static_cast<const T *>(call.cosines[layer.angles]);
    const T *sines = static_cast<const T *>(call.sines[layer.angles]);
    auto turned = [&](const Norm &norm, const T *head, long row, T *to) {
        T normed[PARTS * LANES];
        if (norm.weight) norm_into(norm, head, normed, D);
        turn_head<T, false>(norm.weight ? normed : head, cosines + row * D, sines + row * D, to, D);
    };
#pragma omp for collapse(2) schedule(dynamic)
    for (long chunk = 0; chunk < call.chunk_count; chunk++)
        for (long group = 0; group < G; group++) {
            const int64_t *told = call.chunks + 4 * chunk, *members = call.members + told[2];
            const long wave = told[0], prompt = told[1], count = told[3], length = call.prompt_lengths[members[0]];
            const long L = wave < 0 ? 0 : (length + LANES - 1) / LANES * LANES;
            const long room = wave < 0 ? 0 : call.wave_lengths[wave];
            const long cache = (prompt * G + group) * room * D;
            scratch.queries.resize(count * R * D);
            scratch.scores.resize(std::max(1L, count * R * L));
            scratch.wide.resize(R * PARTS);
            scratch.sums.resize(count * R * PARTS);
            T *queries = scratch.queries.data(), *scores = scratch.scores.data();
            Floats *sums = scratch.sums.data();
            T *all_keys = static_cast<T *>(call.keys[index]), *all_values = static_cast<T *>(call.values[index]);
            for (long i = 0; i < count; i++) {
                const long row = members[i], own = ((row * G + group) * call.capacity + call.places[row]) * D;
                const T *heads = qkv + row * width;
                turned(layer.of_keys, heads + (H + group) * D, row, all_keys + own);
                std::memcpy(all_values + own, heads + (H + G + group) * D, D * sizeof(T));
                for (long r = 0; r < R; r++)
                    turned(layer.of_queries, heads + (group * R + r) * D, row, queries + (i * R + r) * D);
            }
            const float scale = layer.scale;
            if (L) {
                const void *keys = call.wave_keys[index * call.waves + wave];
                score_prompt<T>(queries, count * R, D, static_cast<const T *>(keys) + cache, L, scale, scores);
            }
            for (long i = 0; i < count; i++) {
                const long row = members[i], own = (row * G + group) * call.capacity * D;
                for (long p = 0; p < R * PARTS; p++) scratch.wide[p] = load(queries + i * R * D + p * LANES);
                attend_own<T, PARTS>(scratch.wide.data(), all_keys + own, all_values + own, call.places[row], length,
                                     scores + i * R * L, R, L, scale, layer.softcap, layer.window, scratch.own,
                                     sums + i * R * PARTS);
            }
            if (L) {
                const void *values = call.wave_values[index * call.waves + wave];
                add_prompt<T>(scores, count * R, L, static_cast<const T *>(values) + cache, room, PARTS, sums);
            }
            for (long i = 0; i < count; i++) {
                T *target = mixed + (members[i] * H + group * R) * D;
                for (long p = 0; p < R * PARTS; p++) store(target + p * LANES, sums[i * R * PARTS + p]);
            }
        }
}

template <typename T> static void decode(const Model *given, const Call *asked, int threads) {
    const Model &model = *given;
    const Call &call = *asked;
    const long rows = call.rows, hidden = model.hidden, D = model.head_size;
    long stacked = 0, inside = 0, ranks = 1;
    for (long i = 0; i < model.count; i++) {
        stacked = std::max<long>(stacked, std::max(model.layers[i].qkv.outputs, model.layers[i].gate_up.outputs));
        inside = std::max<long>(inside, std::max(model.layers[i].o.inputs, model.layers[i].down.inputs));
        for (long j = 0; call.updates && j < 4; j++) {
            const Update &update = call.updates[4 * i + j];
            if (update.a) ranks = std::max<long>(ranks, update.ranks[update.parts]);
        }
    }
    std::vector<T> normed_values(rows * hidden), wide_values(rows * stacked), inside_values(rows * inside);
    std::vector<T> inner_values(rows * ranks);
    T *x = static_cast<T *>(call.x), *normed = normed_values.data(), *wide = wide_values.data();
    T *within = inside_values.data(), *inner = inner_values.data();
    auto attention = D == 16    ? attend<T, 1>
                     : D == 32  ? attend<T, 2>
                     : D == 64  ? attend<T, 4>
                     : D == 96  ? attend<T, 6>
                     : D == 128 ? attend<T, 8>
                                : attend<T, 16>;
#pragma omp parallel num_threads(threads)
    {
        Scratch<T> scratch;
        for (long i = 0; i < model.count; i++) {
            const Layer &layer = model.layers[i];
            const Update *updates = call.updates ? call.updates + 4 * i : nullptr;
            const Update *of_qkv = updates, *of_o = updates ? updates + 1 : nullptr;
            const Update *of_gate_up = updates ? updates + 2 : nullptr, *of_down = updates ? updates + 3 : nullptr;
            norm_rows(layer.before_attention, x, normed, rows, hidden);
            project<T>(normed, rows, layer.qkv, of_qkv, inner, nullptr, wide);
            attention(model, layer, i, call, wide, within, scratch);
            // Without norms behind attention and MLP these end in the residual path themselves.
            if (layer.after_attention.weight) {
                project<T>(within, rows, layer.o, of_o, inner, nullptr, normed);
                add_normed_rows(layer.after_attention, normed, x, rows, hidden);
            } else
                project<T>(within, rows, layer.o, of_o, inner, x, x);
            norm_rows(layer.before_mlp, x, normed, rows, hidden);
            project<T>(normed, rows, layer.gate_up, of_gate_up, inner, nullptr, wide);
            if (model.activation == SILU)
                gate_rows<T, SILU>(wide, within, rows, layer.down.inputs);
            else
                gate_rows<T, GELU_TANH>(wide, within, rows, layer.down.inputs);
            if (layer.after_mlp.weight) {
                project<T>(within, rows, layer.down, of_down, inner, nullptr, normed);
                add_normed_rows(layer.after_mlp, normed, x, rows, hidden);
            } else
                project<T>(within, rows, layer.down, of_down, inner, x, x);
        }
    }
}

template <typename T>
static void project_rows(const T *x, long rows, const Projection *projection, const Update *update, const T *residual,
                         T *y, int threads) {
    std::vector<T> inner(update && update->a ? rows * update->ranks[update->parts] : 0);
#pragma omp parallel num_threads(threads)
    project<T>(x, rows, *projection, update, inner.data(), residual, y);
}

#define FOR_TYPE(T, SUFFIX)                                                                                            \
    extern "C" void pack_##SUFFIX(const T *weight, T *to, long N, long K, long n_stride, long k_stride, long padded,   \
                                  int threads) {                                                                       \
        pack(weight, to, N, K, n_stride, k_stride, padded, threads);                                                   \
    }                                                                                                                  \
    extern "C" void product_##SUFFIX(const T *x, const T *w, const T *bias, const T *other, T *y, long rows, long N,   \
                                     long K, int threads) {                                                            \
        product(x, w, bias, other, y, rows, N, K, threads);                                                            \
    }                                                                                                                  \
    extern "C" void project_##SUFFIX(const T *x, long rows, const Projection *projection, const Update *update,        \
                                     const T *residual, T *y, int threads) {                                           \
        project_rows(x, rows, projection, update, residual, y, threads);                                               \
    }                                                                                                                  \
    extern "C" void decode_##SUFFIX(const Model *model, const Call *call, int threads) {                               \
        decode<T>(model, call, threads);                                                                               \
    }

FOR_TYPE(float, float)
#if defined(__AVX512BF16__)
FOR_TYPE(bfloat16, bfloat16)
#endif
