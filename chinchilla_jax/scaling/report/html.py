"""The sections as one HTML page. Images are embedded; nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import jinja2

from chinchilla_jax.scaling.report.sections import Facts, of_page


def render(facts: Facts, images: Mapping[str, bytes]) -> str:
    """The page. `facts` as from `facts_of`; `images` maps a title to the bytes of a PNG."""
    loader = jinja2.PackageLoader("chinchilla_jax.scaling.report")
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    first, then = of_page(facts)
    return (
        jinja2.Environment(loader=loader, **options)
        .get_template("page.html.j2")
        .render(
            title=f"Scaling study: {facts['source']}",
            first=first,
            then=then,
            images={title: base64.b64encode(data).decode() for title, data in images.items()},
        )
    )
