"""The text of HTML, for records that hold pages."""

import re
from html.parser import HTMLParser


def plain_text(html: str) -> str:
    """The text of a piece of HTML, with a blank line between its paragraphs.

    A model that is trained on the tags learns to write them.

    Example:
        >>> plain_text("<p>Is 1 &lt; 2?</p><ul><li>yes</li><li><b>no</b></li></ul>")
        'Is 1 < 2?\\n\\nyes\\nno'
    """
    parser = _Text()
    parser.feed(html)
    parser.close()
    return re.sub(r"\n{3,}", "\n\n", "".join(parser.parts)).strip()


class _Text(HTMLParser):
    """Collects the texts between tags, and line ends for the tags that end a block."""

    BLOCKS = ("p", "pre", "blockquote", "ul", "ol", "h1", "h2", "h3")

    def __init__(self):
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attrs) -> None:
        self.parts.append("\n" if tag in ("br", "hr") else "")

    def handle_endtag(self, tag: str) -> None:
        self.parts.append("\n\n" if tag in self.BLOCKS else "\n" if tag == "li" else "")
