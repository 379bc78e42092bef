// Linear layers: packing, products with a packed weight, and a frozen projection with its adapter, forward and
// backward.

#include "products.h"

// Packs a weight whose entry (n, k) is at n * n_stride + k * k_stride; inputs are filled up to `padded`.
template <typename T>
static void pack(const T *weight, T *to, long N, long K, long n_stride, long k_stride, long padded, int threads) {
    const long blocks = (N + LANES - 1) / LANES, S = Step<T>::SIZE;
#pragma omp parallel for num_threads(threads) if (N * padded > WORTH_THREADS)
    for (long block = 0; block < blocks; block++) {
        const long first = block * LANES, there = std::min(LANES, N - first);
        if (k_stride == 1 && padded == K) {
            pack_outputs(weight + first * n_stride, n_stride, there, K, to + first * K);
            continue;
        }
        for (long k = 0; k < padded; k++)
            for (long lane = 0; lane < LANES; lane++)
                to[(first * padded) + k / S * S * LANES + lane * S + k % S] =
                    lane < there && k < K ? weight[(first + lane) * n_stride + k * k_stride] : narrow<T>(0.0f);
    }
}

// y = x w^T + bias + other; bias and other may be null, and other may be y.
template <typename T>
static void product(const T *x, const T *w, const T *bias, const T *other, T *y, long rows, long N, long K,
                    int threads) {
    const long blocks = (N + LANES - 1) / LANES;
    auto finish = [=](const Tile &tile, long row) {
        const long first = tile.block * LANES, start = (row + tile.row) * N + first;
        if (first + tile.blocks * LANES <= N) {
            each(tile, [=](long r, long b, Floats value) {
                const long place = start + r * N + b * LANES;
                if (bias) value += load(bias + first + b * LANES);
                if (other) value += load(other + place);
                store(y + place, value);
            });
            return;
        }
        each(tile, [=](long r, long b, Floats value) {
            float values[LANES];
            store(values, value);
            for (long i = 0; i < std::min(LANES, N - first - b * LANES); i++) {
                const long place = start + r * N + b * LANES + i;
                if (bias) values[i] += widen(bias[first + b * LANES + i]);
                if (other) values[i] += widen(other[place]);
                y[place] = narrow<T>(values[i]);
            }
        });
    };
#pragma omp parallel num_threads(threads)
    {
        const Share share = share_of(omp_get_thread_num(), omp_get_num_threads(), rows, blocks);
        for (long row = share.from; row < share.to; row += rows_at_once(K))
            multiply<T>(
                by_rows(x + row * K, K), std::min(rows_at_once(K), share.to - row), w, K * LANES, K, share.first,
                share.last, [=](const Tile &tile) { finish(tile, row); },
                [=](const Tile &tile) {
                    fetch<1>(y + (row + tile.row) * N + tile.block * LANES, N, tile.rows, tile.blocks);
                    return true;
                });
    }
}

template <typename T>
static void project_rows(const T *x, long rows, const Projection *projection, const Update *update, const T *residual,
                         T *y, int threads) {
    std::vector<T> inner(update && update->a ? rows * update->ranks[update->parts] : 0);
#pragma omp parallel num_threads(threads)
    {
        Room<T> room;
        project<T>(x, rows, *projection, update, inner.data(), residual, y, room);
    }
}

// The adapters in training of layers that read the same input: `a` (its own ranks, inputs) and `b` (its outputs, its
// own ranks) of each, null where there is none. `ranks` has their places among all, filled up to whole blocks.
struct Adapters {
    const float *a[3], *b[3];
    int64_t parts, own[3], ranks[4], outputs[4];
    double scale;
};

// Adapters in the type of the products: all A (ranks, inputs), and each B (its outputs, its ranks) scaled, one after
// the other.
template <typename T> struct Narrowed {
    std::unique_ptr<T[]> a, b;
    long b_places[4] = {};

    Narrowed(const Adapters &adapters, long K) {
        const long parts = adapters.parts;
        for (long part = 0; part < parts; part++)
            b_places[part + 1] = b_places[part] + (adapters.outputs[part + 1] - adapters.outputs[part]) *
                                                      (adapters.ranks[part + 1] - adapters.ranks[part]);
        a.reset(new T[adapters.ranks[parts] * K]);
        b.reset(new T[b_places[parts]]);
    }

    // For a thread of a team; ends with a barrier.
    void fill(const Adapters &adapters, long K) {
        for (long part = 0; part < adapters.parts; part++) {
            const long own = adapters.own[part], rank = adapters.ranks[part + 1] - adapters.ranks[part];
            const long outputs = adapters.outputs[part + 1] - adapters.outputs[part];
            T *to_a = a.get() + adapters.ranks[part] * K, *to_b = b.get() + b_places[part];
            const float scale = adapters.scale;
#pragma omp for schedule(static) nowait
            for (long row = 0; row < rank; row++)
                for (long k = 0; k < K; k++)
                    to_a[row * K + k] = narrow<T>(row < own ? adapters.a[part][row * K + k] : 0.0f);
#pragma omp for schedule(static) nowait
            for (long row = 0; row < (rank ? outputs : 0); row++)
                for (long r = 0; r < rank; r++)
                    to_b[row * rank + r] = narrow<T>(r < own ? adapters.b[part][row * own + r] * scale : 0.0f);
        }
#pragma omp barrier
    }
};

// The forward pass of a projection in training; keeps `inner` (rows, ranks) for the way back.
template <typename T>
static void lora_forward(const T *x, long rows, const Projection *projection, const Adapters *adapters,
                         const T *residual, T *inner, T *y, int threads) {
    const long K = projection->inputs, parts = adapters->parts, ranks = adapters->ranks[parts];
    Narrowed<T> narrowed(*adapters, K);
    std::unique_ptr<T[]> a(new T[ranks * K]), b(new T[narrowed.b_places[parts]]);
    Update update{ranks ? a.get() : nullptr, b.get(), parts, {}, {}};
    std::copy_n(adapters->ranks, 4, update.ranks);
    std::copy_n(adapters->outputs, 4, update.outputs);
#pragma omp parallel num_threads(threads)
    {
        narrowed.fill(*adapters, K);
#pragma omp for schedule(static) nowait
        for (long row = 0; row < ranks; row += LANES)
            pack_outputs(narrowed.a.get() + row * K, K, LANES, K, a.get() + row * K);
        for (long part = 0; part < parts; part++) {
            const long rank = adapters->ranks[part + 1] - adapters->ranks[part], place = narrowed.b_places[part];
            const long outputs = adapters->outputs[part + 1] - adapters->outputs[part];
#pragma omp for schedule(static) nowait
            for (long row = 0; row < (rank ? outputs : 0); row += LANES)
                pack_outputs(narrowed.b.get() + place + row * rank, rank, LANES, rank, b.get() + place + row * rank);
        }
#pragma omp barrier
        Room<T> room;
        project<T>(x, rows, *projection, &update, inner, residual, y, room);
    }
}

// Puts a tile's sums into their place, or adds them to what is there.
static inline void put(const Tile &tile, float *place, long stride, bool more) {
    each(tile, [=](long r, long b, Floats sum) {
        float *to = place + r * stride + b * LANES;
        store(to, more ? load(to) + sum : sum);
    });
}

// Rows that are summed up at once for an adapter's gradient.
static const long SUMMED = 2048;

// The gradients of a projection's input (or null), and of its adapters: `a_grad` (ranks, K), `b_grads` of each (its
// ranks, its outputs), transposed. `grad` (rows, N) is that of its output; `weight` is (N, K), row by row.
template <typename T>
static void lora_backward(const T *grad, const T *x, const T *inner, long rows, const T *weight, long N, long K,
                          const Adapters *adapters, T *x_grad, float *a_grad, float *const *b_grads, int threads) {
    const long parts = adapters->parts, ranks = adapters->ranks[parts], S = Step<T>::SIZE;
    Narrowed<T> narrowed(*adapters, K);
    const T *a = narrowed.a.get();
    std::unique_ptr<T[]> inner_grad(new T[rows * ranks]), packed_a(new T[ranks * K]);
    const auto nothing = [](const Tile &, long, long) {};
    const long summed = std::min(rows, SUMMED) + 1;
    std::unique_ptr<T[]> inner_room(new T[ranks * summed]), grad_room(new T[ranks * summed]);
#pragma omp parallel num_threads(threads)
    {
        Room<T> room;
        narrowed.fill(*adapters, K);
        const long me = omp_get_thread_num(), team = omp_get_num_threads();
        // By way of B.
        const long from = rows * me / team, to = rows * (me + 1) / team;
        for (long part = 0; part < parts; part++) {
            const long rank = adapters->ranks[part + 1] - adapters->ranks[part], at = adapters->ranks[part];
            const long begin = adapters->outputs[part], outputs = adapters->outputs[part + 1] - begin;
            const T *b = narrowed.b.get() + narrowed.b_places[part];
            T *found = inner_grad.get() + from * ranks + at;
            if (rank)
                multiply_packing<T>(
                    by_rows(grad + from * N + begin, N), to - from, outputs, 0, rank / LANES, room,
                    [=](long block, long count, long k, long inputs, T *packed) {
                        pack_inputs(b + k * rank + block * LANES, rank, inputs, count, packed, inputs * LANES);
                    },
                    [=](const Tile &tile, long row, long block) {
                        T *place = found + row * ranks + block * LANES;
                        each(tile, [=](long r, long b, Floats sum) { store(place + r * ranks + b * LANES, sum); });
                    },
                    nothing);
        }
#pragma omp for schedule(static)
        for (long block = 0; block < K / LANES; block++)
            pack_inputs(a + block * LANES, K, ranks, 1, packed_a.get() + block * ranks * LANES, ranks * LANES);
        const Share share = share_of(me, team, rows, K / LANES);
        if (x_grad) {
            const T *left = inner_grad.get() + share.from * ranks, *right = packed_a.get();
            multiply_packing<T>(
                by_rows(grad + share.from * N, N), share.to - share.from, N, share.first, share.last, room,
                [=](long block, long count, long n, long inputs, T *packed) {
                    pack_inputs(weight + n * K + block * LANES, K, inputs, count, packed, inputs * LANES);
                },
                [=](Tile &tile, long row, long block) {
                    if (ranks)
                        add_product<T>(tile, by_rows(left + row * ranks, ranks), right + block * ranks * LANES,
                                       ranks * LANES, ranks);
                    T *place = x_grad + (share.from + row) * K + block * LANES;
                    each(tile, [=](long r, long b, Floats sum) { store(place + r * K + b * LANES, sum); });
                },
                [=](const Tile &tile, long row, long block) {
                    fetch<1>(x_grad + (share.from + row) * K + block * LANES, K, tile.rows, tile.blocks);
                });
        }
        // The adapters' own: sums over the rows.
        for (long start = 0; ranks && start < rows; start += SUMMED) {
            const long count = std::min(SUMMED, rows - start), even = (count + S - 1) / S * S;
#pragma omp sections
            {
#pragma omp section
                turned(inner + start * ranks, ranks, count, ranks / LANES, inner_room.get());
#pragma omp section
                turned(inner_grad.get() + start * ranks, ranks, count, ranks / LANES, grad_room.get());
            }
            const Left<T> of_inner{inner_room.get(), S, ranks}, of_grad{grad_room.get(), S, ranks};
            const long first = K / LANES * me / team, last = K / LANES * (me + 1) / team;
            multiply_packing<T>(
                of_grad, ranks, even, first, last, room,
                [=](long block, long blocks, long row, long inputs, T *packed) {
                    pack_inputs(x + (start + row) * K + block * LANES, K, std::min(inputs, count - row), blocks, packed,
                                inputs * LANES);
                },
                [=](const Tile &tile, long row, long block) {
                    put(tile, a_grad + row * K + block * LANES, K, start > 0);
                },
                nothing);
            for (long part = 0; part < parts; part++) {
                const long rank = adapters->ranks[part + 1] - adapters->ranks[part], at = adapters->ranks[part];
                const long begin = adapters->outputs[part], outputs = adapters->outputs[part + 1] - begin;
                float *found = b_grads[part];
                if (!rank) continue;
                multiply_packing<T>(
                    of_inner.at(at), rank, even, outputs / LANES * me / team, outputs / LANES * (me + 1) / team, room,
                    [=](long block, long blocks, long row, long inputs, T *packed) {
                        pack_inputs(grad + (start + row) * N + begin + block * LANES, N, std::min(inputs, count - row),
                                    blocks, packed, inputs * LANES);
                    },
                    [=](const Tile &tile, long row, long block) {
                        put(tile, found + row * outputs + block * LANES, outputs, start > 0);
                    },
                    nothing);
            }
#pragma omp barrier
        }
    }
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
    extern "C" void lora_forward_##SUFFIX(const T *x, long rows, const Projection *projection,                         \
                                          const Adapters *adapters, const T *residual, T *inner, T *y, int threads) {  \
        lora_forward(x, rows, projection, adapters, residual, inner, y, threads);                                      \
    }                                                                                                                  \
    extern "C" void lora_backward_##SUFFIX(const T *grad, const T *x, const T *inner, long rows, const T *weight,      \
                                           long N, long K, const Adapters *adapters, T *x_grad, float *a_grad,         \
                                           float *const *b_grads, int threads) {                                       \
        lora_backward(grad, x, inner, rows, weight, N, K, adapters, x_grad, a_grad, b_grads, threads);                 \
    }

FOR_TYPE(float, float)
FOR_TYPE(bfloat16, bfloat16)
