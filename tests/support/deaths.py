"""Ways in which a process dies of a fault of the CPU, and by its own hand."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import tempfile
import threading
from types import FunctionType
from typing import TypeAlias

from air_executor.runs.record import RunState

Fault: TypeAlias = FunctionType


def segmentation_fault() -> None:
    ctypes.string_at(0)


def segmentation_fault_in_a_thread() -> None:
    thread = threading.Thread(target=segmentation_fault)
    thread.start()
    thread.join()


def bus_error() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        memory[0]


def stack_overflow() -> None:
    # In C, where Python counts nothing: glibc's parser of regular expressions calls itself for each parenthesis.
    depth = 10**6
    ctypes.CDLL(None).regcomp(ctypes.create_string_buffer(1024), b"(" * depth + b")" * depth, 1)


def arithmetic_fault() -> None:
    signal.raise_signal(signal.SIGFPE)


def illegal_instruction() -> None:
    signal.raise_signal(signal.SIGILL)


def segmentation_fault_from_outside() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    signal.pause()


#: Faults, with the signal of each.
FAULTS: dict[Fault, signal.Signals] = {
    segmentation_fault: signal.SIGSEGV,
    segmentation_fault_in_a_thread: signal.SIGSEGV,
    segmentation_fault_from_outside: signal.SIGSEGV,
    bus_error: signal.SIGBUS,
    stack_overflow: signal.SIGSEGV,
    arithmetic_fault: signal.SIGFPE,
    illegal_instruction: signal.SIGILL,
}

#: How tasks of the DAG ``trouble`` die: the task, the state of its run, and the reason that is told.
DEATHS = [
    ("exits_at_once", RunState.FAILED, "exit code 0 without telling"),
    ("exits_with_a_code", RunState.FAILED, "exit code 42"),
    ("segfaults", RunState.KILLED, "SIGSEGV (signal 11)"),
    ("is_killed", RunState.KILLED, "SIGKILL (signal 9)"),
]
