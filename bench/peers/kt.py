"""kt-kernel's FP8 experts as an operator: 32 of DeepSeek-V3's shape, 8 per row."""

import statistics
import time

import torch
from kt_kernel import kt_kernel_ext

EXPERTS, TOP_K, HIDDEN, INTER, BLOCK, CHOICES = 32, 8, 7168, 2048, 128, 8


def codes(rows, columns):
    """Random E4M3 codes below 2 in size (no NaN) and their scales, for every expert."""
    values = torch.randint(0, 256, (EXPERTS, rows, columns), dtype=torch.uint8) & 0xBF
    return values, torch.full((EXPERTS, rows // BLOCK, columns // BLOCK), 0.01)


class Experts:
    """The class AMXFP8_MOE, which takes AVX-512 with BF16 where there is no AMX."""

    def __init__(self, threads, most_rows=512):
        torch.manual_seed(0)
        self.pool = kt_kernel_ext.CPUInfer(threads)
        config = kt_kernel_ext.moe.MOEConfig(EXPERTS, TOP_K, HIDDEN, INTER, 0)
        config.max_len = most_rows
        config.quant_config.bits, config.quant_config.group_size = 8, BLOCK
        config.quant_config.zero_point = False
        gate, up, down = codes(INTER, HIDDEN), codes(INTER, HIDDEN), codes(HIDDEN, INTER)
        for name, (values, scales) in (("gate", gate), ("up", up), ("down", down)):
            setattr(config, f"{name}_proj", values.data_ptr())
            setattr(config, f"{name}_scale", scales.data_ptr())
        config.pool = self.pool.backend_
        self.experts = kt_kernel_ext.moe.AMXFP8_MOE(config)
        order = torch.arange(EXPERTS, dtype=torch.int64)
        self.pool.submit(self.experts.load_weights_task(order.data_ptr()))
        self.pool.sync()  # the weights are packed into memory of its own

    def seconds(self, rows, limit=1.5, enough=40):
        """Median of one call; every call has other experts."""
        ids = torch.stack([torch.rand(rows, EXPERTS).argsort(-1)[:, :TOP_K]
                           for _ in range(CHOICES)]).contiguous()
        shares = torch.full((rows, TOP_K), 1 / TOP_K)
        x = torch.randn(rows, HIDDEN, dtype=torch.bfloat16)
        y, count = torch.empty_like(x), torch.tensor([rows], dtype=torch.int32)
        times, begin = [], time.perf_counter()
        for i in range(-CHOICES if rows < BLOCK else -1, enough):
            start = time.perf_counter()
            self.pool.submit(self.experts.forward_task(
                count.data_ptr(), TOP_K, ids[i % CHOICES].data_ptr(), shares.data_ptr(),
                x.data_ptr(), y.data_ptr(), False))
            self.pool.sync()
            if i >= 0:
                times.append(time.perf_counter() - start)
            if len(times) >= 2 and time.perf_counter() - begin > limit:
                break
        return statistics.median(times)
