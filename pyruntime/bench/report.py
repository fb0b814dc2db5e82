"""What `measure` found, as rows of tables and as Markdown."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

HEAD = ("", "tokens/s", "min - max", "limit", "ratio", "MBU", "MFU", "bound by")
PROFILE_HEAD = ("op", "times", "ms a step", "share", "weights read", "GB/s", "Gop/s", "of its limit")


def title(facts: dict[str, Any]) -> str:
    """One line: the model and what ran it."""
    source = f"{facts['version']}{' ' + facts['commit'] if facts['commit'] else ''}"
    return (f"{facts['model']}: pyruntime {source}, {facts['isa']}, {facts['threads']} threads on {facts['cpu']}, "
            f"medians of {facts['rounds']} rounds")


def limits(facts: dict[str, Any]) -> str:
    """One line: what the machine did in the same rounds."""
    found = facts["limits"]
    return (f"limits in the same rounds: reading {found['read_bytes_per_second'] / 1e9:.1f} GB/s over "
            f"{found['read_bytes'] / 1e6:.0f} MB of weights, "
            f"multiplying {found['operations_per_second'] / 1e9:.0f} Gop/s with the same kernels in cache")


def rows(facts: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Rows under HEAD."""
    if found := facts.get("decode"):
        yield _row("decode", found)
    for found in facts.get("prefill", ()):
        yield _row(f"prompt of {found['prompt']}", found)
    for found in facts.get("batch", ()):
        yield _row(f"{found['sequences']} together", found)
    for found in facts.get("depth", ()):
        yield _row(f"decode at {found['depth']}", found)


def _row(name: str, f: dict[str, Any]) -> tuple[str, ...]:
    speed = (lambda x: f"{x:.1f}") if f["tokens_per_second"] < 1000 else (lambda x: f"{x:.0f}")
    return (name, speed(f["tokens_per_second"]), f"{speed(min(f['each']))} - {speed(max(f['each']))}", speed(f["limit"]),
            f"{f['ratio']:.2f}", f"{f['mbu']:.2f}", f"{f['mfu']:.2f}", f["bound_by"])


def steps(facts: dict[str, Any]) -> str:
    """One line: a step and what the engine does before the next, "" when none was measured."""
    alone = [{**facts["decode"], "sequences": 1}] if "decode" in facts else []
    taken = {f["sequences"]: f for f in (*alone, *facts.get("batch", ())) if f["between_seconds"] is not None}
    listed = ", ".join(f"{f['step_seconds'] * 1e3:.2f} + {f['between_seconds'] * 1e3:.2f} ms with {n}" for n, f in taken.items())
    return f"a step, and what the engine does before the next: {listed} at once" if listed else ""


def load(facts: dict[str, Any]) -> str:
    """One line, "" when loading was not measured."""
    if not (found := facts.get("load")):
        return ""
    return (f"load: {found['seconds']:.2f} s, {found['bytes_per_second'] / 1e9:.2f} GB/s of a {found['bytes'] / 1e6:.0f} MB file; "
            f"reading it from the page cache takes {found['read_seconds']:.2f} s, {found['read_bytes_per_second'] / 1e9:.2f} GB/s: "
            f"{found['times_reading']:.2f} times that")


def profiles(facts: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """(title, rows under PROFILE_HEAD) for each step that was looked into. GB/s: of the weights read; of ops without matrices, of
    the K and V or the state that they need."""
    for name, found in facts.get("profile", {}).items():
        told = (f"{name}: {found['tokens']} token{'s' * (found['tokens'] > 1)} behind {found['stored'] - found['tokens']}, "
                f"{found['step_seconds'] * 1e3:.2f} ms a step, of which ops take {found['sum']:.1%}")
        listed = sorted(found["ops"], key=lambda entry: -entry["share"])
        yield told, [(e["op"], str(e["count"]), f"{e['seconds'] * 1e3:.3f}", f"{e['share']:.1%}",
                      f"{e['weights_read'] / 1e6:.2f} MB" if e["weights_read"] else "",
                      _rate(e, "weights_read" if e["weights_read"] else "bytes"), _rate(e, "operations"),
                      "" if e["of_limit"] is None else f"{e['of_limit']:.2f}") for e in listed]


def _rate(entry: dict[str, Any], what: str) -> str:
    return f"{entry[what] / entry['seconds'] / 1e9:.1f}" if entry[what] and entry["seconds"] else ""


def markdown(facts: dict[str, Any]) -> str:
    """The whole report."""
    out = [title(facts), "", limits(facts), ""]
    if table := list(rows(facts)):
        out += [markdown_table(HEAD, table), ""]
    for line in filter(None, (steps(facts), load(facts))):
        out += [line, ""]
    for told, listed in profiles(facts):
        out += [told, "", markdown_table(PROFILE_HEAD, listed), ""]
    return "\n".join(out[:-1])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all columns but the first align right."""
    line = "| " + " | ".join(head) + " |"
    return "\n".join([line, "|---" + "|---:" * (len(head) - 1) + "|", *("| " + " | ".join(row) + " |" for row in rows)])
