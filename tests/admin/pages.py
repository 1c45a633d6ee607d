"""A parser of pages: their visible text, and inline scripts and styles."""

from html.parser import HTMLParser

VOID = {"area", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}


class Page(HTMLParser):
    """The visible text of a page, and what a policy without `unsafe-inline` forbids in it."""

    def __init__(self, response) -> None:
        super().__init__()
        self.words: list[str] = []
        self.forbidden: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        assert response.status_code == 200, response
        self.feed(response.content.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        self.forbidden += [
            f"<{tag} {name}>" for name in attributes if name == "style" or name.startswith("on")
        ]
        if tag == "style" or (
            tag == "script"
            and "src" not in attributes
            and attributes.get("type") != "application/json"
        ):
            self.forbidden.append(f"<{tag}>")
        if any((value or "").startswith("javascript:") for value in attributes.values()):
            self.forbidden.append("javascript:")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style", "datalist"} & {*self._open}:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)
