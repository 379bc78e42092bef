// A decoding step: one new token for each of some rows, through all layers of a decoder in one call. What an operator
// costs to start is paid once a step, and the threads go on from one part to the next by barriers alone.

#include "products.h"

struct Norm {
    const void *weight;  // null: there is none
    double offset, eps;
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

template <typename T> struct Scratch {
    std::vector<T> queries, scores;
    std::vector<Floats> sums;
    Room<T> packed, likely;
    Room<float> own;
};

// Rows of a product that is quickest for numbers of rows that are powers of two, as the heads of a group are few.
static inline long padded_rows(long R) {
    long rows = 1;
    while (rows < R && rows < ROWS) rows *= 2;
    return R > ROWS ? R : rows;
}

// The scores (rows, L) of queries (rows, D) on a prompt's packed keys.
template <typename T>
static void score_prompt(const T *queries, long rows, long D, const T *keys, long L, float scale, T *scores) {
    multiply<T>(by_rows(queries, D), rows, keys, D * LANES, D, 0, L / LANES, [=](const Tile &tile) {
        T *place = scores + tile.row * L + tile.block * LANES;
        each(tile, [=](long r, long b, Floats sum) { store(place + r * L + b * LANES, sum * scale); });
    });
}

// Adds a prompt's packed values, weighted by probabilities (rows, L), to sums (rows, parts); there is room for `room`.
template <typename T>
static void add_prompt(const T *probabilities, long rows, long L, const T *values, long room, long parts,
                       Floats *sums) {
    multiply<T>(by_rows(probabilities, L), rows, values, room * LANES, L, 0, parts, [=](const Tile &tile) {
        Floats *place = sums + tile.row * parts + tile.block;
        each(tile, [=](long r, long b, Floats sum) { place[r * parts + b] += sum; });
    });
}

// Attention of one new token over its own keys and values (each (count, D), from the first one seen on, in a cache that
// has room for `room`) for the R heads that share them; see `share_out`. Gives the part of the output that comes from
// the own values. Behind the queries there is room for a tile.
template <typename T>
static void attend_own(const T *queries, const T *own_keys, const T *own_values, const Seen &seen, long room, T *prompt,
                       long R, long D, long L, float scale, float softcap, Scratch<T> &scratch, Floats *sums) {
    const long S = Step<T>::SIZE, count = seen.count, whole = (count + S - 1) / S * S, parts = D / LANES;
    const long W = (count + LANES - 1) / LANES * LANES, rows = padded_rows(R);
    T *packed = scratch.packed.of(W * D), *likely = scratch.likely.of(rows * W);
    float *scores = scratch.own.of(rows * W);
    // Whole blocks are quicker: what the cache holds behind the keys gives scores that nobody reads.
    for (long t = 0; t < count; t += LANES)
        pack_outputs(own_keys + t * D, D, t + LANES <= room ? LANES : count - t, D, packed + t * D);
    multiply<T>(by_rows(queries, D), rows, packed, D * LANES, D, 0, W / LANES, [=](const Tile &tile) {
        float *place = scores + tile.row * W + tile.block * LANES;
        each(tile, [=](long r, long b, Floats sum) { store(place + r * W + b * LANES, sum * scale); });
    });
    share_out(scores, W, prompt, L, seen, R, softcap);
    for (long r = 0; r < R; r++)
        for (long t = 0; t < W; t += LANES) store(likely + r * W + t, load(scores + r * W + t));
    for (long r = 0; count < whole && r < R; r++) likely[r * W + count] = narrow<T>(0.0f);
    pack_inputs(own_values, D, count, parts, packed, W * LANES);
    multiply<T>(by_rows(likely, W), rows, packed, W * LANES, whole, 0, parts, [=](const Tile &tile) {
        const long first = tile.row, block = tile.block;
        each(tile, [=](long r, long b, Floats sum) {
            if (first + r < R) sums[(first + r) * parts + block + b] = sum;
        });
    });
}

// Attention of the new tokens: over their own keys and values, which are written into the caches, and a shared
// prompt's.
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
            scratch.queries.resize((count * R + ROWS) * D);
            scratch.scores.resize(std::max(1L, count * R * L));
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
                const long row = members[i];
                const Seen seen(call.places[row], length, layer.window);
                const long own = ((row * G + group) * call.capacity + seen.first) * D;
                attend_own<T>(queries + i * R * D, all_keys + own, all_values + own, seen,
                              call.capacity - seen.first, scores + i * R * L, R, D, L, scale, layer.softcap, scratch,
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
        Room<T> room;
        for (long i = 0; i < model.count; i++) {
            const Layer &layer = model.layers[i];
            const Update *updates = call.updates ? call.updates + 4 * i : nullptr;
            const Update *of_qkv = updates, *of_o = updates ? updates + 1 : nullptr;
            const Update *of_gate_up = updates ? updates + 2 : nullptr, *of_down = updates ? updates + 3 : nullptr;
            norm_rows(layer.before_attention, x, normed, rows, hidden);
            project<T>(normed, rows, layer.qkv, of_qkv, inner, nullptr, wide, room);
            attention(model, layer, i, call, wide, within, scratch);
            // Without norms behind attention and MLP these end in the residual path themselves.
            if (layer.after_attention.weight) {
                project<T>(within, rows, layer.o, of_o, inner, nullptr, normed, room);
                add_normed_rows(layer.after_attention, normed, x, rows, hidden);
            } else
                project<T>(within, rows, layer.o, of_o, inner, x, x, room);
            norm_rows(layer.before_mlp, x, normed, rows, hidden);
            project<T>(normed, rows, layer.gate_up, of_gate_up, inner, nullptr, wide, room);
            if (model.activation == SILU)
                gate_rows<T, SILU>(wide, within, rows, layer.down.inputs);
            else
                gate_rows<T, GELU_TANH>(wide, within, rows, layer.down.inputs);
            if (layer.after_mlp.weight) {
                project<T>(within, rows, layer.down, of_down, inner, nullptr, normed, room);
                add_normed_rows(layer.after_mlp, normed, x, rows, hidden);
            } else
                project<T>(within, rows, layer.down, of_down, inner, x, x, room);
        }
    }
}

#define FOR_TYPE(T, SUFFIX)                                                                                            \
    extern "C" void decode_##SUFFIX(const Model *model, const Call *call, int threads) {                               \
        decode<T>(model, call, threads);                                                                               \
    }

FOR_TYPE(float, float)
FOR_TYPE(bfloat16, bfloat16)
