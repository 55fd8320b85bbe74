"""Numbers as people read them: without needless powers of ten, never on the wrong side."""

import math

SMALLEST_P = 1e-4  # below it a p value says nothing more, and 0 would be untrue


def plain(value: float, n_digits: int = 3) -> str:
    """So many significant digits, written out from 1e-4 up to a billion.

    >>> plain(110.3, 2), plain(0.01234), plain(1234.5), plain(2.5e7), plain(2.5e9), plain(0.0)
    ('110', '0.0123', '1,230', '25,000,000', '2.5e+09', '0')
    """
    text = f"{value:.{n_digits}g}"
    is_long = 1 <= abs(value) < 1e9 and ("e" in text or abs(value) >= 1000)
    return f"{float(text):,.0f}" if is_long else text


def factor(decades: float, n_digits: int = 3) -> str:
    """10^decades, also where no float holds it.

    >>> factor(2.456), factor(-1.0), factor(-400.0)
    ('286', '0.1', '10^-400')
    """
    is_held = not 300 <= abs(decades) < math.inf
    return plain(10**decades, n_digits) if is_held else f"10^{decades:.0f}"


def times(decades: float, n_digits: int = 3) -> str:
    """10^|decades|: how many times larger or smaller.

    >>> times(-2.456), times(400.0)
    ('286', '10^400')
    """
    return factor(abs(decades), n_digits)


def part(share: float) -> str:
    """
    >>> part(0.5), part(1 / 3), part(0.15)
    ('half', 'a third', '0.15')
    """
    names = {1: "all", 2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 10: "a tenth"}
    name = names.get(round(1 / share)) if share else None
    return name if name and math.isclose(share * round(1 / share), 1) else f"{share:g}"


def p_text(p: float) -> str:
    """
    >>> p_text(0.0312), p_text(0.0)
    ('p = 0.031', 'p < 0.0001')
    """
    return f"p < {SMALLEST_P:.4f}" if p < SMALLEST_P else f"p = {p:.2g}"


def beside(value: float, threshold: float) -> str:
    """To two decimals, or to as many more as keep it on its side of the threshold.

    >>> beside(0.8996, 0.9), beside(0.85, 0.9)
    ('0.8996', '0.85')
    """
    if not (math.isfinite(value) and math.isfinite(threshold)) or value == threshold:
        return f"{value:.2f}"
    for n in range(2, 15):
        text = f"{value:.{n}f}"
        if float(text) != threshold and (float(text) < threshold) == (value < threshold):
            return text
    return repr(value)


def power_of_two(exponent: float) -> str:
    """In the way it is written by hand.

    >>> power_of_two(-13)
    '2⁻¹³'
    """
    return "2" + f"{exponent:.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
