"""Writes unicode.inc: two properties of every code point, each in two stages (block index, then four bits a code point).

    pip install unicodedata2==16.0.0 regex && python csrc/text/make_unicode.py

Unicode 16.0: kinds are groups of general categories, white space is the property White_Space; what characters join into a
grapheme is the property Grapheme_Cluster_Break, Hangul syllables left to arithmetic.
"""

from pathlib import Path

import regex
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
BLOCK = 256  # code points; 128 bytes of table
# As in unicode.h.
KINDS = ["", "Lu Lt", "Ll", "Lm Lo", "Mn Mc Me", "Nd Nl No", "White_Space", "Pc Pd Ps Pe Pi Pf Po", "Sm Sc Sk So"]
KIND_OF = {category: kind for kind, group in enumerate(KINDS) for category in group.split()}
JOINS = ["Other", "Control|CR|LF", "Extend|ZWJ", "SpacingMark", "Prepend", "L", "V", "T"]
JOIN_OF = [regex.compile("|".join(rf"\p{{GCB={name}}}" for name in group.split("|"))) for group in JOINS]


def kind_of(code: int) -> int:
    if code in WHITE_SPACE:
        return KIND_OF["White_Space"]
    return KIND_OF.get(unicodedata2.category(chr(code)), 0)


def join_of(code: int) -> int:
    if unicodedata2.category(chr(code)) == "Cn" or 0xD800 <= code < 0xE000:
        return 0
    return next((k for k in range(1, len(JOINS)) if JOIN_OF[k].match(chr(code))), 0)


def array(name: str, kind: str, values: list[int], columns: int) -> str:
    lines = [",".join(map(str, values[i : i + columns])) for i in range(0, len(values), columns)]
    return f"static const {kind} {name}[{len(values)}] = {{\n" + ",\n".join(lines) + "};\n"


def tables(name: str, property_of) -> str:
    """rt_<name>_block, the block of each 256 code points, and rt_<name>_bits, four bits for each of a block's, lowest first."""
    blocks: dict[bytes, int] = {}
    index = []
    for first in range(0, 0x110000, BLOCK):
        pairs = range(first, first + BLOCK, 2)
        index.append(blocks.setdefault(bytes(property_of(c) | property_of(c + 1) << 4 for c in pairs), len(blocks)))
    assert len(blocks) <= 256
    return array(f"rt_{name}_block", "uint8_t", index, 64) + array(f"rt_{name}_bits", "uint8_t", list(b"".join(blocks)), 32)


def main() -> None:
    assert unicodedata2.unidata_version == "16.0.0", unicodedata2.unidata_version
    text = "/* Made by make_unicode.py from Unicode 16.0.0. */\n" + tables("kind", kind_of) + tables("join", join_of)
    Path(__file__).with_name("unicode.inc").write_text(text)


if __name__ == "__main__":
    main()
