"""Hearing what decord's FFmpeg says about damage, which decord itself does not pass on.

FFmpeg reports each message through a C function that a program may set. It does so some ten times a frame, mostly to
say what nobody asked, on the decoding thread as well. A Python function there would wait for the interpreter lock each
time: with a busy Python thread beside it, decoding took 1.5 to 1.9 times as long. So the function is a few machine
instructions that count the messages that matter, compiled in 50 ms by llvmlite, which Numba brings along; they cost
nothing that could be measured.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
from dataclasses import dataclass
from typing import Any

# void heard(void *context, int level, const char *format, va_list values), with the counter's address filled in
_CODE = """
define void @heard(ptr %context, i32 %level, ptr %format, ptr %values) {{
  %low = and i32 %level, 255
  %bad = icmp ule i32 %low, 24                              ; AV_LOG_WARNING or worse
  br i1 %bad, label %note, label %look
look:
  %start = load i32, ptr %format, align 1
  %made_up = icmp eq i32 %start, 1668181859                 ; "conc"ealing: parts of a picture were made up
  br i1 %made_up, label %note, label %done
note:
  %before = atomicrmw add ptr inttoptr (i64 {count} to ptr), i64 1 seq_cst
  store atomic ptr %format, ptr inttoptr (i64 {last} to ptr) seq_cst, align 8
  br label %done
done:
  ret void
}}
"""


@dataclass
class Ear:
    """What was heard in this process: how many complaints, and the last one's format string."""

    _heard: ctypes.Array[ctypes.c_uint64]
    _engine: Any  # owns the compiled function

    @property
    def count(self) -> int:
        """Complaints so far, of all readers."""
        return int(self._heard[0])

    @property
    def last(self) -> str:
        """The last complaint, its values left out."""
        return ctypes.string_at(self._heard[1]).decode(errors="replace").strip() if self._heard[1] else ""


@functools.cache
def ear() -> Ear | None:
    """Start listening (once a process); ``None`` where decord's FFmpeg cannot be reached."""
    import llvmlite.binding as llvm
    from decord._ffi.base import _LIB

    if not hasattr(_LIB, "av_log_set_callback"):
        return None
    heard = (ctypes.c_uint64 * 2)()
    place = ctypes.addressof(heard)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(_CODE.format(count=place, last=place + 8))
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
    engine.finalize_object()
    _LIB.av_log_set_callback(ctypes.c_void_p(engine.get_function_address("heard")))
    atexit.register(_LIB.av_log_set_callback, _LIB.av_log_default_callback)
    return Ear(heard, engine)
