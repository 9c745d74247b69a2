"""Maintainer's command: all pictures of all lessons on one page, to compare their language.

python -m tools.gallery            # writes build/gallery.html, from the pictures that the lessons hold

Each picture stands on white and on black, as in JupyterLab's two themes, with its number and its text twin.
"""

import html
from pathlib import Path

import click

from helpers.paths import COURSE
from tools.lessons import LESSONS, code_cells, read

TARGET = COURSE / "build" / "gallery.html"
STYLE = """
body { font: 14px sans-serif; margin: 1.5em; }
section { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 46%; border: 1px solid #ccc; }
figure div { display: flex; }
figure div > p { flex: 1; margin: 0; padding: 8px; }
img { max-width: 100%; }
.dark { background: #111; }
figcaption { padding: 4px 8px; }
pre { white-space: pre-wrap; font-size: 11px; color: #555; max-height: 9em; overflow: auto; }
"""


def pictures(path: Path) -> list[tuple[int, str, str]]:
    """The pictures of a lesson: number of the cell, PNG in base64, text twin."""
    return [
        (cell.execution_count, output.data["image/png"], output.data["text/plain"])
        for cell in code_cells(read(path))
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def page() -> str:
    """The page."""
    parts = [f"<!doctype html><meta charset=utf-8><title>All pictures</title><style>{STYLE}</style>"]
    for path in LESSONS:
        found = pictures(path)
        parts.append(f"<h2>{path.stem}, {len(found)} pictures</h2><section>")
        for number, png, text in found:
            image = f'<img src="data:image/png;base64,{png.strip()}">'
            parts.append(
                f"<figure><figcaption>[{number}]</figcaption><div><p>{image}</p><p class=dark>{image}</p></div>"
                f"<pre>{html.escape(text)}</pre></figure>"
            )
        parts.append("</section>")
    return "\n".join(parts)


@click.command()
def main() -> None:
    """Write a page with the pictures of all lessons side by side, on light and dark ground."""
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(page(), encoding="utf-8")
    print(f"{TARGET.relative_to(Path.cwd()) if TARGET.is_relative_to(Path.cwd()) else TARGET}")


if __name__ == "__main__":
    main()
