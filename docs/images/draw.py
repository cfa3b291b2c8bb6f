"""Draw the pictures of ``how-it-works.md``: ``python docs/images/draw.py`` writes them beside itself."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">\n'
    '<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
)


def rect(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", dash: str = "") -> str:
    """Draw a box; ``dash`` for a dashed outline."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="{stroke}"{dashed}/>\n'


def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    """Write words at a place."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#222222">{words}</text>\n'


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = "#222222") -> str:
    """Draw a line."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{stroke}"/>\n'


def halo() -> str:
    """Draw a tile, its halo, and how the operators use it up, one row each."""
    cell, left = 26, 150
    rows = (
        ("read: tile and halo", 14, 3),
        ("after 1 convolution", 12, 2),
        ("after 2", 10, 1),
        ("after 3: the tile", 8, 0),
    )
    drawn = HEAD.format(width=550, height=230)
    for number, (label, count, reach) in enumerate(rows):
        y = 15 + number * 42
        drawn += text(left - 12, y + 18, label, "end")
        for i in range(count):
            x = left + (i + number) * cell
            inside = reach <= i < count - reach
            drawn += rect(x, y, cell, cell, "#2f7fb8" if inside else "#cfe3f1", "#ffffff")
    y = 200
    for x, label in ((1.5, "halo 3"), (7, "tile 8"), (12.5, "halo 3")):
        drawn += text(left + x * cell, y, label)
    for x in (3, 11):
        drawn += line(left + x * cell, 10, left + x * cell, y + 6, "#b8562f")
    return drawn + "</svg>\n"


def cuts() -> str:
    """Draw how an output is cut: shards are regions, tiles cut a region, which reads more than it writes."""
    drawn = HEAD.format(width=600, height=270)
    drawn += text(150, 20, "output: shards, one region each") + text(450, 20, "one region: tiles, and what it reads")
    for row in range(3):
        for column in range(4):
            mine = (row, column) == (1, 1)
            drawn += rect(30 + column * 60, 40 + row * 60, 60, 60, "#2f7fb8" if mine else "#eef3f7", "#8aa4b8")
    drawn += rect(360, 35, 190, 190, "#cfe3f1", "#b8562f", "5 4")
    for row in range(2):
        for column in range(2):
            drawn += rect(385 + column * 70, 60 + row * 70, 70, 70, "#2f7fb8", "#ffffff")
    drawn += line(150, 130, 385, 130, "#8aa4b8")
    drawn += text(455, 250, "dashed: the region with its halo, read once")
    return drawn + "</svg>\n"


def main() -> None:
    """Write both pictures."""
    for draw in (halo, cuts):
        (HERE / f"{draw.__name__}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
