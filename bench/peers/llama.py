"""llama.cpp through its C interface (the low-level half of llama_cpp_python)."""

import ctypes

import llama_cpp

FLASH = {"on": 1, "off": 0, "auto": -1}
_silent = llama_cpp.llama_log_callback(lambda level, text, user: None)


class Llama:
    """One GGUF file and one context with room for `sessions` sequences of `context` tokens."""

    def __init__(self, path, threads, sessions=1, context=1024, repack=True, flash="auto",
                 ubatch=512):
        llama_cpp.llama_log_set(_silent, None)
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.use_extra_bufts = repack
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not open {path}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model))
        self.threads = threads
        self.context = None
        self.configure(sessions, context, flash, ubatch)

    def configure(self, sessions, context, flash="auto", ubatch=512, unified=False):
        """A new, empty context for the same weights; unified: all sequences in one row of cells."""
        if self.context:
            llama_cpp.llama_free(self.context)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = context if unified else sessions * context
        options.n_batch = 2048
        options.n_ubatch = ubatch
        options.n_seq_max = max(sessions, 1)
        options.n_threads = options.n_threads_batch = self.threads
        options.flash_attn_type = FLASH[flash]
        options.kv_unified = unified
        options.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp gives no context")
        self.memory = llama_cpp.llama_get_memory(self.context)

    def clear(self):
        llama_cpp.llama_memory_clear(self.memory, False)

    def decode(self, rows, all_logits=False):
        """rows: (token, position, sequence); logits of the last of each sequence, or of all."""
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        last = {sequence: i for i, (_, _, sequence) in enumerate(rows)}
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = all_logits or last[sequence] == i
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_synchronize(self.context)
        llama_cpp.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")

    def logits(self, row):
        """Logits of one row of the last batch as a numpy array, copied."""
        import numpy

        data = llama_cpp.llama_get_logits_ith(self.context, row)
        data = ctypes.cast(data, ctypes.POINTER(ctypes.c_float))
        return numpy.ctypeslib.as_array(data, shape=(self.vocab_size,)).copy()

    def fill(self, depth, computed=256):
        """Sequence 0 sees `depth` cached rows: copies of the first ones, which are computed.

        What the rows hold does not change the work. The context must be unified and have
        depth / computed sequences. Returns the position that comes next.
        """
        self.decode([(2 + i % 1000, i, 0) for i in range(computed)])
        n = llama_cpp.llama_state_seq_get_size(self.context, 0)
        state = (ctypes.c_uint8 * n)()
        llama_cpp.llama_state_seq_get_data(self.context, state, n, 0)
        for sequence in range(1, depth // computed):
            if not llama_cpp.llama_state_seq_set_data(self.context, state, n, sequence):
                raise RuntimeError("llama.cpp has no room for a copy of a sequence")
            llama_cpp.llama_memory_seq_cp(self.memory, sequence, 0, -1, -1)
        return computed

    def close(self):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)
