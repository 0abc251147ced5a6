"""Draws pictures, truths and predictions side by side as one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fusioner_rt.results.colours import word_colours
from training.data import IGNORE, DataError, PictureMasks, present, read_picture
from training.metrics import ClassIoU
from training.scoring import Predictor

PANEL = (264, 198)  # largest width and height of a picture on the sheet
GAP, MARGIN, CAPTION, BETWEEN = 6, 28, 30, 44
PAPER, INK, FAINT, FIELD = (255, 255, 255), (28, 32, 40), (118, 124, 136), (243, 244, 247)
VOID = (176, 180, 188)  # colour of pixels that the truth ignores
OPACITY = 0.62
SCORED = "Figures: IoU in the picture, in percent. Pale edges in the truth belong to no class and count nowhere."


@dataclass(frozen=True, eq=False)
class Row:
    """picture (H, W, 3) uint8; truth and prediction (H, W) class indices, 0 = none of `asked`; asked: class indices."""

    name: str
    picture: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    asked: list[int]


def choose(data: PictureMasks, names: list[str], classes: list[int], count: int) -> list[str]:
    """Chooses `count` pictures deterministically: classes take turns, the most frequent first, and each class's choices
    are spread evenly over its pictures."""
    showing: dict[int, list[str]] = {index: [] for index in classes}
    for name in names:
        for index in data.present(name):
            if index in showing:
                showing[index].append(name)
    order = sorted((index for index in classes if showing[index]), key=lambda index: -len(showing[index]))
    if not order:
        return []
    turns = -(-count // len(order))
    chosen: dict[int, list[str]] = {index: [] for index in order}
    taken: set[str] = set()
    for turn in range(len(names)):  # enough turns even where classes share pictures or run out of them
        for index in order:
            left = [name for name in showing[index] if name not in taken]
            if left and len(taken) < count:
                target = int((turn % turns + 0.5) / turns * len(showing[index]))
                position = {name: n for n, name in enumerate(showing[index])}
                name = min(left, key=lambda name: abs(position[name] - target))
                chosen[index].append(name)
                taken.add(name)
        if len(taken) == count:
            break
    return [name for index in order for name in chosen[index]]


def check(data: PictureMasks, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises DataError for a name that is not in `known`, the split's pictures."""
    for name in names:
        if name not in known:
            raise DataError(
                f"no picture of {data.root} is called {name!r} in this split", f"its names are like {known[0]}"
            )


def rows(
    predict: Predictor, data: PictureMasks, names: Sequence[str], known: Sequence[str], classes: list[int], words: str
) -> list[Row]:
    """The rows of `names`. known: the split's pictures; words: the protocol, "known" or "all". Raises DataError."""
    check(data, names, known)
    made = []
    for name in names:
        picture, mask = read_picture(data, name)
        asked = classes if words == "all" else [index for index in present(mask) if index in classes]
        truth = np.where(np.isin(mask, [IGNORE, *asked]), mask, 0)
        labels = np.zeros(mask.shape, np.intp)
        if asked:
            labels = predict(name, asked, (mask.shape[0], mask.shape[1])).astype(np.intp)
        made.append(Row(name, picture, truth, np.array([0, *asked])[labels], asked))
    return made


def draw(rows: Sequence[Row], words: Sequence[str], title: str) -> Image.Image:
    """words: by class index. A word has the same colour in every row, truth and prediction."""
    shown = _by_use(rows, len(words))
    palette = np.zeros((len(words), 3), np.uint8)
    palette[shown] = word_colours([words[index] for index in shown])
    columns = 2 if len(rows) > 3 else 1
    width, height = PANEL
    cell = 3 * width + 2 * GAP
    lines = -(-len(rows) // columns)
    total = 2 * MARGIN + columns * cell + (columns - 1) * BETWEEN
    head = _head(total, [(words[index], palette[index]) for index in shown], title)
    step = height + CAPTION + 16
    sheet = Image.new("RGB", (total, head.height + lines * step + MARGIN - 16), PAPER)
    sheet.paste(head, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for column in range(columns):
        left = MARGIN + column * (cell + BETWEEN)
        for part, name in enumerate(("picture", "truth", "prediction")):
            pen.text((left + part * (width + GAP), head.height - 8), name, FAINT, ImageFont.load_default(13), "ls")
    for number, row in enumerate(rows):
        left = MARGIN + number // lines * (cell + BETWEEN)
        top = head.height + number % lines * step
        for part, panel in enumerate(_panels(row, palette)):
            x = left + part * (width + GAP)
            pen.rectangle((x, top, x + width - 1, top + height - 1), FIELD)
            sheet.paste(panel, (x + (width - panel.width) // 2, top + (height - panel.height) // 2))
        _caption(pen, row, words, palette, left, top + height + CAPTION // 2 + 1, cell)
    return sheet


def draw_masks(data: PictureMasks, names: Sequence[str], title: str) -> Image.Image:
    """Pictures beside their masks, two pairs a line. Raises DataError."""
    drawn = []
    for name in names:
        picture, mask = read_picture(data, name)
        drawn.append(Row(name, picture, mask, mask, present(mask)))
    words = data.words
    shown = _by_use(drawn, len(words))
    palette = np.zeros((len(words), 3), np.uint8)
    palette[shown] = word_colours([words[index] for index in shown])
    (width, height), columns = PANEL, min(2, len(drawn))
    cell, step = 2 * width + GAP, height + CAPTION + 16
    total = 2 * MARGIN + columns * cell + (columns - 1) * BETWEEN
    note = "Grey: no class. Pale: ignored, it counts nowhere."
    head = _head(total, [(words[index], palette[index]) for index in shown], title, note)
    sheet = Image.new("RGB", (total, head.height + -(-len(drawn) // columns) * step + MARGIN - 16), PAPER)
    sheet.paste(head, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(drawn):
        left = MARGIN + number % columns * (cell + BETWEEN)
        top = head.height + number // columns * step
        for part, panel in enumerate(_panels(row, palette)[:2]):
            x = left + part * (width + GAP)
            pen.rectangle((x, top, x + width - 1, top + height - 1), FIELD)
            sheet.paste(panel, (x + (width - panel.width) // 2, top + (height - panel.height) // 2))
        _list_words(pen, row, words, palette, left, top + height + CAPTION // 2 + 1, cell)
    return sheet


def _list_words(
    pen: ImageDraw.ImageDraw, row: Row, words: Sequence[str], palette: np.ndarray, x: int, y: int, room: int
) -> None:
    """The picture's name and the words of its mask, as many as fit."""
    font, bold, end = ImageFont.load_default(14), ImageFont.load_default(15), x + room
    pen.text((end, y), row.name[-24:], FAINT, font, "rm")
    end -= int(font.getlength(row.name[-24:])) + 16
    for index in row.asked:
        if x + 18 + bold.getlength(words[index]) > end:
            pen.text((x, y), "…", FAINT, font, "lm")
            break
        pen.rounded_rectangle((x, y - 6, x + 12, y + 6), 3, _rgb(palette[index]))
        pen.text((x + 18, y), words[index], INK, bold, "lm")
        x += 18 + int(bold.getlength(words[index])) + 16


def _by_use(rows: Sequence[Row], classes: int) -> list[int]:
    """Class indices on the sheet, most frequent in truths first."""
    uses = np.zeros((classes, 2), int)
    for row in rows:
        uses[present(row.truth), 0] += 1
        uses[present(row.prediction), 1] += 1
    found = np.flatnonzero(uses.any(axis=1))
    return [int(index) for index in sorted(found, key=lambda index: (-uses[index, 0], -uses[index, 1], index))]


def _head(width: int, entries: Sequence[tuple[str, np.ndarray]], title: str, note: str = SCORED) -> Image.Image:
    """The title, a note, and a legend of all words on the sheet."""
    large, small = ImageFont.load_default(19), ImageFont.load_default(15)
    swatch, line = 14, 26
    places = []
    x, y = MARGIN, MARGIN + 66
    for word, colour in entries:
        used = swatch + 7 + int(small.getlength(word))
        if x > MARGIN and x + used > width - MARGIN:
            x, y = MARGIN, y + line
        places.append((x, y, word, colour))
        x += used + 22
    head = Image.new("RGB", (width, y + line + 26), PAPER)
    pen = ImageDraw.Draw(head)
    while title and large.getlength(title) > width - 2 * MARGIN:
        title = title.rpartition(" ")[0]
    pen.text((MARGIN, MARGIN), title, INK, large, "lt")
    pen.text((MARGIN, MARGIN + 30), note, FAINT, ImageFont.load_default(14), "lt")
    for x, y, word, colour in places:
        pen.rounded_rectangle((x, y - swatch // 2, x + swatch, y + swatch // 2), 3, _rgb(colour))
        pen.text((x + swatch + 7, y), word, INK, small, "lm")
    return head


def _caption(
    pen: ImageDraw.ImageDraw, row: Row, words: Sequence[str], palette: np.ndarray, x: int, y: int, room: int
) -> None:
    """The picture's words with their IoU, then predicted words that the truth lacks."""
    font, bold = ImageFont.load_default(14), ImageFont.load_default(15)
    end = x + room
    score = ClassIoU(len(words))
    masks = row.prediction == np.array(row.asked, np.intp)[:, None, None]
    score.add(row.truth, masks, row.asked)
    shown = present(row.truth)
    wrong = [index for index in present(row.prediction) if index not in shown]
    wrong.sort(key=lambda index: -score.found[index])
    mean = score.mean([*shown, *wrong])
    overall = "" if np.isnan(mean) else f"mIoU {mean:.0f}"
    name = f"{row.name}   {overall}"
    pen.text((end, y), name, FAINT, font, "rm")
    end -= int(font.getlength(name)) + 16
    for index in (*shown, *wrong):
        text = f"{words[index]} {score.iou(index):.0f}" if index in shown else f"{words[index]}: not there"
        if x + 18 + bold.getlength(text) > end:
            pen.text((x, y), "…", FAINT, font, "lm")
            break
        pen.rounded_rectangle((x, y - 6, x + 12, y + 6), 3, _rgb(palette[index]))
        pen.text((x + 18, y), text, INK if index in shown else FAINT, bold, "lm")
        x += 18 + int(bold.getlength(text)) + 16


def _panels(row: Row, palette: np.ndarray) -> list[Image.Image]:
    """Picture, truth and prediction, scaled into PANEL."""
    height, width = row.truth.shape
    scale = min(PANEL[0] / width, PANEL[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(row.picture).resize(size, Image.Resampling.LANCZOS)
    maps = (
        Image.fromarray(m.astype(np.int32)).resize(size, Image.Resampling.NEAREST) for m in (row.truth, row.prediction)
    )
    return [picture, *(_paint(picture, np.asarray(m), palette) for m in maps)]


def _paint(picture: Image.Image, labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """The picture in pale grey under the words' colours; regions have edges of a stronger colour."""
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    ground = np.broadcast_to(255 - (255 - grey) * 0.55, (*labels.shape, 3))
    colour = palette[np.maximum(labels, 0)].astype(np.float32)
    tinted = (1 - OPACITY) * grey + OPACITY * colour
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:-1] |= labels[1:] != labels[:-1]
    word, void = (labels > 0)[..., None], (labels == IGNORE)[..., None]
    painted = np.where(word, np.where(edge[..., None], 0.85 * colour, tinted), ground)
    painted = np.where(void, 0.5 * painted + 0.5 * np.array(VOID, np.float32), painted)
    return Image.fromarray(painted.round().astype(np.uint8))


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    return int(colour[0]), int(colour[1]), int(colour[2])
