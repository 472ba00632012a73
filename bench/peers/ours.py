"""libdsinfer through its C interface (ctypes), as little of it as the comparisons need."""

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_uint64
from ctypes import c_void_p

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("BUILD", f"{ROOT}/build")
ACTIVATIONS = {"bf16": 0, "f32": 1, "a8": 2}


class EngineOptions(ctypes.Structure):
    """The beginning of dsi_engine_options (include/deepseek/dsinfer.h)."""

    _fields_ = [
        ("struct_size", c_uint32), ("n_threads", c_uint32), ("max_memory", c_uint64),
        ("max_sessions", c_uint32), ("max_context", c_uint32), ("kv_tokens", c_uint32),
        ("chunk_tokens", c_uint32), ("activations", c_uint32), ("attention", c_uint32),
        ("backend", c_char_p), ("kernels", c_char_p), ("rest", c_uint32 * 16),
    ]


class SessionOptions(ctypes.Structure):
    """The beginning of dsi_session_options; what follows keeps its defaults."""

    _fields_ = [
        ("struct_size", c_uint32), ("top_k", c_uint32), ("temperature", c_float),
        ("top_p", c_float), ("min_p", c_float), ("max_tokens", c_uint32), ("seed", c_uint64),
        ("all_logits", c_uint32), ("ignore_end", c_uint32), ("rest", c_uint32 * 64),
    ]


class ModelInfo(ctypes.Structure):
    """dsi_model_info."""

    _fields_ = (
        [("struct_size", c_uint32), ("n_layers", c_uint32), ("hidden_size", c_uint32),
         ("vocab_size", c_uint32)] + [(f"count_{i}", c_uint32) for i in range(8)]
        + [("n_params_total", c_uint64), ("n_params_active", c_uint64), ("n_params_mtp", c_uint64),
           ("n_bytes_weights", c_uint64), ("n_bytes_token", c_uint64), ("n_bytes_kv", c_uint64),
           ("architecture", c_char_p), ("chat_template", c_char_p)]
    )


class Ours:
    """One checkpoint, one engine, `sessions` sessions."""

    def __init__(self, folder, threads, sessions=1, context=1024, activations="bf16", chunk=256,
                 all_logits=False):
        self.lib = lib = ctypes.CDLL(f"{BUILD}/libdsinfer.so")
        lib.dsi_last_error.restype = lib.dsi_engine_describe.restype = c_char_p
        lib.dsi_last_error.argtypes = lib.dsi_engine_describe.argtypes = [c_void_p]
        lib.dsi_session_n_queued.restype = c_size_t
        lib.dsi_session_n_queued.argtypes = [c_void_p]
        lib.dsi_session_close.argtypes = [c_void_p]
        self.model, self.engine = c_void_p(), c_void_p()
        self.call("dsi_model_open", folder.encode(), None, byref(self.model), handle=None)
        self.info = ModelInfo(struct_size=ctypes.sizeof(ModelInfo))
        self.call("dsi_model_get_info", self.model, byref(self.info), handle=self.model)
        options = EngineOptions()
        lib.dsi_engine_options_init(byref(options))
        options.n_threads, options.max_sessions = threads, sessions
        options.max_context, options.chunk_tokens = context, chunk
        options.kv_tokens = (context + 64) * sessions
        options.activations = ACTIVATIONS[activations]
        self.call("dsi_engine_open", self.model, byref(options), byref(self.engine), handle=None)
        self.options = SessionOptions()
        lib.dsi_session_options_init(byref(self.options))
        self.options.ignore_end, self.options.all_logits = 1, int(all_logits)
        self.sessions = []
        for _ in range(sessions):
            self.sessions.append(self.open_session())

    def call(self, name, *arguments, handle):
        status = getattr(self.lib, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: {self.lib.dsi_last_error(handle).decode()}")

    def open_session(self):
        session = c_void_p()
        self.call("dsi_session_open", self.engine, byref(self.options), byref(session),
                  handle=self.engine)
        return session

    def describe(self):
        return self.lib.dsi_engine_describe(self.engine).decode()

    def append(self, session, tokens):
        array = (c_int32 * len(tokens))(*tokens)
        self.call("dsi_session_append", session, array, c_size_t(len(tokens)), handle=session)

    def step(self):
        """One step of all sessions."""
        array = (c_void_p * len(self.sessions))(*self.sessions)
        self.call("dsi_engine_step", self.engine, array, c_size_t(len(self.sessions)), None,
                  handle=self.engine)

    def drain(self):
        """Steps until nothing is queued."""
        while any(self.lib.dsi_session_n_queued(s) for s in self.sessions):
            self.step()

    def logits(self, session):
        """The rows of the last step as a numpy array, copied."""
        import numpy

        rows, first, data = c_size_t(), c_size_t(), POINTER(c_float)()
        self.call("dsi_session_logits", session, byref(data), byref(rows), byref(first),
                  handle=session)
        shape = (rows.value, self.info.vocab_size)
        return numpy.ctypeslib.as_array(data, shape=shape).copy()

    def rewind(self, session, n_tokens):
        self.call("dsi_session_rewind", session, c_size_t(n_tokens), handle=session)

    def renew(self):
        """Every session empty again."""
        for session in self.sessions:
            self.lib.dsi_session_close(session)
        self.sessions = [self.open_session() for _ in self.sessions]

    def save(self, path):
        """Session 0 to a file; restore reads it into every session."""
        self.call("dsi_session_save", self.sessions[0], path.encode(), handle=self.sessions[0])

    def restore(self, path):
        for session in self.sessions:
            self.call("dsi_session_restore", session, path.encode(), handle=session)
