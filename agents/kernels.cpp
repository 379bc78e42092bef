// The parts of a decoder that are not matrix products, for processors: each one pass over its data where torch takes
// several. Compiled by `kernels.py` on the machine where it runs.
//
// Values of bfloat16 are widened to float32, and rounded where transformers' own modules round, so that learner,
// sampler and architecture agree. Tensors are row-major; strides count elements.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

struct bfloat16 {
    uint16_t bits;
};

static inline float widen(float x) { return x; }

static inline float widen(bfloat16 x) {
    uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

template <typename T> static inline T narrow(float x);

template <> inline float narrow<float>(float x) { return x; }

// To nearest, ties to even; a NaN stays one.
template <> inline bfloat16 narrow<bfloat16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return bfloat16{static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
}

template <typename T> static inline float rounded(float x) { return widen(narrow<T>(x)); }

// e^x to about one unit in the last place, without branches, so that loops over it become vector instructions.
static inline float exponential(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
    float n = (x * 1.44269504f + shift) - shift;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

enum Activation { SILU = 0, GELU_TANH = 1 };

// The inner function of the GELU's approximation by tanh (Hendrycks & Gimpel 2016): gelu(x) = x * sigmoid(2 u(x)).
static inline float gelu_inner(float x) { return 1.5957691216f * (x + 0.044715f * x * x * x); }

template <int activation> static inline float activated(float x) {
    return x * sigmoid(activation == SILU ? x : gelu_inner(x));
}

template <int activation> static inline float slope(float x) {
    if (activation == SILU) {
        float s = sigmoid(x);
        return s * (1.0f + x * (1.0f - s));
    }
    float s = sigmoid(gelu_inner(x));
    return s + x * s * (1.0f - s) * 1.5957691216f * (1.0f + 3.0f * 0.044715f * x * x);
}

// Rows shorter than this in all are not worth waking the other threads.
static const long WORTH_THREADS = 1 << 14;

template <typename T>
static void rms_norm(const T *x, const T *weight, T *y, long rows, long heads, long size, long x_stride, long y_stride,
                     float offset, float eps, int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) if (rows * heads * size > WORTH_THREADS)
    for (long row = 0; row < rows; row++)
        for (long head = 0; head < heads; head++) {
            const T *in = x + row * x_stride + head * size;
            T *out = y + row * y_stride + head * size;
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < size; i++) sum += widen(in[i]) * widen(in[i]);
            float inverse = 1.0f / std::sqrt(sum / size + eps);
            if (offset == 0.0f) {
#pragma omp simd
                for (long i = 0; i < size; i++)
                    out[i] = narrow<T>(rounded<T>(widen(in[i]) * inverse) * widen(weight[i]));
            } else {
#pragma omp simd
                for (long i = 0; i < size; i++)
                    out[i] = narrow<T>(widen(in[i]) * inverse * (widen(weight[i]) + offset));
            }
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

template <typename T, int activation>
static void gated(const T *gate_up, T *y, long rows, long size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > WORTH_THREADS / 4)
    for (long row = 0; row < rows; row++) {
        const T *gate = gate_up + 2 * row * size, *up = gate + size;
        T *out = y + row * size;
#pragma omp simd
        for (long i = 0; i < size; i++)
            out[i] = narrow<T>(rounded<T>(activated<activation>(widen(gate[i]))) * widen(up[i]));
    }
}

template <typename T, int activation>
static void gated_backward(const T *grad, const T *gate_up, T *found, long rows, long size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > WORTH_THREADS / 4)
    for (long row = 0; row < rows; row++) {
        const T *gate = gate_up + 2 * row * size, *up = gate + size, *g = grad + row * size;
        T *of_gate = found + 2 * row * size, *of_up = of_gate + size;
#pragma omp simd
        for (long i = 0; i < size; i++) {
            float value = widen(gate[i]), outer = widen(g[i]);
            of_up[i] = narrow<T>(rounded<T>(activated<activation>(value)) * outer);
            of_gate[i] = narrow<T>(rounded<T>(outer * widen(up[i])) * slope<activation>(value));
        }
    }
}

// Turns the halves of each head against each other. `sin` comes with the sign of its half. `back` is the transposed
// turn, which is the gradient. `y` may be `x`.
template <typename T, bool back>
static void rotary(const T *x, const T *cos, const T *sin, T *y, long rows, long heads, long size, long x_stride,
                   long y_stride, int threads) {
    const long half = size / 2;
#pragma omp parallel for num_threads(threads) if (rows * heads * size > WORTH_THREADS)
    for (long row = 0; row < rows; row++) {
        const T *c = cos + row * size, *s = sin + row * size;
        for (long head = 0; head < heads; head++) {
            const T *in = x + row * x_stride + head * size;
            T *out = y + row * y_stride + head * size;
#pragma omp simd
            for (long i = 0; i < half; i++) {
                float low = widen(in[i]), high = widen(in[i + half]);
                float from_high = back ? widen(s[i + half]) : widen(s[i]);
                float from_low = back ? widen(s[i]) : widen(s[i + half]);
                out[i] = narrow<T>(rounded<T>(low * widen(c[i])) + high * from_high);
                out[i + half] = narrow<T>(rounded<T>(high * widen(c[i + half])) + low * from_low);
            }
        }
    }
}

// Sixteen values at once: GCC and Clang make of them what the processor has.
static const long LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef float EightFloats __attribute__((vector_size(32)));
typedef float FourFloats __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

static inline Floats load(const float *x) {
    Floats values;
    std::memcpy(&values, x, sizeof values);
    return values;
}

static inline Floats load(const bfloat16 *x) {
    Halves halves;
    std::memcpy(&halves, x, sizeof halves);
    Words words = __builtin_convertvector(halves, Words) << 16;
    Floats values;
    std::memcpy(&values, &words, sizeof values);
    return values;
}

static inline void store(float *to, Floats x) { std::memcpy(to, &x, sizeof x); }

static inline void store(bfloat16 *to, Floats x) {
    Words words;
    std::memcpy(&words, &x, sizeof words);
    words = (words + 0x7fffu + ((words >> 16) & 1u)) >> 16;
    words = x == x ? words : Words{} + 0x7fc0u;
    Halves halves = __builtin_convertvector(words, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

static inline float sum(Floats x) {
    EightFloats halves[2];
    std::memcpy(halves, &x, sizeof x);
    halves[0] += halves[1];
    FourFloats quarters[2];
    std::memcpy(quarters, halves, sizeof quarters);
    quarters[0] += quarters[1];
    return (quarters[0][0] + quarters[0][2]) + (quarters[0][1] + quarters[0][3]);
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
                for (long i = 0; i < R * PARTS; i++) {
                    queries[i] = load(q + row * q_stride + group * R * D + i * LANES);
                    sums[i] = Floats{};
                }
                const int64_t first = std::max<int64_t>(0, last + 1 - window);
                const int64_t first_of_prompt = std::max<int64_t>(0, before + last + 1 - window);
                const long count = last + 1 - first;
                scores.resize(R * count);
                for (long t = 0; t < count; t++) {
                    Floats key[PARTS];
                    for (int i = 0; i < PARTS; i++) key[i] = load(own_keys + (first + t) * D + i * LANES);
                    for (long r = 0; r < R; r++) {
                        const Floats *query = queries.data() + r * PARTS;
                        Floats products = query[0] * key[0];
                        for (int i = 1; i < PARTS; i++) products += query[i] * key[i];
                        scores[r * count + t] = sum(products) * scale;
                    }
                }
                for (long r = 0; r < R; r++) {
                    float *score = scores.data() + r * count;
                    T *on_prompt = prompt + ((row * G + group) * R + r) * L;
                    float highest = -INFINITY, total = 0.0f;
                    for (long t = 0; t < count; t++) score[t] = rounded<T>(score[t]);
                    if (softcap > 0.0f) {
                        for (long t = 0; t < count; t++)
                            score[t] = rounded<T>(softcap * std::tanh(score[t] / softcap));
                        for (long t = first_of_prompt; t < before; t++)
                            on_prompt[t] = narrow<T>(softcap * std::tanh(widen(on_prompt[t]) / softcap));
                    }
#pragma omp simd reduction(max : highest)
                    for (long t = 0; t < count; t++) highest = std::max(highest, score[t]);
                    for (long t = first_of_prompt; t < before; t++) highest = std::max(highest, widen(on_prompt[t]));
#pragma omp simd reduction(+ : total)
                    for (long t = 0; t < count; t++) total += score[t] = exponential(score[t] - highest);
#pragma omp simd reduction(+ : total)
                    for (long t = first_of_prompt; t < before; t++) total += exponential(widen(on_prompt[t]) - highest);
                    const float inverse = 1.0f / total;
                    for (long t = 0; t < std::min<int64_t>(first_of_prompt, L); t++) on_prompt[t] = narrow<T>(0.0f);
#pragma omp simd
                    for (long t = first_of_prompt; t < before; t++)
                        on_prompt[t] = narrow<T>(exponential(widen(on_prompt[t]) - highest) * inverse);
                    for (long t = before; t < L; t++) on_prompt[t] = narrow<T>(0.0f);
                    for (long t = 0; t < count; t++) score[t] = rounded<T>(score[t] * inverse);
                }
                for (long t = 0; t < count; t++) {
                    Floats value[PARTS];
                    for (int i = 0; i < PARTS; i++) value[i] = load(own_values + (first + t) * D + i * LANES);
                    for (long r = 0; r < R; r++)
                        for (int i = 0; i < PARTS; i++) sums[r * PARTS + i] += scores[r * count + t] * value[i];
                }
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
