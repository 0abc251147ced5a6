"""Reads a built site as a browser does: every link and picture leads to a file and its anchor, and nothing is loaded from elsewhere.

python docs/site/check_site.py build/site
"""

from __future__ import annotations

import argparse
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"src", "srcset", "poster", "data"}
"""Attributes whose addresses a browser loads by itself; of `href` those of <link>."""
_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^)"'\s]+""")
"""What a style sheet loads from elsewhere."""
_NAMES_ALONE = {"canonical", "prev", "next", "edit"}
"""What <link> says with these `rel` is not loaded."""


class Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.anchors |= {named[name] for name in ("id", "name") if name in named}
        self.loads |= {value for name, value in named.items() if name in LOADED and tag != "meta"}
        if tag == "link" and not _NAMES_ALONE & set(named.get("rel", "").split()):
            self.loads.add(named.get("href", ""))
        elif tag == "a" and "href" in named:
            self.links.add(named["href"])


def faults(site: Path) -> list[str]:
    """What is wrong with a site, a line each."""
    site = site.resolve()
    pages = {file: Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site}: holds no page"]
    for file in [*sorted(site.rglob("*.css")), *pages]:
        found += [f"{file.relative_to(site)}: loads {text} from elsewhere" for text in _STYLE.findall(file.read_text())]
    for file, page in pages.items():
        here = file.relative_to(site)
        for address in sorted(page.loads):
            if urlsplit(address).netloc:
                found.append(f"{here}: loads {address} from elsewhere")
        for address in sorted(page.links | page.loads):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or file.name == "404.html":
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file():
                found.append(f"{here}: {address} leads to no file")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                found.append(f"{here}: {address} leads to no such anchor")
    return found


def check(site: Path) -> None:
    """Print what is wrong with a site, and end; or how many pages were looked at."""
    found = faults(site)
    if found:
        print(*found, sep="\n")
        raise SystemExit(f"{len(found)} faults in {site}")
    print(
        f"{site}: {len(list(site.rglob('*.html')))} pages; every link leads somewhere, nothing is loaded from elsewhere"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    check(parser.parse_args().site)
