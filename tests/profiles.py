"""Colour profiles of version 2 (ICC.1:2001), made by hand: RGB, grey and CMYK."""

import itertools
import struct

# Colorants of a wide RGB space, and of sRGB in another order, adapted to D50.
WIDE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
ROTATED = ((0.1431, 0.0606, 0.7141), (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971))
WHITE = (0.9642, 1.0, 0.8249)


def fixed(values: tuple[float, ...]) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)


def made(kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of a kind (class, colours, and what these are converted to) with its tags."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(WHITE),
        **tags,
    }
    table, data = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(value))
        data += value
    head = bytearray(128)
    head[:4] = struct.pack(">I", 128 + len(table) + len(data))
    head[8:24] = b"\2\x10\0\0" + kind
    head[36:40] = b"acsp"
    head[68:80] = fixed(WHITE)
    return bytes(head) + table + data


def rgb_profile(colorants: tuple[tuple[float, ...], ...], gamma: float = 2.2) -> bytes:
    tags = {}
    for name, colorant in zip((b"r", b"g", b"b"), colorants, strict=True):
        tags |= {name + b"XYZ": b"XYZ \0\0\0\0" + fixed(colorant), name + b"TRC": curve(gamma)}
    return made(b"mntrRGB XYZ ", tags)


def grey_profile(gamma: float = 1.4) -> bytes:
    return made(b"mntrGRAYXYZ ", {b"kTRC": curve(gamma)})


def cmyk_profile() -> bytes:
    """Inks without a model: their colours between the corners are linear in Lab."""
    nodes = []
    for c, m, y, k in itertools.product((0, 1), repeat=4):
        rest = 1 - 0.9 * k
        nodes += [255 * rest * (1 - (c + m + y) / 4), 128 + 70 * rest * (m - c)]
        nodes += [128 + 70 * rest * (y - (c + m) / 2)]
    straight = bytes(range(256))
    table = b"mft1\0\0\0\0\4\3\2\0" + fixed((1, 0, 0, 0, 1, 0, 0, 0, 1)) + 4 * straight
    table += bytes(round(value) for value in nodes) + 3 * straight
    return made(b"prtrCMYKLab ", {b"A2B0": table})
