"""Which instructions compiled code holds, and which of them stand above a level of csrc/defs/isas.def.

The assembler is the judge: each distinct instruction of a disassembly is assembled again for a processor that has the
baseline of x86-64 and the named features, no more.
"""
from __future__ import annotations

import re
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
#: Run anywhere: prefixes an older CPU skips (tzcnt is bsf there, and the compiler takes it where both give the same; endbr64
#: and the like are nops), and those the disassembler writes in a way the assembler does not take back.
ANYWHERE = re.compile(r"(notrack |bnd |data16 |cs )*(nop|j[a-z]+|call|endbr64|tzcnt|rep bsf|xchg\s+%ax,%ax|hlt)")


class Instruction(NamedTuple):
    address: int
    evex: bool
    text: str

    @property
    def name(self) -> str:
        return self.text.split()[0]


def levels() -> dict[str, list[str]]:
    """Features of each set of x86-64, without what the system grants (csrc/base/cpu.c)."""
    text = (ROOT / "csrc/defs/isas.def").read_text()
    found = re.findall(r'^ISA\((\w+), "([^"]*)"\)', text.split("#elif")[0], re.M)
    return {name: [need for need in needs.split() if need != "amx_permission"] for name, needs in found}


def functions(path: Path) -> dict[str, list[Instruction]]:
    """The code of an object by symbol, or by section where symbols were stripped."""
    shown = subprocess.run(["objdump", "-dw", path], capture_output=True, text=True, check=True).stdout
    out: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in shown.splitlines():
        if heading := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            current = out.setdefault(heading[1], [])
        elif parts := re.match(r"\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t(.+)", line):
            evex = re.match("((26|2e|36|3e|64|65|67) )*62 ", parts[2]) is not None
            text = re.sub(r"\s*(#.*)?$", "", re.sub(r"<[^>]*>", "", parts[3])).strip()
            current.append(Instruction(int(parts[1], 16), evex, text))
    return {name: body for name, code in out.items() if (body := unpadded(code))}


def unpadded(code: list[Instruction]) -> list[Instruction]:
    """Without what the compiler puts between functions."""
    end = len(code)
    while end and re.search(r"nop|xchg\s+%ax,%ax", code[end - 1].text):
        end -= 1
    return code[:end]


def above(code: Iterable[Instruction], features: Collection[str]) -> list[Instruction]:
    """Those that a processor of the baseline with these features does not have."""
    code = list(code)
    texts = sorted({i.text for i in code if not ANYWHERE.match(i.text)})
    march = "+".join(["generic64", *(f.replace("-", "_") for f in features)])
    done = subprocess.run(["as", f"-march={march}", "-o", "/dev/null", "-"], input="\n".join(texts) + "\n", capture_output=True,
                          text=True)
    refused = {}
    for line in done.stderr.splitlines():
        if error := re.match(r"\{standard input\}:(\d+): Error: (.*)", line):
            refused[texts[int(error[1]) - 1]] = error[2]
    unknown = {text: why for text, why in refused.items() if not re.search("not supported|bad register name", why)}
    assert not unknown, f"the assembler does not take back {list(unknown.items())[:5]}"
    assert (done.returncode == 0) == (not refused), done.stderr[-500:]
    wide = any(f.startswith("avx512") for f in features)
    return [i for i in code if i.text in refused or i.evex and not wide]


def ranges(path: Path) -> list[tuple[int, int]]:
    """[begin, end) of each function of a stripped module, from its unwinding tables."""
    shown = subprocess.run(["readelf", "-wf", path], capture_output=True, text=True, check=True).stdout
    return sorted((int(a, 16), int(b, 16)) for a, b in re.findall(r"FDE .*pc=([0-9a-f]+)\.\.([0-9a-f]+)", shown))
