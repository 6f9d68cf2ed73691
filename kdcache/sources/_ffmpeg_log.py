"""A log callback for decord's FFmpeg that counts its warnings about damage, which decord itself does not pass on.

FFmpeg reports each message through a C callback that a program may set, some ten times a frame, mostly debug output,
and on the decoding thread as well. A Python callback would wait for the interpreter lock each time: with a busy Python
thread beside it, decoding took 1.5 to 1.9 times as long. So the callback is a few machine instructions that count the
warnings, compiled in 50 ms by llvmlite, which Numba brings along; their cost could not be measured.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
from dataclasses import dataclass
from typing import Any

# void on_message(void *context, int level, const char *format, va_list values), with the counter's address filled in
_CODE = """
define void @on_message(ptr %context, i32 %level, ptr %format, ptr %values) {{
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
class FFmpegLog:
    """What FFmpeg logged in this process: how many warnings, and the last one's format string."""

    _counter: ctypes.Array[ctypes.c_uint64]
    _engine: Any  # owns the compiled function

    @property
    def count(self) -> int:
        """Warnings so far, of all readers."""
        return int(self._counter[0])

    @property
    def last(self) -> str:
        """The last warning, its values left out."""
        return ctypes.string_at(self._counter[1]).decode(errors="replace").strip() if self._counter[1] else ""


@functools.cache
def ffmpeg_log() -> FFmpegLog | None:
    """Set the callback (once a process); ``None`` where decord's FFmpeg cannot be reached."""
    import llvmlite.binding as llvm
    from decord._ffi.base import _LIB

    if not hasattr(_LIB, "av_log_set_callback"):
        return None
    counter = (ctypes.c_uint64 * 2)()
    address = ctypes.addressof(counter)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(_CODE.format(count=address, last=address + 8))
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
    engine.finalize_object()
    _LIB.av_log_set_callback(ctypes.c_void_p(engine.get_function_address("on_message")))
    atexit.register(_LIB.av_log_set_callback, _LIB.av_log_default_callback)
    return FFmpegLog(counter, engine)
