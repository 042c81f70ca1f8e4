"""Primitives for pictures of environments: a canvas, cards, boards and bars, in numpy and PIL alone.

Coordinates are in pixels from the top left, colours ``(red, green, blue)``. Everything is drawn twice as large and
scaled down, which smooths it. PIL is imported when the first picture is drawn.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Color = tuple[int, int, int]
PAPER, INK, GREY, FAINT, WHITE = (246, 244, 238), (40, 44, 52), (130, 132, 136), (214, 211, 203), (255, 255, 255)
RED, GREEN, BLUE, YELLOW, WATER = (200, 50, 55), (60, 140, 80), (50, 95, 165), (235, 180, 50), (170, 205, 230)
# Colours for channels and categories, far apart from one another.
CHANNELS = np.array(
    [BLUE, RED, GREEN, YELLOW, (140, 80, 160), (240, 130, 60), (70, 180, 190), (220, 120, 170), (120, 90, 60), GREY]
)
SUITS = ("spades", "diamonds", "clubs", "hearts")  # in the order in which decks count them, as COLORS and RANKS
COLORS = ("black", "red")
RANKS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
_SCALE = 2


class Canvas:
    """A picture being drawn, ``width`` x ``height`` pixels."""

    def __init__(self, width: int = 320, height: int = 240, color: Color = PAPER):
        from PIL import Image, ImageDraw

        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * _SCALE, height * _SCALE), color)
        self._draw = ImageDraw.Draw(self._image)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: Color | None = None,
        outline: Color | None = None,
        line: float = 1,
        radius: float = 0,
    ) -> None:
        """Draw a rectangle whose upper left corner is ``(x, y)``, with round corners if ``radius`` is given."""
        corners = _scaled([(x, y), (x + width, y + height)])
        self._draw.rounded_rectangle(corners, radius * _SCALE, fill, outline, round(line * _SCALE) if outline else 0)

    def circle(
        self,
        x: float,
        y: float,
        radius: float,
        fill: Color | None = None,
        outline: Color | None = None,
        line: float = 1,
    ) -> None:
        """Draw a circle around ``(x, y)``."""
        corners = _scaled([(x - radius, y - radius), (x + radius, y + radius)])
        self._draw.ellipse(corners, fill, outline, round(line * _SCALE) if outline else 0)

    def line(self, points: Iterable[Sequence[float]], color: Color = INK, width: float = 1) -> None:
        """Draw a line through ``points``."""
        self._draw.line(_scaled(points), color, max(round(width * _SCALE), 1), joint="curve")

    def polygon(self, points: Iterable[Sequence[float]], fill: Color) -> None:
        """Fill a polygon."""
        self._draw.polygon(_scaled(points), fill)

    def text(
        self,
        x: float,
        y: float,
        text: Any,
        size: float = 11,
        color: Color = INK,
        anchor: str = "la",
        bold: bool = False,
    ) -> None:
        """Write ``text``; ``anchor`` is PIL's: ``la`` puts the upper left corner at ``(x, y)``, ``mm`` the middle."""
        stroke = 1 if bold else 0
        where = (x * _SCALE, y * _SCALE)
        self._draw.text(where, str(text), color, _font(size * _SCALE), anchor, stroke_width=stroke, stroke_fill=color)

    def paste(self, picture: np.ndarray, x: int, y: int) -> None:
        """Put a picture ``[H, W, 3]`` with its upper left corner at ``(x, y)``."""
        from PIL import Image

        height, width = picture.shape[:2]
        large = Image.fromarray(picture).resize((width * _SCALE, height * _SCALE), Image.Resampling.NEAREST)
        self._image.paste(large, (x * _SCALE, y * _SCALE))

    def to_array(self) -> np.ndarray:
        """Return the picture, uint8 ``[height, width, 3]``."""
        return np.array(self._image.reduce(_SCALE))


def _scaled(points: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
    return [(float(x) * _SCALE, float(y) * _SCALE) for x, y in points]


@functools.cache
def _font(size: float) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def title(canvas: Canvas, text: str, note: str = "") -> None:
    """Write what the task is along the top, and a second line in grey."""
    canvas.text(10, 7, text, 13, bold=True)
    canvas.text(10, 25, note, 11, GREY)


def card(
    canvas: Canvas, x: float, y: float, width: float, kind: str, value: int | None, mark: Color | None = None
) -> None:
    """Draw a card of a deck of ``colors``, ``suits`` or ``ranks``, 1.4 times as high as wide; None shows its back.

    ``mark`` is the colour of a frame around it.
    """
    height, radius = 1.4 * width, width / 8
    if mark:
        canvas.box(x - 3, y - 3, width + 6, height + 6, mark, radius=radius + 2)
    if value is None:
        canvas.box(x, y, width, height, (110, 130, 165), GREY, radius=radius)
        return
    canvas.box(x, y, width, height, WHITE, GREY, radius=radius)
    middle = x + width / 2, y + height / 2
    if kind == "suits":
        suit(canvas, *middle, 0.36 * width, SUITS[value])
    elif kind == "colors":
        canvas.box(x + 0.2 * width, y + 0.2 * height, 0.6 * width, 0.6 * height, (INK, RED)[value], radius=radius)
    else:
        canvas.text(*middle, RANKS[value], max(0.6 * width, 7), anchor="mm", bold=width > 30)


def suit(canvas: Canvas, x: float, y: float, r: float, name: str) -> None:
    """Draw the symbol of a suit around ``(x, y)``, ``r`` being half of its height."""
    color = RED if name in ("diamonds", "hearts") else INK
    if name == "diamonds":
        canvas.polygon([(x, y - r), (x + 0.75 * r, y), (x, y + r), (x - 0.75 * r, y)], color)
        return
    if name == "clubs":
        for dx, dy in ((0, -0.5), (-0.5, 0.2), (0.5, 0.2)):
            canvas.circle(x + dx * r, y + dy * r, 0.45 * r, color)
    else:  # a heart, or a spade: the same upside down
        up = 1 if name == "hearts" else -1
        for side in (-1, 1):
            canvas.circle(x + side * 0.42 * r, y - up * 0.3 * r, 0.46 * r, color)
        canvas.polygon([(x - 0.84 * r, y - up * 0.1 * r), (x + 0.84 * r, y - up * 0.1 * r), (x, y + up * r)], color)
    if name != "hearts":
        canvas.polygon([(x, y - 0.4 * r), (x + 0.35 * r, y + r), (x - 0.35 * r, y + r)], color)


def cards(
    canvas: Canvas,
    y: float,
    kind: str,
    values: Sequence[int | None],
    columns: int,
    marks: dict[int, Color] | None = None,
    bottom: float = 232,
) -> None:
    """Lay out cards in rows of ``columns``, between ``y`` and ``bottom``; ``marks`` are frames by index."""
    rows = math.ceil(len(values) / columns)
    pitch = min((canvas.width - 20) / columns, (bottom - y) / (1.5 * rows), 75)
    left = (canvas.width - (columns - 0.2) * pitch) / 2
    y += (bottom - y - 1.5 * rows * pitch) / 2
    for i, value in enumerate(values):
        row, column = divmod(i, columns)
        where = left + column * pitch, y + row * 1.5 * pitch
        card(canvas, *where, 0.8 * pitch, kind, value, (marks or {}).get(i))


def board(
    canvas: Canvas, colors: np.ndarray, top: float = 44, line: Color | None = PAPER
) -> tuple[float, float, float]:
    """Draw a board of squares in ``colors`` ``[rows, columns, 3]`` below ``top``, as large as it fits.

    Returns the upper left corner and the length of a square's side.
    """
    rows, columns = colors.shape[:2]
    side = min((canvas.height - top - 8) / rows, (canvas.width - 20) / columns)
    left = (canvas.width - side * columns) / 2
    for row in range(rows):
        for column in range(columns):
            color = (int(colors[row, column, 0]), int(colors[row, column, 1]), int(colors[row, column, 2]))
            canvas.box(left + column * side, top + row * side, side, side, color, line if side > 4 else None, 0.5)
    return left, top, side


def bars(
    canvas: Canvas, values: Any, labels: Sequence[Any], top: float, bottom: float, high: float, color: Color = BLUE
) -> None:
    """Draw bars from 0 to ``high`` between the heights ``top`` and ``bottom``, with labels below and numbers above."""
    pitch = (canvas.width - 20) / len(labels)
    canvas.line([(10, bottom), (canvas.width - 10, bottom)], GREY)
    for i, (value, label) in enumerate(zip(np.asarray(values).tolist(), labels, strict=True)):
        x, height = 10 + (i + 0.5) * pitch, (bottom - top) * min(max(value / high, 0), 1)
        canvas.box(x - 0.35 * pitch, bottom - height, 0.7 * pitch, height, color)
        size = min(11, max(0.45 * pitch, 6))
        shown = f"{value:.2f}".lstrip("0") if isinstance(value, float) else value
        canvas.text(x, bottom - height - 2, shown, size, GREY, "mb")
        canvas.text(x, bottom + 3, label, size, anchor="mt")


def blend(color: Color, other: Color, share: float) -> Color:
    """Mix two colours: ``share`` of ``other``."""
    red, green, blue = (round((1 - share) * a + share * b) for a, b in zip(color, other, strict=True))
    return red, green, blue
