// The parts of a decoder that are not matrix products, for processors: each one pass over its data where torch takes
// several. Compiled by `kernels.py` on the machine where it runs. Tensors are row-major; strides count elements.

#include "kernels.h"

template <typename T>
static void rms_norm(const T *x, const T *weight, T *y, long rows, long heads, long size, long x_stride, long y_stride,
                     float offset, float eps, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) if (rows * heads * size > WORTH_THREADS)
    for (long row = 0; row < rows; row++)
        for (long head = 0; head < heads; head++) {
            const T *in = x + row * x_stride + head * size;
            norm_row(in, weight, y + row * y_stride + head * size, size, offset, eps);
        }
}

template <typename T>
static void rms_norm_backward(const T *grad, const T *x, const T *weight, T *x_grad, long rows, long heads, long size,
                              long grad_stride, long x_stride, float offset, float eps, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) if (rows * heads * size > WORTH_THREADS)
    for (long row = 0; row < rows; row++)
        for (long head = 0; head < heads; head++) {
            const T *in = x + row * x_stride + head * size;
            const T *g = grad + row * grad_stride + head * size;
            T *out = x_grad + (row * heads + head) * size;
            float sum = 0.0f, along = 0.0f;
#pragma omp simd reduction(+ : sum, along)
            for (long i = 0; i < size; i++) {
                float value = widen(in[i]);
                sum += value * value;
                along += widen(g[i]) * (widen(weight[i]) + offset) * value;
            }
            float inverse = 1.0f / std::sqrt(sum / size + eps);
            float back = along * inverse * inverse / size;
#pragma omp simd
            for (long i = 0; i < size; i++)
                out[i] = narrow<T>((widen(g[i]) * (widen(weight[i]) + offset) - widen(in[i]) * back) * inverse);
        }
}

template <typename T, int activation> static void gated(const T *gate_up, T *y, long rows, long size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > WORTH_THREADS / 4)
    for (long row = 0; row < rows; row++) {
        const T *gate = gate_up + 2 * row * size;
        gate_row<T, activation>(gate, gate + size, y + row * size, size);
    }
}

template <typename T, int activation>
static void gated_backward(const T *grad, const T *gate_up, T *found, long rows, long size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > WORTH_THREADS / 4)
    for (long row = 0; row < rows; row++) {
        const T *gate = gate_up + 2 * row * size, *up = gate + size, *g = grad + row * size;
        T *of_gate = found + 2 * row * size, *of_up = of_gate + size;
        long i = 0;
        for (; i + LANES <= size; i += LANES) {
            const Floats x = load(gate + i), outer = load(g + i);
            const Floats s = sigmoids(activation == SILU ? x : 1.5957691216f * (x + 0.044715f * x * x * x));
            const Floats steep = activation == SILU ? Floats{} + 1.0f : 1.5957691216f * (1.0f + 0.134145f * x * x);
            store(of_up + i, rounded_floats(grad, x * s) * outer);
            store(of_gate + i, rounded_floats(grad, outer * load(up + i)) * (s + x * s * (1.0f - s) * steep));
        }
        for (; i < size; i++) {
            float value = widen(gate[i]), outer = widen(g[i]);
            of_up[i] = narrow<T>(rounded<T>(activated<activation>(value)) * outer);
            of_gate[i] = narrow<T>(rounded<T>(outer * widen(up[i])) * slope<activation>(value));
        }
    }
}

// The halves of each head turned against each other, see `turn_head`.
template <typename T, bool back>
static void rotary(const T *x, const T *cos, const T *sin, T *y, long rows, long heads, long size, long x_stride,
                   long y_stride, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * heads * size > WORTH_THREADS)
    for (long row = 0; row < rows; row++) {
        const T *c = cos + row * size, *s = sin + row * size;
        for (long head = 0; head < heads; head++)
            turn_head<T, back>(x + row * x_stride + head * size, c, s, y + row * y_stride + head * size, size);
    }
}

// Attention of one new token over its own keys and values for the R heads that share them, D = PARTS * LANES; see
// `share_out`. Gives the part of the output that comes from the own values.
template <typename T, int PARTS>
static inline void attend_own(const Floats *queries, const T *own_keys, const T *own_values, const Seen &seen,
                              T *prompt, long R, long L, float scale, float softcap, std::vector<float> &scores,
                              Floats *sums) {
    const long D = PARTS * LANES, first = seen.first, count = seen.count;
    for (long i = 0; i < R * PARTS; i++) sums[i] = Floats{};
    scores.resize(R * count);
    for (long t = 0; t < count; t++) {
        Floats key[PARTS];
        for (int i = 0; i < PARTS; i++) key[i] = load(own_keys + (first + t) * D + i * LANES);
        for (long r = 0; r < R; r++) {
            const Floats *query = queries + r * PARTS;
            Floats products = query[0] * key[0];
            for (int i = 1; i < PARTS; i++) products += query[i] * key[i];
            scores[r * count + t] = sum(products) * scale;
        }
    }
    share_out(scores.data(), count, prompt, L, seen, R, softcap);
    for (long t = 0; t < count; t++) {
        Floats value[PARTS];
        for (int i = 0; i < PARTS; i++) value[i] = load(own_values + (first + t) * D + i * LANES);
        for (long r = 0; r < R; r++)
            for (int i = 0; i < PARTS; i++) sums[r * PARTS + i] += scores[r * count + t] * value[i];
    }
}

// Attention of one new token per row: it sees its own keys, the new one included, and the prompt whose scores come
// along. Writes the new keys and values into the caches, turns the prompt's scores into probabilities in place and
// gives the part of the output that comes from the own values.
//
//   q (B, G * R, D), new_k and new_v (B, G, D): each row `*_stride` after the one before; D = PARTS * LANES
//   keys, values (B, G, capacity, D); place (B): where the new token goes, so the row's own keys are 0..place
//   prompt (B, G, R, L) scores; prompt_length (B), at most L each
//   window: how many positions back a token sees, itself included
template <typename T, int PARTS>
static void attend(const T *q, const T *new_k, const T *new_v, T *keys, T *values, const int64_t *place, T *prompt,
                   const int64_t *prompt_length, T *out, long B, long G, long R, long capacity, long L, long q_stride,
                   long k_stride, long v_stride, float scale, float softcap, int64_t window, int threads) {
    const long D = PARTS * LANES;
#pragma omp parallel num_threads(threads) if (B * G > 1)
    {
        std::vector<float> scores;
        std::vector<Floats> queries(R * PARTS), sums(R * PARTS);
#pragma omp for collapse(2) schedule(static)
        for (long row = 0; row < B; row++)
            for (long group = 0; group < G; group++) {
                const int64_t last = place[row], before = prompt_length[row];
                T *own_keys = keys + (row * G + group) * capacity * D;
                T *own_values = values + (row * G + group) * capacity * D;
                std::memcpy(own_keys + last * D, new_k + row * k_stride + group * D, D * sizeof(T));
                std::memcpy(own_values + last * D, new_v + row * v_stride + group * D, D * sizeof(T));
                for (long i = 0; i < R * PARTS; i++) queries[i] = load(q + row * q_stride + group * R * D + i * LANES);
                attend_own<T, PARTS>(queries.data(), own_keys, own_values, Seen(last, before, window),
                                     prompt + (row * G + group) * R * L, R, L, scale, softcap, scores, sums.data());
                T *target = out + (row * G + group) * R * D;
                for (long i = 0; i < R * PARTS; i++) store(target + i * LANES, sums[i]);
            }
    }
}

// Adds a LoRA update to few rows: y += (x A^T) B^T, the inner product rounded. Adapters of layers that read the same
// input lie side by side: `part` p has the ranks from `ranks[p]` to `ranks[p + 1]` and writes the outputs from
// `outputs[p]` to `outputs[p + 1]`.
//
//   x (rows, K), a (r, K), b (r, N): the transposed B, each rank's values for all outputs; y (rows, N)
template <typename T>
static void add_lora(const T *x, const T *a, const T *b, T *y, long rows, long K, long N, long parts,
                     const int64_t *ranks, const int64_t *outputs, int threads) {
    const long r = ranks[parts], COLUMNS = 4 * LANES;
    std::vector<float> inner(rows * r);
    float *products = inner.data();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for collapse(2) schedule(static)
        for (long j = 0; j < r; j += 4)
            for (long row = 0; row < rows; row += 4) {
                const long high = std::min(4L, rows - row), wide = std::min(4L, r - j);
                Floats sums[4][4] = {};
                long k = 0;
                for (; k + LANES <= K; k += LANES) {
                    Floats left[4], right[4];
                    // Beyond the edge the last row again: computed and thrown away.
                    for (long i = 0; i < 4; i++) left[i] = load(x + (row + std::min(i, high - 1)) * K + k);
                    for (long i = 0; i < 4; i++) right[i] = load(a + (j + std::min(i, wide - 1)) * K + k);
                    for (long m = 0; m < 4; m++)
                        for (long n = 0; n < 4; n++) sums[m][n] += left[m] * right[n];
                }
                for (long m = 0; m < high; m++)
                    for (long n = 0; n < wide; n++) {
                        float found = sum(sums[m][n]);
                        for (long rest = k; rest < K; rest++)
                            found += widen(x[(row + m) * K + rest]) * widen(a[(j + n) * K + rest]);
                        products[(row + m) * r + j + n] = rounded<T>(found);
                    }
            }
        for (long part = 0; part < parts; part++) {
            const long first = outputs[part], last = outputs[part + 1];
            if (ranks[part] == ranks[part + 1]) continue;  // no adapter on this layer
#pragma omp for collapse(2) schedule(static) nowait
            for (long column = first; column < last; column += COLUMNS)
                for (long row = 0; row < rows; row += 4) {
                    const long high = std::min(4L, rows - row), wide = std::min(COLUMNS, last - column);
                    if (wide < COLUMNS) {
                        for (long m = 0; m < high; m++)
                            for (long n = column; n < column + wide; n++) {
                                float found = widen(y[(row + m) * N + n]);
                                for (long j = ranks[part]; j < ranks[part + 1]; j++)
                                    found += products[(row + m) * r + j] * widen(b[j * N + n]);
                                y[(row + m) * N + n] = narrow<T>(found);
                            }
                        continue;
                    }
                    Floats sums[4][4];
                    for (long m = 0; m < 4; m++)
                        for (long n = 0; n < 4; n++)
                            sums[m][n] = load(y + (row + std::min(m, high - 1)) * N + column + n * LANES);
                    for (long j = ranks[part]; j < ranks[part + 1]; j++) {
                        Floats right[4];
                        for (long n = 0; n < 4; n++) right[n] = load(b + j * N + column + n * LANES);
                        for (long m = 0; m < 4; m++) {
                            const float left = products[(row + std::min(m, high - 1)) * r + j];
                            for (long n = 0; n < 4; n++) sums[m][n] += left * right[n];
                        }
                    }
                    for (long m = 0; m < high; m++)
                        for (long n = 0; n < 4; n++) store(y + (row + m) * N + column + n * LANES, sums[m][n]);
                }
        }
    }
}

static inline float share(float x) { return x < -87.0f ? 0.0f : exponential(x); }

template <typename T> static float largest(const T *x, long size) {
    float found = -INFINITY;
    Floats lanes = Floats{} - INFINITY;
    long i = 0;
    for (; i + LANES <= size; i += LANES) {
        const Floats values = load(x + i);
        lanes = values > lanes ? values : lanes;
    }
    for (long lane = 0; lane < LANES; lane++) found = std::max(found, lanes[lane]);
    for (; i < size; i++) found = std::max(found, widen(x[i]));
    return found;
}

// The sum of exp(x * factor - highest).
template <typename T> static float sum_of_shares(const T *x, long size, float factor, float highest) {
    Floats lanes{};
    long i = 0;
    for (; i + LANES <= size; i += LANES) lanes += exponentials(load(x + i) * factor - highest);
    float found = sum(lanes);
    for (; i < size; i++) found += share(widen(x[i]) * factor - highest);
    return found;
}

// The log of the sum of exponentials of each row of logits, divided by the row's temperature. `blocks`, if any, gets
// the probability of each `block` entries, the last of which may be fewer.
template <typename T>
static void normalizers(const T *logits, const float *temperatures, float *found, float *blocks, long rows, long size,
                        long block, int threads) {
    const long count = (size + block - 1) / block;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> sums(count);
#pragma omp for schedule(static)
        for (long row = 0; row < rows; row++) {
            const T *x = logits + row * size;
            const float factor = 1.0f / temperatures[row], highest = largest(x, size) * factor;
            float total = 0.0f;
            for (long b = 0; b < count; b++)
                total += sums[b] = sum_of_shares(x + b * block, std::min(block, size - b * block), factor, highest);
            found[row] = highest + std::log(total);
            if (blocks)
                for (long b = 0; b < count; b++) blocks[row * count + b] = sums[b] / total;
        }
    }
}

// The gradient of logits for which `outer` is that of their normalizers, and no other: outer * probability /
// temperature.
template <typename T>
static void normalizers_backward(const T *logits, const float *temperatures, const float *normalizers,
                                 const float *outer, T *grad, long rows, long size, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++) {
        const T *x = logits + row * size;
        T *to = grad + row * size;
        const float factor = 1.0f / temperatures[row], lse = normalizers[row], scale = outer[row] * factor;
        long i = 0;
        for (; i + LANES <= size; i += LANES) store(to + i, scale * exponentials(load(x + i) * factor - lse));
        for (; i < size; i++) to[i] = narrow<T>(scale * share(widen(x[i]) * factor - lse));
    }
}

// Draws a token for each sample by inverting the distribution function of its row: first a block of entries, then an
// entry of it. `normalizers` and `shares` (rows, blocks) are what `normalizers` found; `places` are the samples' rows,
// `numbers` theirs in [0, 1). Gives tokens and their log-probabilities.
template <typename T>
static void draw(const T *logits, const float *temperatures, const float *normalizers, const float *shares,
                 const int64_t *places, const double *numbers, int64_t *tokens, double *logprobs, long samples,
                 long size, long block, int threads) {
    const long count = (size + block - 1) / block;
#pragma omp parallel for schedule(static) num_threads(threads) if (samples > 4)
    for (long sample = 0; sample < samples; sample++) {
        const long row = places[sample];
        const float *share = shares + row * count, factor = 1.0f / temperatures[row], lse = normalizers[row];
        double total = 0.0, before = 0.0;
        for (long b = 0; b < count; b++) total += share[b];
        const double goal = numbers[sample] * total;
        long drawn = 0;
        while (drawn < count - 1 && before + share[drawn] <= goal) before += share[drawn++];
        while (drawn && share[drawn] == 0.0f) before -= share[--drawn];
        const T *x = logits + row * size + drawn * block;
        const long entries = std::min(block, size - drawn * block);
        double inside = 0.0, passed = 0.0;
        for (long i = 0; i < entries; i++) inside += ::share(widen(x[i]) * factor - lse);
        const double wanted = (goal - before) / share[drawn] * inside;
        // The last entry with any probability bounds the choice, should rounding push the goal past the end.
        long found = 0, last = 0;
        for (long i = 0; i < entries; i++) {
            const float part = ::share(widen(x[i]) * factor - lse);
            if (part > 0.0f) last = i;
            if ((passed += part) <= wanted) found = i + 1;
        }
        found = std::min(found, last);
        tokens[sample] = drawn * block + found;
        logprobs[sample] = widen(x[found]) * factor - lse;
    }
}

#define FOR_TYPE(T, SUFFIX)                                                                                            \
    extern "C" void rms_norm_##SUFFIX(const T *x, const T *weight, T *y, long rows, long heads, long size,             \
                                      long x_stride, long y_stride, float offset, float eps, int threads) {            \
        rms_norm(x, weight, y, rows, heads, size, x_stride, y_stride, offset, eps, threads);                           \
    }                                                                                                                  \
    extern "C" void rms_norm_backward_##SUFFIX(const T *grad, const T *x, const T *weight, T *x_grad, long rows,       \
                                               long heads, long size, long grad_stride, long x_stride, float offset,   \
                                               float eps, int threads) {                                               \
        rms_norm_backward(grad, x, weight, x_grad, rows, heads, size, grad_stride, x_stride, offset, eps, threads);    \
    }                                                                                                                  \
    extern "C" void gated_##SUFFIX(const T *gate_up, T *y, long rows, long size, int activation, int threads) {        \
        (activation == SILU ? gated<T, SILU> : gated<T, GELU_TANH>)(gate_up, y, rows, size, threads);                  \
    }                                                                                                                  \
    extern "C" void gated_backward_##SUFFIX(const T *grad, const T *gate_up, T *found, long rows, long size,           \
                                            int activation, int threads) {                                             \
        (activation == SILU ? gated_backward<T, SILU> : gated_backward<T, GELU_TANH>)(grad, gate_up, found, rows,      \
                                                                                      size, threads);                  \
    }                                                                                                                  \
    extern "C" void rotary_##SUFFIX(const T *x, const T *cos, const T *sin, T *y, long rows, long heads, long size,    \
                                    long x_stride, long y_stride, int back, int threads) {                             \
        (back ? rotary<T, true> : rotary<T, false>)(x, cos, sin, y, rows, heads, size, x_stride, y_stride, threads);   \
    }                                                                                                                  \
    extern "C" void add_lora_##SUFFIX(const T *x, const T *a, const T *b, T *y, long rows, long K, long N, long parts, \
                                      const int64_t *ranks, const int64_t *outputs, int threads) {                     \
        add_lora(x, a, b, y, rows, K, N, parts, ranks, outputs, threads);                                              \
    }                                                                                                                  \
    extern "C" void normalizers_##SUFFIX(const T *logits, const float *temperatures, float *found, float *blocks,      \
                                         long rows, long size, long block, int threads) {                              \
        normalizers(logits, temperatures, found, blocks, rows, size, block, threads);                                  \
    }                                                                                                                  \
    extern "C" void normalizers_backward_##SUFFIX(const T *logits, const float *temperatures, const float *known,      \
                                                  const float *outer, T *grad, long rows, long size, int threads) {    \
        normalizers_backward(logits, temperatures, known, outer, grad, rows, size, threads);                           \
    }                                                                                                                  \
    extern "C" void draw_##SUFFIX(const T *logits, const float *temperatures, const float *known, const float *shares, \
                                  const int64_t *places, const double *numbers, int64_t *tokens, double *logprobs,     \
                                  long samples, long size, long block, int threads) {                                  \
        draw(logits, temperatures, known, shares, places, numbers, tokens, logprobs, samples, size, block, threads);   \
    }                                                                                                                  \
    extern "C" void attend_##SUFFIX(const T *q, const T *new_k, const T *new_v, T *keys, T *values,                    \
                                    const int64_t *place, T *prompt, const int64_t *prompt_length, T *out, long B,     \
                                    long G, long R, long D, long capacity, long L, long q_stride, long k_stride,       \
                                    long v_stride, float scale, float softcap, int64_t window, int threads) {          \
        auto sized = D == 16    ? attend<T, 1>                                                                         \
                     : D == 32  ? attend<T, 2>                                                                         \
                     : D == 64  ? attend<T, 4>                                                                         \
                     : D == 96  ? attend<T, 6>                                                                         \
                     : D == 128 ? attend<T, 8>                                                                         \
                                : attend<T, 16>;                                                                       \
        sized(q, new_k, new_v, keys, values, place, prompt, prompt_length, out, B, G, R, capacity, L, q_stride,        \
              k_stride, v_stride, scale, softcap, window, threads);                                                    \
    }

FOR_TYPE(float, float)
FOR_TYPE(bfloat16, bfloat16)
