"""Writes unicode.inc: the class of every code point, in two stages (block index, then two bits a code point).

    pip install unicodedata2==16.0.0 && python csrc/text/make_unicode.py

Unicode 16.0: letters are general category L*, numbers N*; white space is the property White_Space.
"""

from pathlib import Path

import unicodedata2

WHITE_SPACE = [
    *range(9, 14),
    0x20,
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
]
BLOCK = 256  # code points; 64 bytes of table
OTHER, LETTER, NUMBER, SPACE = range(4)


def class_of(code: int) -> int:
    if code in WHITE_SPACE:
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(unicodedata2.category(chr(code))[0], OTHER)


def block(first: int) -> bytes:
    """Two bits for each of BLOCK code points, lowest first."""
    quads = range(first, first + BLOCK, 4)
    return bytes(sum(class_of(quad + k) << 2 * k for k in range(4)) for quad in quads)


def array(name: str, kind: str, values: list[int], columns: int) -> str:
    lines = [",".join(map(str, values[i : i + columns])) for i in range(0, len(values), columns)]
    return f"static const {kind} {name}[{len(values)}] = {{\n" + ",\n".join(lines) + "};\n"


def main() -> None:
    assert unicodedata2.unidata_version == "16.0.0", unicodedata2.unidata_version
    blocks: dict[bytes, int] = {}
    index = [blocks.setdefault(block(first), len(blocks)) for first in range(0, 0x110000, BLOCK)]
    assert len(blocks) <= 256
    text = "/* Made by make_unicode.py from Unicode 16.0.0. */\n"
    text += array("rt_class_block", "uint8_t", index, 64)
    text += array("rt_class_bits", "uint8_t", list(b"".join(blocks)), 32)
    Path(__file__).with_name("unicode.inc").write_text(text)


if __name__ == "__main__":
    main()
