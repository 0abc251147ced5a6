"""Makes the figures of docs/index.md, concepts.md and exact.md, from docs/pictures and the demonstration bundle.

  python docs/site/figures.py     # writes docs/figures

It needs what the training extra brings, torch and matplotlib, for the page on exactness alone.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from fusioner_rt import Segmentation, Session  # noqa: E402

OUT = ROOT / "docs/figures"
PICTURES = ROOT / "docs/pictures"
WIDTH = 420
"""Of a panel, in pixels."""
INK, RULE = (40, 40, 40), 12


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with Session(ROOT / "models/demo/bundle", cache=False, backend="onnxruntime-cpu") as session:
        concepts(session)
        exactness(session)


def concepts(session: Session) -> None:
    """One figure an idea."""
    cat, coffee, person = (PICTURES / f"{name}.jpg" for name in ("cat", "coffee", "astronaut"))
    save("start", session.segment(cat, "cat, sofa").overlay())

    save("words", row(
        panel(session.segment(cat, "cat, kitten, sofa"), "cat, kitten, sofa"),
        panel(session.segment(cat, "cat|kitten, sofa"), "cat|kitten, sofa"),
    ))  # fmt: skip

    words = "cup, saucer, spoon, table"
    save("modes", row(
        panel(session.segment(coffee, words), f"joint: {words}"),
        panel(session.segment(coffee, words, mode="independent"), "independent: each word alone"),
    ))  # fmt: skip

    result = session.segment(cat, "cat, sofa")
    save("confidence", row(
        captioned(Image.fromarray(result.picture), "the picture"),
        panel(result, "masks"),
        captioned(heat(result.confidence), "confidence: dark 0, bright 1"),
        width=320,
    ))  # fmt: skip

    save("thresholds", row(
        *(panel(session.segment(person, "person, rocket", threshold=value), f"threshold {value}") for value in (0.3, 0.5, 0.9)),
        width=320,
    ))  # fmt: skip

    save("background", row(
        panel(session.segment(person, "rocket"), "rocket"),
        panel(session.segment(person, "rocket", background="person, flag, wall"), "rocket, background: person, flag, wall"),
    ))  # fmt: skip


def panel(result: Segmentation, caption: str) -> Image.Image:
    """A result's overlay under a caption, and below it the share of each word."""
    shares = ", ".join(f"{word} {share:.0%}" for word, share in zip(result.words, result.shares, strict=True))
    return captioned(result.overlay(legend=False), caption, shares)


def captioned(image: Image.Image, above: str, below: str = "") -> Image.Image:
    image = image.convert("RGB").resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.LANCZOS)
    made = Image.new("RGB", (WIDTH, image.height + 56), "white")
    made.paste(image, (0, 28))
    draw, font = ImageDraw.Draw(made), ImageFont.load_default(15)
    draw.text((2, 4), above, INK, font)
    draw.text((2, image.height + 33), below, INK, font)
    return made


def row(*panels: Image.Image, width: int = WIDTH) -> Image.Image:
    """Panels beside each other. width: that each is made."""
    scaled = [one.resize((width, round(one.height * width / one.width)), Image.Resampling.LANCZOS) for one in panels]
    made = Image.new("RGB", (len(scaled) * (width + RULE) - RULE, max(one.height for one in scaled)), "white")
    for index, one in enumerate(scaled):
        made.paste(one, (index * (width + RULE), 0))
    return made


def heat(values: np.ndarray) -> Image.Image:
    """(H, W) of 0 to 1 in the colours of viridis."""
    import matplotlib

    return Image.fromarray((matplotlib.colormaps["viridis"](values)[..., :3] * 255).astype(np.uint8))


def save(name: str, image: Image.Image) -> None:
    image.convert("RGB").save(OUT / f"{name}.jpg", quality=86, optimize=True)


def exactness(session: Session) -> None:
    """What the mask head computes, drawn, and what it computes of a photograph."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"font.size": 9, "svg.hashsalt": "fusioner-rt", "axes.titlesize": 9})
    drawn()
    of_a_photograph(session)


def save_plot(figure: Any, name: str) -> None:
    """In 256 colours, so that it is small."""
    import matplotlib.pyplot as plt

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=105, facecolor="white")
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(OUT / f"{name}.png", optimize=True)


def drawn() -> None:
    """Two ways from features to a cosine at every pixel."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    figure, axes = plt.subplots(figsize=(8.6, 3.9))
    axes.set(xlim=(-1, 87), ylim=(1, 39))
    axes.axis("off")

    def box(x: float, y: float, width: float, text: str, colour: str, height: float = 7) -> None:
        shape = FancyBboxPatch((x, y), width, height, "round,pad=0.2,rounding_size=0.8", fc=colour, ec="#444", lw=0.8)
        axes.add_patch(shape)
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.2)

    def arrow(x: float, y: float, to_x: float, to_y: float, text: str = "") -> None:
        axes.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "-|>", "color": "#444", "lw": 0.9})
        axes.text((x + to_x) / 2, (y + to_y) / 2 + 0.7, text, ha="center", va="bottom", fontsize=7.4, color="#444")

    small, large, good = "#e4eef7", "#f7dcd6", "#dff0df"
    axes.text(0, 37, "as it is written: the features are made as large as the picture", fontsize=9, weight="bold")
    box(0, 26, 15, "features\nh × w × d", small)
    arrow(15.4, 29.5, 26.6, 29.5, "upsample")
    box(27, 24.5, 22, "upsampled features\nH × W × d\n34 GB at 4096², d = 512", large, 10)
    arrow(49.4, 29.5, 62.6, 29.5, "cosine with\neach word")
    box(63, 26, 22, "K cosines\na pixel", good)

    axes.text(0, 19.5, "here: two kinds of small maps are made larger, and no features", fontsize=9, weight="bold")
    box(0, 7, 15, "features\nh × w × d", small)
    arrow(15.4, 11.5, 25.6, 14.5)
    arrow(15.4, 9.5, 25.6, 5.5)
    box(26, 11.5, 20, "K score maps, h × w\nfeature · word", small, 6)
    box(26, 2.5, 20, "5 Gram maps, h × w\nfeature · neighbour", small, 6)
    arrow(46.4, 14.5, 55.5, 11.8)
    arrow(46.4, 5.5, 55.5, 8.8)
    for y in (15.2, 4.4):
        axes.text(51.5, y, "upsample", ha="center", va="center", fontsize=7.4, color="#444")
    axes.text(59, 10.3, "score\n───────\nlength", ha="center", va="center", fontsize=8.6)
    arrow(62.6, 10.3, 66.6, 10.3)
    box(67, 6.8, 18, "K cosines a pixel:\nthe same", good)
    figure.savefig(OUT / "exact_ways.svg", bbox_inches="tight", facecolor="white", metadata={"Date": None})
    plt.close(figure)


def of_a_photograph(session: Session) -> None:
    """The maps of a photograph, what a short cut errs, and how many words are left under each tile."""
    import matplotlib.pyplot as plt
    import onnxruntime
    import torch

    from fusioner_rt.onnx.mask_tiles import axis, edges
    from kernels import reference

    bundle = session.bundle
    rgb = np.asarray(Image.open(PICTURES / "cat.jpg").convert("RGB"))
    session.set_vocabulary("cat, sofa, wall, dog, person, grass, car, sky, table, tree")
    assert session._vocabulary
    graph = onnxruntime.InferenceSession(bundle.folder / "image_fusion.onnx", providers=["CPUExecutionProvider"])
    features, refined = graph.run(
        ["features", "refined"], {"pixels": bundle.preprocessing(rgb)[None], "words": session._vocabulary.vectors[None]}
    )
    features, refined, size = torch.from_numpy(features), torch.from_numpy(refined), rgb.shape[:2]
    scores, gram = reference.score_maps(features, refined)

    def unit(vectors: torch.Tensor) -> torch.Tensor:
        return vectors / vectors.norm(dim=-1, keepdim=True)

    cosine = reference.upsample(scores, size)[0, 0] / reference.squared_length(gram, size)[0].sqrt()
    upsampled = reference.upsample(features.double().permute(0, 3, 1, 2), size)[0].permute(1, 2, 0)
    written = (unit(upsampled) @ unit(refined.double())[0, 0]).float()
    short_cut = reference.upsample((unit(features) @ unit(refined)[0, 0])[None], size)[0, 0]
    off, short = float((cosine - written).abs().max()), (short_cut - written).abs()
    print(f"cosine of the head: off by {off:.1e} at most; upsampled cosines: by {float(short.max()):.3f}")

    figure, grid = plt.subplots(2, 2, figsize=(8.4, 6.2))
    height, width = scores.shape[-2:]
    shown = (
        (scores[0, 0], f"score map of cat, {height} × {width}: feature · word", "viridis"),
        (gram[0, 0].sqrt(), f"from a Gram map, {height} × {width}: length of the features", "viridis"),
        (cosine, f"cosine with cat, {size[0]} × {size[1]}; off by {off:.0e} at most", "viridis"),
        (short, f"a short cut, upsampled cosines: off by up to {float(short.max()):.3f}", "viridis"),
    )
    for axes, (values, title, colours) in zip(grid.flat, shown, strict=True):
        image = axes.imshow(values.numpy(), cmap=colours, interpolation="nearest", aspect="auto")
        axes.set(title=title, xticks=[], yticks=[])
        figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    figure.tight_layout()
    save_plot(figure, "exact_maps")

    maps = scores[0].numpy()
    down, across = (
        axis(small, large, edges(small, large)[1]) for small, large in zip(maps.shape[1:], size, strict=True)
    )
    under = maps[:, down.points][:, :, :, across.points].transpose(1, 3, 0, 2, 4)  # (rows, columns of tiles, K, S, V)
    under = under.reshape(*under.shape[:3], -1)
    beaten = (under[:, :, :, None] < under[:, :, None]).all(-1).any(-1)  # by one other word at every point
    left = (~beaten).sum(-1)
    print(
        f"{left.size} tiles; one word is left in {np.mean(left == 1):.0%}, {left.mean():.1f} of {len(maps)} on average"
    )

    figure, (one, other) = plt.subplots(1, 2, figsize=(8.4, 2.9))
    one.imshow(rgb)
    one.set(title="the picture, and its tiles", xticks=[], yticks=[])
    for start in down.starts[1:]:
        one.axhline(start, color="white", lw=0.5)
    for start in across.starts[1:]:
        one.axvline(start, color="white", lw=0.5)
    image = other.imshow(left, cmap="YlGnBu", aspect="auto", vmin=0)
    for (y, x), count in np.ndenumerate(left):
        other.text(
            x, y, count, ha="center", va="center", fontsize=6, color="white" if count > left.max() * 0.6 else "#333"
        )
    other.set(title=f"words that can win in a tile, of {len(maps)} asked", xticks=[], yticks=[])
    figure.tight_layout()
    save_plot(figure, "exact_tiles")


if __name__ == "__main__":
    main()
