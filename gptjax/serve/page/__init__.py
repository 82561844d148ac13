"""The web chat: static files and the headers to serve them with; no build, nothing from outside.

Read in this order: `index.html`, the structure; `page.js`, the chat; `server.js`, requests and
streams; `markdown.js`, model text as DOM nodes; `page.css`. All addresses in them are relative, so
that the page also works behind a path.
"""

from importlib.resources import files

MEDIA_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "server.js": "text/javascript; charset=utf-8",
    "markdown.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""File name → media type. `/` is `index.html`; the others lie beside it."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""What each of the files is sent with. Trusted types make the browser refuse to parse any text as
HTML, whatever the scripts do."""


def page_file(name: str) -> bytes:
    """Returns the content of one of `MEDIA_TYPES`."""
    return files(__name__).joinpath(name).read_bytes()
