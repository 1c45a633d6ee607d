"""The one line that is shown of a failed program's stderr."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends_app.backends.last_words import MAX_CHARS, error_line

PYTHON = """a warning
Traceback (most recent call last):
  File "/work/main.py", line 1, in <module>
    f()
    ^^^
  File "/work/main.py", line 2, in f
    raise ValueError("one\\ntwo")
ValueError: one
two
"""
CHAINED = """Traceback (most recent call last):
  File "/work/main.py", line 2, in <module>
    1 / 0
ZeroDivisionError: division by zero

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/work/main.py", line 4, in <module>
    raise KeyError("k")
KeyError: 'k'
"""
PYTHON_SYNTAX = """  File "/work/main.py", line 1
    def
       ^
SyntaxError: invalid syntax
"""
NODE = """file:///work/main.mjs:1
throw new TypeError('boom')
      ^

TypeError: boom
    at file:///work/main.mjs:1:7
    at ModuleJob.run (node:internal/modules/esm/module_job:194:25) {
  code: 'X'
}

Node.js v18.19.0
"""
NODE_SYNTAX = """file:///work/main.mjs:1
let let
    ^^^

SyntaxError: let is disallowed as a lexically bound name
    at ESMLoader.moduleStrategy (node:internal/modules/esm/translators:119:18)

Node.js v18.19.0
"""
GO = """panic: boom

goroutine 1 [running]:
main.main()
\t./main.go:2 +0x2c
exit status 2
"""
GO_BUILD = "# workload\n./main.go:2:15: undefined: x\n"


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        (PYTHON, "ValueError: one"),
        (CHAINED, "KeyError: 'k'"),
        (PYTHON_SYNTAX, "SyntaxError: invalid syntax"),
        (NODE, "TypeError: boom"),
        (NODE_SYNTAX, "SyntaxError: let is disallowed as a lexically bound name"),
        (GO, "panic: boom"),
        (GO_BUILD, "./main.go:2:15: undefined: x"),
        ("boom\n\n", "boom"),
        ("one\r\ntwo\r\n", "two"),
        ("Traceback (most recent call last):\n", "Traceback (most recent call last):"),
        ("", ""),
        ("\n \n", ""),
    ],
)
def test_error_line_is_found(stderr: str, line: str):
    assert error_line(stderr) == line


@given(st.text(alphabet="aT \n:\tnode", max_size=300))
def test_arbitrary_text_gives_one_short_line(stderr: str):
    line = error_line(stderr * 20)
    assert "\n" not in line
    assert len(line) <= MAX_CHARS
