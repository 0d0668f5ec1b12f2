"""Numbers for people."""

from __future__ import annotations

__all__ = ["amount", "duration"]


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(59), duration(600), duration(9000)
    ('59 s', '10 min', '2.5 h')
    """
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def amount(number: float) -> str:
    """A number of parameters, multiply-adds or milliseconds for people.

    >>> amount(9_874_321), amount(1_940_000_000), amount(12.3456), amount(12)
    ('9.87 M', '1.94 G', '12.35', '12')
    """
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return str(number) if isinstance(number, int) else f"{number:.2f}"
