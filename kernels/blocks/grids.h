/* grids.h: the points of GGUF's IQ types, each of 8 or 4 values of a byte, the first the lowest. */
#ifndef DSI_KERNELS_BLOCKS_GRIDS_H
#define DSI_KERNELS_BLOCKS_GRIDS_H

#include <stdint.h>

extern const uint64_t dsi_grid_iq1_s[2048], dsi_grid_iq2_xxs[256], dsi_grid_iq2_xs[512],
    dsi_grid_iq2_s[1024];
extern const uint32_t dsi_grid_iq3_xxs[256], dsi_grid_iq3_s[512];

#endif
