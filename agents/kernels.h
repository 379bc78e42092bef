// What the kernels have in common: bfloat16, functions of single values, vectors, and what is done to one row or head.
//
// Values of bfloat16 are widened to float32, and rounded where transformers' own modules round, so that learner,
// sampler and architecture agree.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

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
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    Words words;
    std::memcpy(&words, &x, sizeof words);
    words = (words + 0x7fffu + ((words >> 16) & 1u)) >> 16;
    words = x == x ? words : Words{} + 0x7fc0u;
    Halves halves = __builtin_convertvector(words, Halves);
    std::memcpy(to, &halves, sizeof halves);
#endif
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

// Sixteen times e^x; nothing where it is as good as nothing, so that what is impossible stays so.
static inline Floats exponentials(Floats x) {
    const Floats given = x;
    x = x < -87.0f ? Floats{} - 87.0f : x;
    x = x > 88.0f ? Floats{} + 88.0f : x;
    const Floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats p = Floats{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    typedef int32_t Integers __attribute__((vector_size(64)));
    const Integers exponent = (__builtin_convertvector(n, Integers) + 127) << 23;
    Floats power;
    std::memcpy(&power, &exponent, sizeof power);
    return given < -87.0f ? Floats{} : p * power;
}

template <typename T>
static inline void norm_row(const T *in, const T *weight, T *out, long size, float offset, float eps) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < size; i++) sum += widen(in[i]) * widen(in[i]);
    float inverse = 1.0f / std::sqrt(sum / size + eps);
    if (offset == 0.0f) {
#pragma omp simd
        for (long i = 0; i < size; i++) out[i] = narrow<T>(rounded<T>(widen(in[i]) * inverse) * widen(weight[i]));
    } else {
#pragma omp simd
        for (long i = 0; i < size; i++) out[i] = narrow<T>(widen(in[i]) * inverse * (widen(weight[i]) + offset));
    }
}

static inline Floats rounded_floats(const float *, Floats x) { return x; }

static inline Floats rounded_floats(const bfloat16 *, Floats x) {
    bfloat16 kept[LANES];
    store(kept, x);
    return load(kept);
}

static inline Floats sigmoids(Floats x) { return 1.0f / (1.0f + exponentials(-x)); }

template <typename T, int activation> static inline void gate_row(const T *gate, const T *up, T *out, long size) {
    long i = 0;
    for (; i + LANES <= size; i += LANES) {
        const Floats x = load(gate + i);
        const Floats inner = activation == SILU ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
        store(out + i, rounded_floats(out, x * sigmoids(inner)) * load(up + i));
    }
    for (; i < size; i++) out[i] = narrow<T>(rounded<T>(activated<activation>(widen(gate[i]))) * widen(up[i]));
}

// Turns the halves of a head against each other. `sin` comes with the sign of its half. `back` is the transposed turn,
// which is the gradient. `out` may be `in`.
template <typename T, bool back> static inline void turn_head(const T *in, const T *c, const T *s, T *out, long size) {
    const long half = size / 2;
#pragma omp simd
    for (long i = 0; i < half; i++) {
        float low = widen(in[i]), high = widen(in[i + half]);
        float from_high = back ? widen(s[i + half]) : widen(s[i]);
        float from_low = back ? widen(s[i]) : widen(s[i + half]);
        out[i] = narrow<T>(rounded<T>(low * widen(c[i])) + high * from_high);
        out[i + half] = narrow<T>(rounded<T>(high * widen(c[i + half])) + low * from_low);
    }
}

// What a new token sees: of its own keys those from `first` on, `count` of them, and of the `before` tokens of a prompt
// in front of them those from `first_of_prompt` on.
struct Seen {
    long first, count, first_of_prompt, before;
    Seen(int64_t last, int64_t before, int64_t window)
        : first(std::max<int64_t>(0, last + 1 - window)), count(last + 1 - first),
          first_of_prompt(std::max<int64_t>(0, before + last + 1 - window)), before(before) {}
};

// Turns the scores of R heads on what is seen into probabilities: on own keys, each head's `stride` after the one
// before, and on a prompt's, each head's L long.
template <typename T>
static inline void share_out(float *scores, long stride, T *prompt, long L, const Seen &seen, long R, float softcap) {
    const long count = seen.count, first = seen.first_of_prompt, before = seen.before;
    for (long r = 0; r < R; r++) {
        float *score = scores + r * stride;
        T *on_prompt = prompt + r * L;
        float highest = -INFINITY, total = 0.0f;
        for (long t = 0; t < count; t++) score[t] = rounded<T>(score[t]);
        if (softcap > 0.0f) {
            for (long t = 0; t < count; t++) score[t] = rounded<T>(softcap * std::tanh(score[t] / softcap));
            for (long t = first; t < before; t++)
                on_prompt[t] = narrow<T>(softcap * std::tanh(widen(on_prompt[t]) / softcap));
        }
#pragma omp simd reduction(max : highest)
        for (long t = 0; t < count; t++) highest = std::max(highest, score[t]);
#pragma omp simd reduction(max : highest)
        for (long t = first; t < before; t++) highest = std::max(highest, widen(on_prompt[t]));
#pragma omp simd reduction(+ : total)
        for (long t = 0; t < count; t++) total += score[t] = exponential(score[t] - highest);
#pragma omp simd reduction(+ : total)
        for (long t = first; t < before; t++) total += exponential(widen(on_prompt[t]) - highest);
        const float inverse = 1.0f / total;
        for (long t = 0; t < std::min(first, L); t++) on_prompt[t] = narrow<T>(0.0f);
#pragma omp simd
        for (long t = first; t < before; t++)
            on_prompt[t] = narrow<T>(exponential(widen(on_prompt[t]) - highest) * inverse);
        for (long t = before; t < L; t++) on_prompt[t] = narrow<T>(0.0f);
        for (long t = 0; t < count; t++) score[t] = rounded<T>(score[t] * inverse);
    }
}
