"""How a launcher lays out its memory, so that runners and task processes copy little of it.

A forked process shares each page of memory with the launcher until it writes to that page. CPython writes to every
object that it reads, as each holds its reference count. So the objects that tasks use should lie side by side, and so
should those that they make.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from types import CodeType, FunctionType

#: The objects that fill the gaps; kept, as deleting them would open the gaps again.
_filling: list[object] = []

#: The size of a ``bytes`` object without its content, in bytes.
_BYTES_HEAD = sys.getsizeof(b"")


def freeze() -> None:
    """Hide all objects from the garbage collector, and have what forks make lie on pages of its own."""
    gc.collect()
    fill_gaps()
    gc.freeze()


def fill_gaps() -> None:
    """Use up the free blocks among those in use: new objects would be scattered over the shared pages."""
    for size, number in free_blocks().items():
        if size >= _BYTES_HEAD:
            _filling.append([bytes(size - _BYTES_HEAD) for _ in range(number)])
        else:
            _filling.append([object() if size == sys.getsizeof(object()) else complex(n) for n in range(number)])


def free_blocks() -> dict[int, int]:
    """Return the number of free blocks that CPython's allocator has between others, by their size in bytes."""
    if not hasattr(sys, "_debugmallocstats"):
        return {}
    try:
        with tempfile.TemporaryFile() as file:
            with _stderr_to(file.fileno()):
                sys._debugmallocstats()
            file.seek(0)
            lines = [line.split() for line in file]
    except OSError as error:
        print(f"gaps in memory can't be found, which costs tasks a little memory: {error}", flush=True)
        return {}
    # class, size, pools, blocks in use, free blocks
    return {int(line[1]): int(line[4]) for line in lines if len(line) == 5 and all(map(bytes.isdigit, line))}


@contextlib.contextmanager
def _stderr_to(fd: int) -> Iterator[None]:
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def gather_code(used: Collection[CodeType]) -> None:
    """Give the functions with the code ``used`` copies of it that lie side by side.

    After an import, the code that runs lies among code that does not, and among texts and names.
    """
    # By identity: code that is equal may be that of another file.
    functions: dict[int, list[FunctionType]] = {id(code): [] for code in used}
    for each in gc.get_objects():
        # By type(): isinstance() would make lazy objects import what they stand for.
        if type(each) is FunctionType and id(each.__code__) in functions:
            functions[id(each.__code__)].append(each)
    originals = [code for code in used if functions[id(code)]]
    # The first copies fill gaps. They are kept, as are the originals: what is deleted leaves a gap.
    _filling.append([originals, [code.replace() for code in originals]])
    for code in originals:
        copy = code.replace()
        for function in functions[id(code)]:
            function.__code__ = copy
