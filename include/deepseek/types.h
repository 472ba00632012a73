/* types.h: status codes, number formats and version shared by dsinfer.h, backend.h and kernels.
 *
 * Includes libc headers only. Every enum travels as a fixed-width integer. */
#ifndef DEEPSEEK_TYPES_H
#define DEEPSEEK_TYPES_H

#include <stddef.h>
#include <stdint.h>

#define DSI_VERSION_MAJOR 0
#define DSI_VERSION_MINOR 1
#define DSI_VERSION_PATCH 0
#define DSI_VERSION_TEXT "0.1.0"

/* The one list of status codes: X(name, code, English text).
 * 0 is success, everything else is negative; a code never changes its number. */
#define DSI_STATUS_LIST(X)                                                                         \
    X(DSI_OK, 0, "success")                                                                        \
    X(DSI_E_ARG, -1, "an argument is out of its range")                                            \
    X(DSI_E_NOMEM, -2, "the system has no more memory")                                            \
    X(DSI_E_IO, -3, "a file could not be opened or read")                                          \
    X(DSI_E_FORMAT, -4, "a file breaks the rules of its format")                                   \
    X(DSI_E_MODEL, -5, "the files of the checkpoint contradict each other")                        \
    X(DSI_E_UNSUPPORTED, -6, "this build does not support what was asked for")                     \
    X(DSI_E_MEMORY_CAP, -7, "the memory plan is larger than the cap")                              \
    X(DSI_E_CONTEXT, -8, "the session has no room for more tokens")                                \
    X(DSI_E_STATE, -9, "the call does not fit the state of the handle")                            \
    X(DSI_E_NAN, -10, "a logit is not a finite number")                                            \
    X(DSI_E_DEVICE, -11, "the device reported a failure")                                          \
    X(DSI_E_LOST, -12, "the device is gone")                                                       \
    X(DSI_E_TIMEOUT, -13, "the time limit has passed")                                             \
    X(DSI_E_VERSION, -14, "the versions of host and plug-in do not fit")                           \
    X(DSI_E_CANCELLED, -15, "the call was cancelled")                                              \
    X(DSI_E_BUFFER, -16, "the caller's buffer is too small; the needed size was returned")         \
    X(DSI_E_INTERNAL, -17, "an internal rule was broken; please report it")                        \
    X(DSI_E_FORK, -18, "the handle belongs to the process before fork()")

typedef int32_t dsi_status;
enum {
#define DSI_STATUS_ENUM(name, code, text) name = code,
    DSI_STATUS_LIST(DSI_STATUS_ENUM)
#undef DSI_STATUS_ENUM
};

/* Number formats of tensors: X(name, code, bytes per element, safetensors name). */
#define DSI_DTYPE_LIST(X)                                                                          \
    X(DSI_DTYPE_F32, 1, 4, "F32")                                                                  \
    X(DSI_DTYPE_F16, 2, 2, "F16")                                                                  \
    X(DSI_DTYPE_BF16, 3, 2, "BF16")                                                                \
    X(DSI_DTYPE_E4M3, 4, 1, "F8_E4M3")                                                             \
    X(DSI_DTYPE_I32, 5, 4, "I32")                                                                  \
    X(DSI_DTYPE_I64, 6, 8, "I64")                                                                  \
    X(DSI_DTYPE_I8, 7, 1, "I8")                                                                    \
    X(DSI_DTYPE_U8, 8, 1, "U8")                                                                    \
    X(DSI_DTYPE_F64, 9, 8, "F64")                                                                  \
    X(DSI_DTYPE_BOOL, 10, 1, "BOOL")                                                               \
    X(DSI_DTYPE_I16, 11, 2, "I16")                                                                 \
    X(DSI_DTYPE_E5M2, 12, 1, "F8_E5M2")

/* Number formats of GGUF in which a row of weights is cut into blocks, each with scales of its own:
 * X(name, type number in the file, values of a block, bytes of a block, name). How a block becomes
 * values stands in kernels/blocks/. */
#define DSI_BLOCK_DTYPE_LIST(X)                                                                    \
    X(DSI_DTYPE_Q4_0, 2, 32, 18, "Q4_0")                                                           \
    X(DSI_DTYPE_Q4_1, 3, 32, 20, "Q4_1")                                                           \
    X(DSI_DTYPE_Q5_0, 6, 32, 22, "Q5_0")                                                           \
    X(DSI_DTYPE_Q5_1, 7, 32, 24, "Q5_1")                                                           \
    X(DSI_DTYPE_Q8_0, 8, 32, 34, "Q8_0")                                                           \
    X(DSI_DTYPE_Q2_K, 10, 256, 84, "Q2_K")                                                         \
    X(DSI_DTYPE_Q3_K, 11, 256, 110, "Q3_K")                                                        \
    X(DSI_DTYPE_Q4_K, 12, 256, 144, "Q4_K")                                                        \
    X(DSI_DTYPE_Q5_K, 13, 256, 176, "Q5_K")                                                        \
    X(DSI_DTYPE_Q6_K, 14, 256, 210, "Q6_K")                                                        \
    X(DSI_DTYPE_IQ2_XXS, 16, 256, 66, "IQ2_XXS")                                                   \
    X(DSI_DTYPE_IQ2_XS, 17, 256, 74, "IQ2_XS")                                                     \
    X(DSI_DTYPE_IQ3_XXS, 18, 256, 98, "IQ3_XXS")                                                   \
    X(DSI_DTYPE_IQ1_S, 19, 256, 50, "IQ1_S")                                                       \
    X(DSI_DTYPE_IQ4_NL, 20, 32, 18, "IQ4_NL")                                                      \
    X(DSI_DTYPE_IQ3_S, 21, 256, 110, "IQ3_S")                                                      \
    X(DSI_DTYPE_IQ2_S, 22, 256, 82, "IQ2_S")                                                       \
    X(DSI_DTYPE_IQ4_XS, 23, 256, 136, "IQ4_XS")                                                    \
    X(DSI_DTYPE_IQ1_M, 29, 256, 56, "IQ1_M")                                                       \
    X(DSI_DTYPE_TQ1_0, 34, 256, 54, "TQ1_0")                                                       \
    X(DSI_DTYPE_TQ2_0, 35, 256, 66, "TQ2_0")                                                       \
    X(DSI_DTYPE_MXFP4, 39, 32, 17, "MXFP4")                                                        \
    X(DSI_DTYPE_NVFP4, 40, 64, 36, "NVFP4")

typedef uint32_t dsi_dtype;
enum {
    DSI_DTYPE_NONE = 0,
#define DSI_DTYPE_ENUM(name, code, bytes, text) name = code,
    DSI_DTYPE_LIST(DSI_DTYPE_ENUM)
#undef DSI_DTYPE_ENUM
    /* A format of weights, never of a tensor in a file: two values per byte. A row of n values is
     * ceil(n / 8) little-endian 32-bit words, eight values in each, the lowest four bits first;
     * value = the four bits - 8, from -8 to 7. (The files call the words I32: the "pack-quantized"
     * layout of compressed-tensors.) */
    DSI_DTYPE_I4 = 13,
    /* GGUF's types of blocks: this and the number of the type in the file. */
    DSI_DTYPE_BLOCKS = 128,
#define DSI_BLOCK_DTYPE_ENUM(name, type, values, bytes, text) name = DSI_DTYPE_BLOCKS + (type),
    DSI_BLOCK_DTYPE_LIST(DSI_BLOCK_DTYPE_ENUM)
#undef DSI_BLOCK_DTYPE_ENUM
};

/* How a quantised weight [n][k] is scaled: w[n][k] = stored * scale[n / group_n][k / group_k], the
 * scales row-major, partial groups at the ends included.
 *   BLOCK_128  group_n = group_k = 128   scale [ceil(n/128)][ceil(k/128)]
 *   CHANNEL    group_n = 1, group_k = k  scale [n][1]
 *   GROUP      group_n = 1, group_k = g  scale [n][ceil(k/g)] */
enum { DSI_SCALE_NONE = 0, DSI_SCALE_BLOCK_128 = 1, DSI_SCALE_CHANNEL = 2, DSI_SCALE_GROUP = 3 };

#define DSI_BLOCK 128    /* rows and columns of a scale block */
#define DSI_PAGE_ROWS 64 /* tokens in one page of the KV cache */

#endif
