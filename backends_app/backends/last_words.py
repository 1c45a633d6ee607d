"""Find the line of stderr that states why a program failed. It is shown, but decides nothing."""

import re

MAX_CHARS = 1000
MAX_READ = 64 * 1024  # of the end of stderr
TRACEBACK = "Traceback (most recent call last):"
# Runtimes that print the error first and its location after it: these patterns find the error.
PANIC = re.compile(r"^(?:panic|fatal error|runtime): .+$", re.MULTILINE)
NODE = re.compile(r"^Node\.js v\d", re.MULTILINE)
NODE_FRAME = re.compile(r"^[ \t]+at ", re.MULTILINE)  # not \s, which also matches line ends
NOTES = re.compile(r"^(?:exit status \d+|Node\.js v\S+|signal: .+)$")


def error_line(stderr: str) -> str:
    """Return the error's line: that of a traceback, of Node.js or Go, or the last of stderr."""
    text = stderr[-MAX_READ:]
    line = _python(text) or _node(text) or _go(text) or _last(text.splitlines())
    return line.strip()[:MAX_CHARS]


def _python(text: str) -> str:
    """Return the first line after the frames of the last traceback; empty if there is none."""
    _, found, rest = text.rpartition(TRACEBACK)
    if not found:
        return ""
    lines = rest.splitlines()[1:]
    return next((line for line in lines if line and not line[0].isspace()), "")


def _node(text: str) -> str:
    """Return the line before the last error's frames, or below a syntax error's caret."""
    if not NODE.search(text):
        return ""
    before = text[: [*NODE.finditer(text)][-1].start()]
    frame = NODE_FRAME.search(before)
    return _last((before[: frame.start()] if frame else before).splitlines())


def _go(text: str) -> str:
    found = PANIC.search(text)
    return found[0] if found else ""


def _last(lines: list[str]) -> str:
    messages = (line for line in reversed(lines) if line.strip() and not NOTES.match(line))
    return next(messages, "")
