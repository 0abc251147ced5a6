"""Builds the site of docs/ into build/site, and checks it: `make site`.

A link or an anchor that leads nowhere, a page that no menu names, a name of the API that is not there, and anything that is
loaded from elsewhere end it with an error.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from check_site import check
from write_source import ROOT, write

SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme loads to search in pages that are read as files: from elsewhere, where it is not put beside them."""


def main() -> None:
    write(ROOT / "build/site-source")
    generate(ROOT / "mkdocs.yml")


def generate(configuration: Path) -> None:
    """Run the generator, warnings as errors, and check what it built in build/site beside its configuration."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(configuration)]
    if code := subprocess.run(command, cwd=configuration.parent).returncode:
        raise SystemExit(code)
    site = configuration.parent / "build/site"
    for page in site.glob("*.html"):
        page.write_text(page.read_text().replace(SHIM, "site/iframe-worker.js"))
    check(site)


if __name__ == "__main__":
    main()
