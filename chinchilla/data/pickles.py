"""Pickled dictionaries of numbers and arrays, read without running anything they ask for.

A pickle is a program. This reads those that only build dictionaries, lists, texts, numbers and NumPy arrays of bytes,
and calls nothing but the few functions below, which take NumPy's names.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla.data.rows import MalformedError

_OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES "
    "BINBYTES8 EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
)
_MAX_TUPLES, _MAX_GETS = 1000, 24
_MEND = "fetch it from where the data set is published, or give the binary version"
_DAMAGED = (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError, MemoryError)


def read_pickle(data: bytes) -> dict[Any, Any]:
    """The pickled dictionary; its arrays are uint8, its Python 2 texts are bytes.

    Raises:
        MalformedError: it holds anything else, or is damaged.
    """
    try:
        _check(data)
        fields = _Reader(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(fields, dict):
            raise MalformedError(f"a pickled {type(fields).__name__}, not a dictionary; {_MEND}")
        return {key: value.pixels if isinstance(value, _Array) else value for key, value in fields.items()}
    except _DAMAGED as error:
        raise MalformedError(f"a damaged pickle ({error}); fetch it anew") from None


def _check(data: bytes) -> None:
    tuples, gets, allowed = 0, 0, frozenset(_OPCODES.split())
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in allowed:
            raise MalformedError(f"a pickle that uses {opcode.name}, which plain numbers do not need; {_MEND}")
        # A memo takes memory up to its largest number, a tuple of tuples of tuples the stack, when hashed, and one that
        # holds each of them twice takes twice as long with each.
        tuples += opcode.name.startswith("TUPLE")
        gets += opcode.name.endswith("GET")
        far = opcode.name.endswith("PUT") and int(str(argument)) > len(data)
        if tuples > _MAX_TUPLES or gets > _MAX_GETS or far:
            raise MalformedError(f"a pickle made to exhaust the reader; {_MEND}")


class _Array:
    """Stands for `numpy.ndarray` while a pickle is read."""

    pixels: NDArray[np.uint8]

    def __setstate__(self, state: tuple[int, tuple[int, ...], "_Dtype", bool, bytes]) -> None:
        _, shape, _, by_column, data = state
        self.pixels = np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if by_column else "C")


class _Dtype:
    """Stands for `numpy.dtype`; only bytes are read."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        if name not in ("u1", b"u1", "|u1", "uint8"):
            shown = repr(name) if isinstance(name, str | bytes) else type(name).__name__
            raise MalformedError(f"an array of {shown}, not of bytes; {_MEND}")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, which bytes have none of."""


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Python 3 writes bytes as text in the older protocols."""
    if encoding != "latin1":
        raise MalformedError(f"a text that is not in latin1; {_MEND}")
    return text.encode("latin1")


_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise MalformedError(f"a pickle that asks for {module}.{name}, which is not run; {_MEND}")
        return _ALLOWED[module, name]
