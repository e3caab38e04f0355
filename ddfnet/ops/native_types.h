/* The types in which tensors are stored, for native code that computes in type A: float or double. */
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef enum { FLOAT, DOUBLE, BFLOAT16, HALF } Type;
#define OWN_TYPE (sizeof(A) == sizeof(float) ? FLOAT : DOUBLE)

INLINE long smaller(long a, long b) { return a < b ? a : b; }
INLINE long larger(long a, long b) { return a > b ? a : b; }

INLINE float from_bits(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
INLINE uint32_t to_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }
INLINE float from_bfloat16(uint16_t h) { return from_bits((uint32_t)h << 16); }

INLINE uint16_t to_bfloat16(float f) {
    const uint32_t bits = to_bits(f);
    return f != f ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

INLINE float from_half(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h & 0x7c00;
    const uint32_t bits = ((uint32_t)(h & 0x7fff) << 13) + (112u << 23);
    const uint32_t tiny = to_bits(from_bits(bits + (1u << 23)) - 0x1p-14f);
    return from_bits(sign | (exponent == 0x7c00 ? bits + (112u << 23) : exponent == 0 ? tiny : bits));
}

INLINE uint16_t to_half(float f) {
    const uint32_t sign = to_bits(f) >> 16 & 0x8000, bits = to_bits(f) & 0x7fffffff;
    const uint32_t normal = (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
    const uint32_t tiny = to_bits(from_bits(bits) + 0.5f) - to_bits(0.5f); /* the addition rounds */
    const uint32_t large = bits > 0x7f800000 ? 0x7e00 : 0x7c00;
    return sign | (bits >= 0x47800000 ? large : bits < 113u << 23 ? tiny : normal);
}

#define SAME(value) (value)
#define EACH(convert, to_step, from_step) \
    for (long i = 0; i < n; i++) p[i * (to_step)] = convert(q[i * (from_step)]);
#define CONVERT(TO, FROM, convert)                                         \
    {                                                                      \
        TO *restrict p = (TO *)to + to_offset;                             \
        const FROM *restrict q = (const FROM *)from + from_offset;         \
        if (to_step == 1 && from_step == 1) { EACH(convert, 1, 1) }        \
        else { EACH(convert, to_step, from_step) }                         \
        break;                                                             \
    }

static void load(void *to, long to_offset, long to_step, const void *from, long from_offset, long from_step, long type,
                 long n) {
    switch (type) {
    case FLOAT: CONVERT(A, float, SAME)
    case DOUBLE: CONVERT(A, double, SAME)
    case BFLOAT16: CONVERT(A, uint16_t, from_bfloat16)
    default: CONVERT(A, uint16_t, from_half)
    }
}

static void store(void *to, long to_offset, long to_step, const void *from, long from_offset, long from_step, long type,
                  long n) {
    switch (type) {
    case FLOAT: CONVERT(float, A, SAME)
    case DOUBLE: CONVERT(double, A, SAME)
    case BFLOAT16: CONVERT(uint16_t, A, to_bfloat16)
    default: CONVERT(uint16_t, A, to_half)
    }
}
