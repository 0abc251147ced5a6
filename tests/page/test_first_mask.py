"""The benchmark of the page's first mask, on a service that runs already."""

from __future__ import annotations

from driven_page import ROOT, Page

from benchmarks.first_mask import first_mask_in


def test_the_first_mask_is_waited_for_and_what_it_took_is_counted(page: Page) -> None:
    page.cdp("Network.setCacheDisabled", cacheDisabled=True)  # other tests loaded the page before
    try:
        loading, masking, received = first_mask_in(page)
    finally:
        page.cdp("Network.setCacheDisabled", cacheDisabled=False)
    assert page.found("cat", "sofa")
    assert page.painted() > 0
    files = [file for file in (ROOT / "fusioner_rt/serve/page").iterdir() if file.is_file()]
    assert received * 2**20 > sum(file.stat().st_size for file in files)
    awaited = page.js(
        """const longest = (type, of) => Math.max(...performance.getEntriesByType(type).filter(of).map(({duration}) => duration));
        return [longest("navigation", () => true), longest("resource", ({name}) => name.includes("/v1/segment"))]"""
    )
    assert 1000 * loading > awaited[0]
    assert 1000 * masking > awaited[1]
