"""A process that renders one chat template, so that a template that never ends can be killed.

Run as a script by chat.py. Reads JSON lines: first the template's source, then the names of each rendering.
Answers with {"text"} or {"blame", "error"}: blame is "model" for the template, "request" for what it was
given. Needs jinja2 and the standard library alone, to start fast.
"""

import json
import resource
import signal
import sys
from datetime import datetime

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are not top-level ones

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 1.0  # of one rendering; then the kernel ends the process (SIGPROF)
MEMORY_BYTES = 512 << 20
MOST_CHARACTERS = 16 << 20


class Refused(TemplateError):
    """What the template itself says about the messages."""


class TooMuch(SecurityError):
    """Beyond a bound."""


class Generation(Extension):
    """{% generation %}…{% endgeneration %}: marks what the assistant said; here only its content matters."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Environment(ImmutableSandboxedEnvironment):
    """Hugging Face's settings for chat templates; operators that make much from little are bounded."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self):
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
        del self.globals["lipsum"]
        self.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
        self.filters["tojson"] = tojson

    def call_binop(self, context, operator, left, right):
        if operator == "**" and not (abs(left) <= 1 << 32 and abs(right) <= 64):
            raise TooMuch(f"{left!r:.20} ** {right!r:.20} is beyond the bounds of a chat template")
        if operator == "*":
            for some, times in ((left, right), (right, left)):
                if hasattr(some, "__len__") and len(some) * times > MOST_CHARACTERS:
                    raise TooMuch(f"a repetition beyond {MOST_CHARACTERS} characters")
        return super().call_binop(context, operator, left, right)


def raise_exception(message):
    raise Refused(message)


def strftime_now(form):
    return datetime.now().strftime(form)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template, names):
    pieces, size = [], 0
    for piece in template.generate(names):
        size += len(piece)
        if size > MOST_CHARACTERS:
            raise TooMuch(f"it writes more than {MOST_CHARACTERS} characters")
        pieces.append(piece)
    return "".join(pieces)


def answer(source, template, names):
    """(the reply, the compiled template)"""
    try:
        template = template or Environment().from_string(source)
        return {"text": render(template, names)}, template
    except TemplateSyntaxError as error:
        return {"blame": "model", "error": f"line {error.lineno}: {error.message}"}, None
    except SecurityError as error:
        return {"blame": "model", "error": str(error)}, template
    except (MemoryError, RecursionError) as error:
        return {"blame": "model", "error": f"beyond its bounds ({type(error).__name__})"}, None
    except Refused as error:
        return {"blame": "request", "error": str(error)}, template
    except Exception as error:  # any other error of an expression: a name or a value that is not there
        return {"blame": "request", "error": f"{type(error).__name__}: {error}"}, template


def main():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines = sys.stdin.buffer
    source, template = json.loads(lines.readline()), None
    for line in lines:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        reply, template = answer(source, template, json.loads(line))
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
