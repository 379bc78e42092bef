// Attention over a prefix tree, forward and backward: a node sees its ancestors and itself.
//
// Nodes are numbered depth first, so what a node may see is a few runs of numbers. Queries are taken some at a time,
// with all heads that share keys and values; their scores lie row by row, as wide as the runs they see (see `Piece`).
// Keys and values are packed once for all of them. Scores and probabilities are rounded where torch's operators round
// them.

#include "products.h"

// The queries in ranges, and the runs of nodes that the last query of a range sees.
struct Tree {
    const int32_t *nodes;             // (rows): each query's node
    const int32_t *ends, *positions;  // (count): one past a node's subtree; its depth
    const int64_t *ranges;            // (range_count, 4): rows from, to; runs from, to
    const int64_t *runs;              // (runs, 2): nodes from, to
    int64_t rows, count, range_count;
    int64_t heads, groups, head_size, window;  // query heads, key-value heads; how many positions back a node sees
    double scale, softcap;                     // of the scores; no cap is 0
};

// A run as it lies among the scores: from column `column` on, whole blocks of nodes from `start` on.
struct Run {
    long from, to, start, width, column;
};

// Some queries: rows from `first` to `last` of the tree, with the runs that they see, `width` columns in all.
struct Piece {
    long first, last, width;
    std::vector<Run> runs;
    std::vector<uint16_t> marks;  // for each query and block the nodes of the block that it sees, a bit each
};

// Scores that are held at once.
static const long SCORES = 1 << 17;

static std::vector<Piece> pieces_of(const Tree &tree) {
    const long R = tree.heads / tree.groups;
    std::vector<Piece> found;
    for (long i = 0; i < tree.range_count; i++) {
        const int64_t *range = tree.ranges + 4 * i;
        for (long first = range[0], last; first < range[1]; first = last) {
            // As many queries as there is room for, judged by the last of the range.
            long seen = 0;
            for (long run = range[2]; run < range[3]; run++)
                seen += tree.runs[2 * run + 1] - tree.runs[2 * run] + LANES;
            const long most = std::max(16L, std::min(192L, SCORES / seen)) / R;
            last = std::min<long>(range[1], first + std::max(1L, most));
            Piece piece{first, last, 0, {}, {}};
            for (long run = range[2]; run < range[3]; run++) {
                const long from = tree.runs[2 * run];
                const long to = std::min<long>(tree.runs[2 * run + 1], tree.nodes[last - 1] + 1);
                if (from >= to) continue;
                const long start = from / LANES * LANES, width = (to - start + LANES - 1) / LANES * LANES;
                piece.runs.push_back({from, to, start, width, piece.width});
                piece.width += width;
            }
            found.push_back(std::move(piece));
        }
    }
    // The longest first, so that the threads end together.
    std::stable_sort(found.begin(), found.end(), [](const Piece &a, const Piece &b) {
        return (a.last - a.first) * a.width > (b.last - b.first) * b.width;
    });
    return found;
}

// A group's keys and values, packed; what is not wanted is null. `rows` is their number, filled up to whole blocks.
template <typename T> struct PackedHeads {
    T *as_outputs, *as_inputs;
};

template <typename T>
static void pack_heads(const T *x, long stride, long count, long D, long padded, PackedHeads<T> to) {
#pragma omp for schedule(static) nowait
    for (long row = 0; row < padded; row += LANES) {
        const long there = std::min(LANES, count - row);
        if (to.as_outputs) pack_outputs(x + row * stride, stride, there, D, to.as_outputs + row * D);
        if (to.as_inputs) {
            T *place = to.as_inputs + row * LANES;
            pack_inputs(x + row * stride, stride, there, D / LANES, place, padded * LANES);
            const long S = Step<T>::SIZE, end = (there + S - 1) / S * S;
            for (long block = 0; block < D / LANES; block++)
                std::fill(place + block * padded * LANES + end * LANES, place + block * padded * LANES + LANES * LANES,
                          narrow<T>(0.0f));
        }
    }
}

// Whether a block of nodes is seen by all queries of nodes `first` to `last`; a query's own nodes lie behind one
// another.
static bool seen_by_all(const Tree &tree, const Run &run, long node, long first, long last) {
    if (node < run.from || node + LANES > run.to || node + LANES - 1 > first || tree.window < tree.count) return false;
    for (long n = node; n < node + LANES; n++)
        if (last >= tree.ends[n]) return false;
    return true;
}

static void mark(const Tree &tree, Piece &piece) {
    const long blocks = piece.width / LANES, queries = piece.last - piece.first;
    piece.marks.assign(queries * blocks, 0xffff);
    const int32_t *nodes = tree.nodes + piece.first;
    for (const Run &run : piece.runs)
        for (long block = 0; block < run.width / LANES; block++) {
            const long node = run.start + block * LANES, column = run.column / LANES + block;
            if (seen_by_all(tree, run, node, nodes[0], nodes[queries - 1])) continue;
            for (long i = 0; i < queries; i++) {
                uint16_t bits = 0;
                for (long n = std::max(node, run.from); n < std::min(node + LANES, run.to); n++)
                    if (n <= nodes[i] && nodes[i] < tree.ends[n] &&
                        tree.positions[nodes[i]] - tree.positions[n] < tree.window)
                        bits |= 1u << (n - node);
                piece.marks[i * blocks + column] = bits;
            }
        }
}

// Lane by lane x where its bit is set, else `other`.
static inline Floats chosen(uint16_t bits, Floats x, float other) {
    const Words lanes = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    return (lanes & (Words{} + bits)) != 0 ? x : Floats{} + other;
}

static inline Floats capped(Floats x, float cap) {
    for (long lane = 0; lane < LANES; lane++) x[lane] = cap * std::tanh(x[lane] / cap);
    return x;
}

// A thread's own memory.
template <typename T> struct Desk {
    Room<T> queries, scores, grads, slopes, turned, packed;
    Room<float> exponents;
    Room<Floats> sums;
};

// The heads of a group for the queries of a piece, (queries * R, D).
template <typename T>
static void gather(const Tree &tree, const Piece &piece, const T *x, long stride, long group, T *to) {
    const long size = tree.heads / tree.groups * tree.head_size;
    for (long i = piece.first; i < piece.last; i++)
        std::memcpy(to + (i - piece.first) * size, x + i * stride + group * size, size * sizeof(T));
}

// The scores (rows, width) of a piece's queries: scaled and, where there is a cap, capped; -inf for what is not seen.
// `slopes` gets the cap's derivative, if it is wanted.
template <typename T>
static void score(const Tree &tree, const Piece &piece, const T *queries, const T *keys, T *scores, T *slopes) {
    const long D = tree.head_size, R = tree.heads / tree.groups, W = piece.width, blocks = W / LANES;
    const float scale = tree.scale, cap = tree.softcap;
    const uint16_t *marks = piece.marks.data();
    for (const Run &run : piece.runs)
        multiply<T>(by_rows(queries, D), (piece.last - piece.first) * R, keys + run.start * D, D * LANES, D, 0,
                    run.width / LANES, [=, &run](const Tile &tile) {
                        each(tile, [=, &run, &tile](long r, long b, Floats value) {
                            const long row = tile.row + r, column = run.column + (tile.block + b) * LANES;
                            value *= scale;
                            if (cap > 0.0f) {
                                value = capped(rounded_floats(scores, value), cap);
                                const Floats part = value / cap;
                                if (slopes) store(slopes + row * W + column, 1.0f - part * part);
                            }
                            value = chosen(marks[row / R * blocks + column / LANES], value, -INFINITY);
                            store(scores + row * W + column, value);
                        });
                    });
}

static inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// Turns a row of scores into probabilities; gives the log of the sum of their exponentials.
template <typename T> static float normalize(T *scores, long width, float *exponents) {
    Floats highest = load(scores);
    for (long i = LANES; i < width; i += LANES) highest = larger(highest, load(scores + i));
    float top = highest[0];
    for (long lane = 1; lane < LANES; lane++) top = std::max(top, highest[lane]);
    Floats total{};
    for (long i = 0; i < width; i += LANES) {
        const Floats part = exponentials(load(scores + i) - top);
        store(exponents + i, part);
        total += part;
    }
    const float whole = sum(total), inverse = 1.0f / whole;
    for (long i = 0; i < width; i += LANES) store(scores + i, load(exponents + i) * inverse);
    return top + std::log(whole);
}

// Adds x (rows, width of a run) times packed inputs (D outputs) to the sums (rows, D / LANES).
template <typename T>
static void add_run(const T *x, long rows, long W, const Run &run, const T *packed, long padded, long D, Floats *sums) {
    const long parts = D / LANES;
    multiply<T>(by_rows(x + run.column, W), rows, packed + run.start * LANES, padded * LANES, run.width, 0, parts,
                [=](const Tile &tile) {
                    Floats *place = sums + tile.row * parts + tile.block;
                    each(tile, [=](long r, long b, Floats sum) { place[r * parts + b] += sum; });
                });
}

template <typename T>
static void scatter(const Tree &tree, const Piece &piece, const Floats *sums, float factor, long group, T *to) {
    const long D = tree.head_size, R = tree.heads / tree.groups, parts = R * D / LANES;
    for (long i = piece.first; i < piece.last; i++)
        for (long p = 0; p < parts; p++)
            store(to + i * tree.heads * D + group * R * D + p * LANES, sums[(i - piece.first) * parts + p] * factor);
}

// q (rows, heads, D), k and v (count, groups, D); a row's heads lie side by side, rows a stride apart. `out` is as q
// and dense; `normalizers` (rows, heads) are the logs of the sums of exponentials.
template <typename T>
static void attend_tree(const Tree *given, const T *q, const T *k, const T *v, long q_stride, long k_stride,
                        long v_stride, T *out, float *normalizers, int threads) {
    const Tree &tree = *given;
    const long D = tree.head_size, G = tree.groups, R = tree.heads / G;
    const long padded = (tree.count + LANES - 1) / LANES * LANES;
    std::vector<Piece> pieces = pieces_of(tree);
    std::unique_ptr<T[]> keys(new T[G * padded * D]), values(new T[G * padded * D]);
#pragma omp parallel num_threads(threads)
    {
        Desk<T> desk;
        for (long group = 0; group < G; group++) {
            pack_heads(k + group * D, k_stride, tree.count, D, padded,
                       PackedHeads<T>{keys.get() + group * padded * D, nullptr});
            pack_heads(v + group * D, v_stride, tree.count, D, padded,
                       PackedHeads<T>{nullptr, values.get() + group * padded * D});
        }
#pragma omp for schedule(static)
        for (long index = 0; index < (long)pieces.size(); index++) mark(tree, pieces[index]);
#pragma omp for collapse(2) schedule(dynamic)
        for (long index = 0; index < (long)pieces.size(); index++)
            for (long group = 0; group < G; group++) {
                const Piece &piece = pieces[index];
                const long rows = (piece.last - piece.first) * R, W = piece.width;
                T *queries = desk.queries.of(rows * D), *scores = desk.scores.of(rows * W);
                Floats *sums = desk.sums.of(rows * D / LANES);
                float *exponents = desk.exponents.of(W);
                gather(tree, piece, q, q_stride, group, queries);
                score<T>(tree, piece, queries, keys.get() + group * padded * D, scores, nullptr);
                for (long row = 0; row < rows; row++)
                    normalizers[(piece.first + row / R) * tree.heads + group * R + row % R] =
                        normalize(scores + row * W, W, exponents);
                std::fill(sums, sums + rows * D / LANES, Floats{});
                for (const Run &run : piece.runs)
                    add_run(scores, rows, W, run, values.get() + group * padded * D, padded, D, sums);
                scatter(tree, piece, sums, 1.0f, group, out);
            }
    }
}

// Interleaves rows (rows, W) of a piece as inputs, W outputs: (W / LANES, padded, LANES).
template <typename T> static const T *as_inputs(const T *x, long rows, long W, long padded, Room<T> &room) {
    T *to = room.of(W * padded);
    pack_inputs(x, W, rows, W / LANES, to, padded * LANES);
    return to;
}

// Adds the sum over a piece's rows of turned (D, padded) by packed (W outputs, padded inputs) to totals (D, count).
template <typename T>
static void add_turned(const Piece &piece, Left<T> turned, const T *packed, long padded, long D, long count,
                       float *totals) {
    for (const Run &run : piece.runs)
        multiply<T>(turned, D, packed + run.column * padded, padded * LANES, padded, 0, run.width / LANES,
                    [=, &run](const Tile &tile) {
                        float *place = totals + tile.row * count + run.start + tile.block * LANES;
                        each(tile, [=](long r, long b, Floats sum) {
                            store(place + r * count + b * LANES, load(place + r * count + b * LANES) + sum);
                        });
                    });
}

// The gradients of `attend_tree`: `grad`, `out` and `q_grad` are (rows, heads, D) and dense but for `grad_stride`,
// `k_grad` and `v_grad` (count, groups, D). The sums over queries are made in as many parts as the threads need to have
// equal work, each always by the same queries and in the same order.
template <typename T>
static void attend_tree_backward(const Tree *given, const T *grad, const T *out, const T *q, const T *k, const T *v,
                                 long grad_stride, long q_stride, long k_stride, long v_stride,
                                 const float *normalizers, T *q_grad, T *k_grad, T *v_grad, int threads) {
    const Tree &tree = *given;
    const long D = tree.head_size, G = tree.groups, H = tree.heads, R = H / G, S = Step<T>::SIZE;
    const long padded = (tree.count + LANES - 1) / LANES * LANES, size = padded * D;
    std::vector<Piece> pieces = pieces_of(tree);
    long parts = threads;
    for (long a = threads, b = G; b;) {
        const long rest = a % b;
        a = b, b = rest, parts = threads / a;
    }
    std::vector<std::vector<const Piece *>> shares(parts);
    std::vector<double> loads(parts, 0.0);
    for (const Piece &piece : pieces) {
        const long least = std::min_element(loads.begin(), loads.end()) - loads.begin();
        shares[least].push_back(&piece);
        loads[least] += double(piece.last - piece.first) * piece.width;
    }
    std::unique_ptr<T[]> keys(new T[G * size]), values(new T[G * size]), keys_as_inputs(new T[G * size]);
    std::unique_ptr<float[]> k_totals(new float[parts * G * size]), v_totals(new float[parts * G * size]);
#pragma omp parallel num_threads(threads)
    {
        Desk<T> desk;
        for (long group = 0; group < G; group++) {
            pack_heads(k + group * D, k_stride, tree.count, D, padded,
                       PackedHeads<T>{keys.get() + group * size, keys_as_inputs.get() + group * size});
            pack_heads(v + group * D, v_stride, tree.count, D, padded,
                       PackedHeads<T>{values.get() + group * size, nullptr});
        }
#pragma omp for schedule(static)
        for (long index = 0; index < (long)pieces.size(); index++) mark(tree, pieces[index]);
#pragma omp for collapse(2) schedule(static)
        for (long part = 0; part < parts; part++)
            for (long group = 0; group < G; group++) {
                float *k_total = k_totals.get() + (part * G + group) * size;
                float *v_total = v_totals.get() + (part * G + group) * size;
                std::fill(k_total, k_total + size, 0.0f);
                std::fill(v_total, v_total + size, 0.0f);
                for (const Piece *own : shares[part]) {
                    const Piece &piece = *own;
                    const long rows = (piece.last - piece.first) * R, W = piece.width, even = (rows + S - 1) / S * S;
                    T *queries = desk.queries.of(2 * rows * D), *outer = queries + rows * D;
                    T *likely = desk.scores.of(rows * W), *grads = desk.grads.of(rows * W);
                    T *slopes = tree.softcap > 0.0 ? desk.slopes.of(rows * W) : nullptr;
                    Floats *sums = desk.sums.of(rows * D / LANES);
                    float *along = desk.exponents.of(rows);
                    gather(tree, piece, q, q_stride, group, queries);
                    gather(tree, piece, out, H * D, group, outer);
                    score<T>(tree, piece, queries, keys.get() + group * size, likely, slopes);
                    for (long row = 0; row < rows; row++) {
                        const long i = piece.first + row / R, head = group * R + row % R;
                        const T *given_grad = grad + i * grad_stride + head * D;
                        Floats products{};
                        for (long p = 0; p < D; p += LANES)
                            products += load(given_grad + p) * load(outer + row * D + p);
                        along[row] = sum(products);
                        const float normalizer = normalizers[i * H + head];
                        for (long c = 0; c < W; c += LANES)
                            store(likely + row * W + c, exponentials(load(likely + row * W + c) - normalizer));
                    }
                    gather(tree, piece, grad, grad_stride, group, outer);
                    for (const Run &run : piece.runs)
                        multiply<T>(by_rows(outer, D), rows, values.get() + group * size + run.start * D, D * LANES, D,
                                    0, run.width / LANES, [=, &run](const Tile &tile) {
                                        const long start = run.column + tile.block * LANES, first = tile.row;
                                        each(tile, [=](long r, long b, Floats value) {
                                            const long place = (first + r) * W + start + b * LANES;
                                            value = (value - along[first + r]) * load(likely + place);
                                            if (slopes) value *= load(slopes + place);
                                            store(grads + place, value);
                                        });
                                    });
                    std::fill(sums, sums + rows * D / LANES, Floats{});
                    for (const Run &run : piece.runs)
                        add_run(grads, rows, W, run, keys_as_inputs.get() + group * size, padded, D, sums);
                    scatter(tree, piece, sums, (float)tree.scale, group, q_grad);
                    T *turned_rows = desk.turned.of(D * even);
                    add_turned(piece, turned(outer, D, rows, D / LANES, turned_rows),
                               as_inputs(likely, rows, W, even, desk.packed), even, D, padded, v_total);
                    add_turned(piece, turned(queries, D, rows, D / LANES, turned_rows),
                               as_inputs(grads, rows, W, even, desk.packed), even, D, padded, k_total);
                }
            }
#pragma omp for collapse(2) schedule(static)
        for (long row = 0; row < padded; row += LANES)
            for (long group = 0; group < G; group++) {
                T *of_k = desk.turned.of(2 * D * LANES), *of_v = of_k + D * LANES;
                for (long d = 0; d < D; d++) {
                    Floats k_sum{}, v_sum{};
                    for (long part = 0; part < parts; part++) {
                        const long place = (part * G + group) * size + d * padded + row;
                        k_sum += load(k_totals.get() + place);
                        v_sum += load(v_totals.get() + place);
                    }
                    store(of_k + d * LANES, k_sum * (float)tree.scale);
                    store(of_v + d * LANES, v_sum);
                }
                for (long lane = 0; lane < std::min(LANES, tree.count - row); lane++)
                    for (long d = 0; d < D; d++) {
                        const long place = ((row + lane) * G + group) * D + d;
                        k_grad[place] = of_k[d * LANES + lane];
                        v_grad[place] = of_v[d * LANES + lane];
                    }
            }
    }
}

#define FOR_TYPE(T, SUFFIX)                                                                                            \
    extern "C" void attend_tree_##SUFFIX(const Tree *tree, const T *q, const T *k, const T *v, long q_stride,          \
                                         long k_stride, long v_stride, T *out, float *normalizers, int threads) {      \
        attend_tree(tree, q, k, v, q_stride, k_stride, v_stride, out, normalizers, threads);                           \
    }                                                                                                                  \
    extern "C" void attend_tree_backward_##SUFFIX(const Tree *tree, const T *grad, const T *out, const T *q,           \
                                                  const T *k, const T *v, long grad_stride, long q_stride,             \
                                                  long k_stride, long v_stride, const float *normalizers, T *q_grad,   \
                                                  T *k_grad, T *v_grad, int threads) {                                 \
        attend_tree_backward(tree, grad, out, q, k, v, grad_stride, q_stride, k_stride, v_stride, normalizers, q_grad, \
                             k_grad, v_grad, threads);                                                                 \
    }

FOR_TYPE(float, float)
FOR_TYPE(bfloat16, bfloat16)
