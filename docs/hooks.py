"""What mkdocs does not do by itself: `Example:` sections, and strictness about sections that are not understood."""

import logging
import re
from typing import Any

import griffe

# a heading that the parser took for plain text, because of what stands behind it or how the lines below are indented
SECTION = re.compile(r"\b(Args?|Arguments|Parameters?|Attributes?|Returns|Yields|Raises|Warns|Examples?):")
PROSE = re.compile(r"<p>(.*?)</p>", re.DOTALL)


class Examples(griffe.Extension):
    """`Example:` is rendered as code, like `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Warns, which strict builds count as a failure, where the reference shows a docstring's section as prose."""
    if page.file.src_uri.startswith("reference/"):
        for paragraph in PROSE.finditer(html):
            if found := re.search(rf"(?:^|\n)\s*{SECTION.pattern}", paragraph[1]):
                names = re.findall(r'id="(patchconvnet[\w.]*)"', html[: paragraph.start()])
                where = names[-1] if names else page.file.src_uri
                logging.getLogger("mkdocs.hooks").warning(f"'{found[1]}:' in the docstring of {where} is not rendered")
    return html
