"""How a launcher lays out its memory, so that runners and task processes make little of it private.

A forked process shares each page of memory with the launcher until it writes to it, and CPython writes to whatever it
looks at: objects hold the count of their references. So what tasks use should lie together, and so should what they
make.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from types import CodeType, FunctionType

#: What fills the gaps. Letting go of it would open them again.
_filling: list[object] = []

#: What a ``bytes`` object takes beside its content.
_BYTES_HEAD = sys.getsizeof(b"")


def freeze() -> None:
    """Put all objects out of the garbage collector's sight, and let what forks make lie on pages of its own."""
    gc.collect()
    fill_gaps()
    gc.freeze()


def fill_gaps() -> None:
    """Use up the free blocks among those that are in use; new objects would be scattered among all that is shared."""
    for size, number in free_blocks().items():
        if size >= _BYTES_HEAD:
            _filling.append([bytes(size - _BYTES_HEAD) for _ in range(number)])
        else:
            _filling.append([object() if size == sys.getsizeof(object()) else complex(n) for n in range(number)])


def free_blocks() -> dict[int, int]:
    """Return how many blocks of each size, in bytes, CPython's allocator has free between others."""
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

    Where modules were imported, the code that runs lies among that which does not, their texts and their names.
    """
    # By identity: code that is equal may be that of another file.
    functions: dict[int, list[FunctionType]] = {id(code): [] for code in used}
    for each in gc.get_objects():
        # By type(): other objects may stand for functions, and be made real by being asked.
        if type(each) is FunctionType and id(each.__code__) in functions:
            functions[id(each.__code__)].append(each)
    originals = [code for code in used if functions[id(code)]]
    # The first copies fill gaps, and stay there, as do the originals: what is let go of is a gap.
    _filling.append([originals, [code.replace() for code in originals]])
    for code in originals:
        copy = code.replace()
        for function in functions[id(code)]:
            function.__code__ = copy
