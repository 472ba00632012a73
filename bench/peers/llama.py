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

    def configure(self, sessions, context, flash="auto", ubatch=512):
        """A new, empty context for the same weights."""
        if self.context:
            llama_cpp.llama_free(self.context)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = sessions * context if sessions > 1 else context
        options.n_batch = max(context, 2048)
        options.n_ubatch = ubatch
        options.n_seq_max = max(sessions, 1)
        options.n_threads = options.n_threads_batch = self.threads
        options.flash_attn_type = FLASH[flash]
        options.kv_unified = False
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

    def save(self, path):
        """Sequence 0 to a file; restore reads it into every sequence."""
        tokens = (llama_cpp.llama_token * 1)(0)
        if not llama_cpp.llama_state_seq_save_file(self.context, path.encode(), 0, tokens, 1):
            raise RuntimeError(f"llama.cpp cannot write {path}")

    def restore(self, path, sequences):
        tokens, n = (llama_cpp.llama_token * 8)(), ctypes.c_size_t()
        for sequence in sequences:
            if not llama_cpp.llama_state_seq_load_file(
                    self.context, path.encode(), sequence, tokens, 8, ctypes.byref(n)):
                raise RuntimeError(f"llama.cpp cannot read {path}")

    def close(self):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)
