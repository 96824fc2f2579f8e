"""Scripts of third parties for the page: Vega (charts) and DataTables (the table).

They come from the installed packages vl-convert-python and itables, and stand compressed in each page, so that
the page needs no network. Vega's bundle takes seconds to make, so it is kept in the user's cache folder.
"""

from __future__ import annotations

import base64
import gzip
import os
import re
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from bench.output_files import write

LICENCES = "Vega, Vega-Lite and Vega-Embed (BSD-3-Clause), DataTables and jQuery (MIT)"


def packed(text: str) -> str:
    """The text in gzip and base64; the same text gives the same characters."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def vega() -> str:
    """The packed script that sets `window.vegaEmbed`."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bench"
        kept = root / f"vega-{version('vl-convert-python')}.js.gz.base64"
        return kept.read_text(encoding="ascii")
    except (OSError, RuntimeError, ValueError):  # Not kept yet, or no home folder.
        pass
    import vl_convert

    made = packed(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    try:
        write(root, kept, made)
    except (OSError, NameError):  # Made again next time.
        pass
    return made


def datatables() -> str:
    """The packed script that sets `window.DataTable`."""
    import itables

    text = (resources.files(itables) / "html" / "dt_bundle.js").read_text(encoding="utf-8")
    exports = re.search(r"export\{[^}]*?\b(\w+) as default\b[^}]*\}", text)
    if exports is None:
        raise ValueError("the script of itables has no default export: another version of itables is needed")
    return packed(f"{text[: exports.start()]};window.DataTable={exports[1]};")
