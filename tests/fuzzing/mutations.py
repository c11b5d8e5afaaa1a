"""Damage to valid files: by bits, by lengths, by the habits of formats, and by ill will."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

_NUMBERS = (
    b"1e999", b"-1e999", b"9" * 400, b"9" * 5000, b"-1", b"0", b"NaN", b"-Infinity", b"Infinity", b"1e-400", b".nan", b".inf",
    b"18446744073709551616", b"9223372036854775808", b"2147483648", b"true", b"null", b"~", b'"x"', b"[]", b"{}", b"1_000",
    b"0x1F", b"1:30",
)  # fmt: skip
_TEXTS = (
    b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\x80", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\xe2\x80\xa8", b"\x1b[2J",
    b"\r", b"\n", b"\t", b'"', b"'", b"\\", b",", b":", b"{", b"}", b"[", b"]", b"#", b"- ", b"? ", b"| ", b"> ", b"---\n", b"...\n",
    b"../../../etc/passwd", b"/dev/zero", b"%s%n", b"{{ 7*7 }}", b"\xf0\x9f\x99\x82", b" " * 3000,
)  # fmt: skip
_YAML = (
    b"\nx: &x [1, 2]\ny: *x\n", b"\n<<: *nobody\n", b"\na: &a [*a]\n", b"\n!!python/object/apply:os.system ['touch owned']\n",
    b"\nz: !!python/name:os.system\n", b"\nz: !!binary '!'\n", b"\nz: 2024-13-45\n", b"\nz: 2024-02-30T99:99:99\n", b"\nz: !own {a: 1}\n",
    b"\n? [a, b]\n: c\n", b"\n? {a: b}\n: c\n", b"\n%YAML 9.9\n", b"\nz: 1:99:99\n", b"\n1: 2\n", b"\nnull: 3\n", b"\nz: !!set {a, b}\n",
    b"\nb0: &b0 [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"b%d: &b%d [%s]\n" % (i, i, b",".join([b"*b%d" % (i - 1)] * 9)) for i in range(1, 12)
    ),
)  # fmt: skip


def _place(draw: random.Random, data: bytes) -> int:
    return draw.randrange(len(data) + 1)


def flip_bits(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: _place(draw, data)]


def remove(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start = _place(draw, data)
    return data[:start] + data[start + draw.choice((1, 2, 8, 64)) :]


def repeat(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start = _place(draw, data)
    return data[:start] + data[start : start + draw.choice((1, 8, 64, 512))] * draw.choice((2, 3, 50)) + data[start:]


def splice(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = draw.choice(list(others) or [data])
    return data[: _place(draw, data)] + other[_place(draw, other) :]


def overwrite_number(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A binary whole number: lengths, counts, offsets."""
    value = draw.choice((0, 1, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1))
    packed = struct.pack("<Q", value)[: draw.choice((1, 2, 4, 8))]
    near_end = max(0, len(data) - draw.choice((8, 64, 512)))  # footers
    start = draw.choice((_place(draw, data[:64]), _place(draw, data), near_end))
    return data[:start] + packed + data[start + len(packed) :]


def replace_number(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", data))
    if not found:
        return insert(draw, data, others)
    one = draw.choice(found)
    return data[: one.start()] + draw.choice(_NUMBERS) + data[one.end() :]


def replace_text(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    found = list(re.finditer(rb'"[^"\n]*"|\b[a-z_]{2,}\b', data))
    if not found:
        return insert(draw, data, others)
    one, other = draw.choice(found), draw.choice(found)
    new = draw.choice((other.group(), b'""', b"null", b'[["a"]]', draw.choice(_TEXTS), b'"' + b"x" * 300 + b'"'))
    return data[: one.start()] + new + data[one.end() :]


def insert(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start = draw.choice((0, _place(draw, data), _place(draw, data), len(data)))
    return data[:start] + draw.choice(_TEXTS) + data[start:]


def insert_noise(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    start = _place(draw, data)
    return data[:start] + draw.randbytes(draw.choice((1, 4, 32, 256))) + data[start:]


def nest(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    depth, (before, after) = (
        draw.choice((10, 70, 1100, 20_000)),
        draw.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"(", b")"))),
    )
    start = draw.choice((0, _place(draw, data)))
    return (
        data[:start]
        + before * depth
        + draw.choice((b"1", b"", data[start : start + 20]))
        + after * depth
        + data[start:]
    )


def double_key(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    found = list(re.finditer(rb'"\w+": ?("[^"]*"|-?[\d.]+), ?|^[ ]*\w+:.*\n', data, re.MULTILINE))
    if not found:
        return repeat(draw, data, others)
    one = draw.choice(found)
    return data[: one.end()] + one.group() + data[one.end() :]


def move_lines(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    lines = data.splitlines(keepends=True)
    draw.shuffle(lines) if draw.random() < 0.3 else lines.insert(_place(draw, lines), draw.choice(lines or [b"\n"]))  # type: ignore[arg-type]
    return b"".join(lines)


def indent(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    lines = data.splitlines(keepends=True) or [b"\n"]
    place = draw.randrange(len(lines))
    lines[place] = draw.choice((b" ", b"  ", b"\t", b"- ")) + lines[place]
    return b"".join(lines)


def encode_otherwise(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data.decode("utf-8", "replace").encode(
        draw.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-7")), "replace"
    )


def yaml_tricks(draw: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data + draw.choice(_YAML) if draw.random() < 0.6 else draw.choice(_YAML) + data


ANY: tuple[Mutation, ...] = (flip_bits, truncate, remove, repeat, splice, insert, insert_noise)
BINARY: tuple[Mutation, ...] = (*ANY, overwrite_number, overwrite_number, overwrite_number)
TEXT: tuple[Mutation, ...] = (
    *ANY, replace_number, replace_number, replace_text, replace_text, nest, double_key, move_lines, encode_otherwise,
)  # fmt: skip
YAML: tuple[Mutation, ...] = (*TEXT, yaml_tricks, yaml_tricks, indent)


def mutate(draw: random.Random, kinds: Sequence[Mutation], data: bytes, others: Sequence[bytes]) -> bytes:
    """One to three mutations, at most about a megabyte."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = draw.choice(kinds)(draw, data, others)
    return data[: 2**20]
