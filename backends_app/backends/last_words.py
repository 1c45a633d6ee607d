"""The line of stderr in which a program says why it failed; it is shown, and decides nothing."""

import re

MAX_CHARS = 1000
MAX_READ = 64 * 1024  # of the end of stderr
TRACEBACK = "Traceback (most recent call last):"
# Where a runtime says first what went wrong, and then where: the line that is the news.
PANIC = re.compile(r"^(?:panic|fatal error|runtime): .+$", re.MULTILINE)
NODE = re.compile(r"^Node\.js v\d", re.MULTILINE)
NODE_FRAME = re.compile(r"^[ \t]+at ", re.MULTILINE)  # not \s, which takes line after line
NOTES = re.compile(r"^(?:exit status \d+|Node\.js v\S+|signal: .+)$")


def error_line(stderr: str) -> str:
    """Return the line of an error: a traceback's last, Node's or Go's own, or the last there is."""
    text = stderr[-MAX_READ:]
    line = _python(text) or _node(text) or _go(text) or _last(text.splitlines())
    return line.strip()[:MAX_CHARS]


def _python(text: str) -> str:
    """The first line behind the frames of the last traceback, if that is what stderr ends with."""
    _, found, rest = text.rpartition(TRACEBACK)
    if not found:
        return ""
    lines = rest.splitlines()[1:]
    return next((line for line in lines if line and not line[0].isspace()), "")


def _node(text: str) -> str:
    """The line before the frames of the last error, or that under the mark of a syntax error."""
    if not NODE.search(text):
        return ""
    before = text[: [*NODE.finditer(text)][-1].start()]
    frame = NODE_FRAME.search(before)
    return _last((before[: frame.start()] if frame else before).splitlines())


def _go(text: str) -> str:
    found = PANIC.search(text)
    return found[0] if found else ""


def _last(lines: list[str]) -> str:
    said = (line for line in reversed(lines) if line.strip() and not NOTES.match(line))
    return next(said, "")
