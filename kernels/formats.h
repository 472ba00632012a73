/* formats.h: scalar conversions between f32 and the number formats of files.
 *
 * FP8 is E4M3 as in OCP OFP8 (and torch.float8_e4m3fn): bias 7, no infinity, 0x7F and 0xFF are NaN.
 * Narrowing rounds to nearest even. Files promise no alignment, so values are read byte-wise. */
#ifndef DSI_KERNELS_FORMATS_H
#define DSI_KERNELS_FORMATS_H

#include <deepseek/types.h>
#include <stdint.h>
#include <string.h>

/* Bytes of one element of a format in DSI_DTYPE_LIST. */
static inline int64_t dsi_element_bytes(dsi_dtype dtype) {
    switch (dtype) {
#define DSI_ELEMENT_BYTES(name, code, bytes, text)                                                 \
    case name:                                                                                     \
        return bytes;
        DSI_DTYPE_LIST(DSI_ELEMENT_BYTES)
#undef DSI_ELEMENT_BYTES
    default:
        return 0;
    }
}

/* Bytes of n elements from the start of a row; of I4, where two share a byte, rounded up; of GGUF's
 * blocks n is a whole number of them. */
static inline int64_t dsi_row_bytes(dsi_dtype dtype, int64_t n) {
    switch (dtype) {
    case DSI_DTYPE_I4:
        return (n + 1) / 2;
#define DSI_BLOCK_BYTES(name, type, values, bytes, text)                                           \
    case name:                                                                                     \
        return n / (values) * (bytes);
        DSI_BLOCK_DTYPE_LIST(DSI_BLOCK_BYTES)
#undef DSI_BLOCK_BYTES
    default:
        return n * dsi_element_bytes(dtype);
    }
}

static inline uint32_t dsi_f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float dsi_f32_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Element i of an array of f32 or of 16-bit numbers that may lie at any address. */
static inline float dsi_load_f32(const void *array, int64_t i) {
    float value;
    memcpy(&value, (const uint8_t *)array + 4 * i, sizeof value);
    return value;
}

static inline uint16_t dsi_load_u16(const void *array, int64_t i) {
    uint16_t value;
    memcpy(&value, (const uint8_t *)array + 2 * i, sizeof value);
    return value;
}

static inline float dsi_bf16_to_f32(uint16_t bf16) {
    return dsi_f32_from_bits((uint32_t)bf16 << 16);
}

/* NaN stays a (quiet) NaN; values above the largest bf16 round to infinity. */
static inline uint16_t dsi_f32_to_bf16(float value) {
    uint32_t bits = dsi_f32_bits(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

static inline float dsi_f16_to_f32(uint16_t f16) {
    uint32_t sign = (uint32_t)(f16 & 0x8000u) << 16, exponent = (f16 >> 10) & 31u;
    uint32_t mantissa = f16 & 0x3FFu;
    if (exponent == 31) return dsi_f32_from_bits(sign | 0x7F800000u | mantissa << 13);
    if (exponent != 0) return dsi_f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float denormal = (float)mantissa * 0x1p-24f;
    return sign ? -denormal : denormal;
}

/* Values that round above 65504 become infinity, NaN stays NaN. */
static inline uint16_t dsi_f32_to_f16(float value) {
    uint32_t bits = dsi_f32_bits(value), sign = (bits >> 16) & 0x8000u,
             magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u);
    if (magnitude < 0x38800000u) {
        /* Below 2^-14 the step is 2^-24, which is the last bit of a float in [0.5, 1). */
        float shifted = dsi_f32_from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (dsi_f32_bits(shifted) - 0x3F000000u));
    }
    magnitude += 0xFFFu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | ((magnitude >> 13) - (112u << 10)));
}

static inline float dsi_e4m3_to_f32(uint8_t code) {
    uint32_t sign = (uint32_t)(code & 0x80u) << 24, magnitude = code & 0x7Fu;
    if (magnitude == 0x7Fu) return dsi_f32_from_bits(sign | 0x7FC00000u);
    if (magnitude >= 8) return dsi_f32_from_bits(sign | ((magnitude << 20) + (120u << 23)));
    float denormal = (float)magnitude * 0x1p-9f;
    return sign ? -denormal : denormal;
}

/* Finite values and infinities beyond the range saturate to +-448, NaN stays NaN. */
static inline uint8_t dsi_f32_to_e4m3(float value) {
    uint32_t bits = dsi_f32_bits(value), sign = (bits >> 24) & 0x80u,
             magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return (uint8_t)(sign | 0x7Fu);
    if (magnitude >= 0x43E00000u) return (uint8_t)(sign | 0x7Eu);
    if (magnitude < 0x3C800000u) {
        /* Below 2^-6 the step is 2^-9, which is the last bit of a float in [2^14, 2^15). */
        float shifted = dsi_f32_from_bits(magnitude) + 0x1p14f;
        return (uint8_t)(sign | (dsi_f32_bits(shifted) - 0x46800000u));
    }
    magnitude += 0x7FFFFu + ((magnitude >> 20) & 1u);
    return (uint8_t)(sign | ((magnitude >> 20) - (120u << 3)));
}

/* Column i of a row of I4: -8..7. */
static inline int dsi_load_i4(const uint8_t *row, int64_t i) {
    return (row[i / 2] >> (i % 2 * 4) & 15) - 8;
}

/* Multiplier i of an array of F32, BF16 or F16. */
static inline float dsi_load_scale(dsi_dtype dtype, const void *array, int64_t i) {
    if (dtype == DSI_DTYPE_F32) return dsi_load_f32(array, i);
    uint16_t half = dsi_load_u16(array, i);
    return dtype == DSI_DTYPE_BF16 ? dsi_bf16_to_f32(half) : dsi_f16_to_f32(half);
}

#endif
