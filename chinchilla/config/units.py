"""Numbers as people write them: "10m", "20MB", "3e14".

The field's kind decides what a suffix means: `m` is minutes for a time and millions for a count.
"""

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, DecimalException
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

_NUMBER = re.compile(r"^\s*([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*$")

TIME_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
LATENCY_S = TIME_S | {"ms": 1e-3, "us": 1e-6, "ns": 1e-9}
ENERGY_J = {"": 1.0, "J": 1.0, "kJ": 1e3, "MJ": 1e6, "GJ": 1e9, "Wh": 3.6e3, "kWh": 3.6e6, "MWh": 3.6e9}
SIZE_BYTES = {
    "": 1.0,
    "B": 1.0,
    "kB": 1e3,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "TiB": 2.0**40,
}
COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "m": 1e6, "M": 1e6, "b": 1e9, "B": 1e9, "g": 1e9, "G": 1e9}
COUNT |= {"t": 1e12, "T": 1e12, "P": 1e15, "E": 1e18}


def parse(text: object, units: Mapping[str, float], kind: str) -> Any:
    """Turn "10m" into a number in base units; what is not text is returned as it is.

    Raises:
        ValueError: the text is not a number with one of the known suffixes.
    """
    if not isinstance(text, str):
        return text
    match = _NUMBER.match(text)
    if match is None or match[2] not in units:
        known = ", ".join(unit for unit in units if unit)
        with_units = f", with one of {known} if you like" if known else " alone"
        raise ValueError(f"{text!r} is not {_article(kind)} {kind}: write a number{with_units}")
    try:
        # In decimals, since 16.1 * 1e3 is no whole number in binary.
        return float(Decimal(match[1]) * Decimal(units[match[2]]))
    except DecimalException:
        raise ValueError(f"{text!r} is not {_article(kind)} {kind}: {match[1]!r} is not a number") from None


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiou" else "a"


def _parser(units: Mapping[str, float], kind: str) -> Callable[[object], Any]:
    return lambda text: parse(text, units, kind)


def _whole(value: Any) -> Any:
    """Accept 2e6 where a whole number is meant; leave the refusing to pydantic."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value


def _bytes(value: object) -> Any:
    """Whole bytes; "1.3MiB", which has a fraction of one, is cut down to them."""
    parsed = parse(value, SIZE_BYTES, "size")
    if isinstance(value, str) and 1 <= parsed < math.inf:
        return math.floor(parsed)
    return _whole(parsed)


_TEXT_OR_NUMBER = WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]})

TimeS = Annotated[float, BeforeValidator(_parser(TIME_S, "time")), _TEXT_OR_NUMBER]
LatencyS = Annotated[float, BeforeValidator(_parser(LATENCY_S, "time")), _TEXT_OR_NUMBER]
EnergyJ = Annotated[float, BeforeValidator(_parser(ENERGY_J, "energy")), _TEXT_OR_NUMBER]
Number = Annotated[float, BeforeValidator(_parser({"": 1.0}, "number")), _TEXT_OR_NUMBER]
SizeBytes = Annotated[int, BeforeValidator(_bytes), _TEXT_OR_NUMBER]
Flops = Annotated[float, BeforeValidator(_parser(COUNT, "count")), _TEXT_OR_NUMBER]
Count = Annotated[int, BeforeValidator(_whole), BeforeValidator(_parser(COUNT, "count")), _TEXT_OR_NUMBER]


def show_time(seconds: float) -> str:
    """Write a duration shortly: "8m05s", "2.3s", "1h02m"."""
    if seconds < 10:
        return f"{seconds:.2g}s" if seconds >= 0.001 else f"{seconds * 1e6:.0f}µs"
    if seconds < 90:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def show_energy(joules: float) -> str:
    """Write an energy with three figures: "2.5 kWh" from 100 Wh on, "42 kJ" below."""
    units = (("MWh", 3.6e9), ("kWh", 3.6e6), ("Wh", 3.6e5)) if joules >= 3.6e5 else (("kJ", 1e3), ("J", 0.0))
    unit = next(unit for unit, size in units if joules >= size)
    return f"{_three_figures(joules / ENERGY_J[unit]):g} {unit}"


def _three_figures(value: float) -> float:
    # First, so that 999 999 becomes 1M and not 1e+03k.
    return float(f"{value:.3g}")


def show_count(value: float) -> str:
    """Write a count with three figures and a suffix: "4.72M", "3.1e+15" above 1000T."""
    value = _three_figures(value)
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < size * 1e3:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def show_bytes(value: float) -> str:
    """Write a size with three figures: "18.2 MB"."""
    value = _three_figures(value)
    for size, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= size:
            return f"{value / size:.3g} {suffix}"
    return f"{value:.0f} B"
