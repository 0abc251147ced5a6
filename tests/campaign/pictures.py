"""Pictures that are mutated, or small and costly: every format, mode and compression that Pillow writes here."""

import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
from PIL import Image

from fusioner_rt import FusionerError, Session
from fusioner_rt.decode_picture import MAX_PIXELS, decode

from .cases import Bench, Case

SEGMENTED = 40  # of as many cases one is segmented, too
_EDGES = (
    0,
    1,
    2,
    127,
    255,
    256,
    4095,
    8191,
    8192,
    11_585,
    16_383,
    32_767,
    65_535,
    1 << 24,
    (1 << 31) - 1,
    (1 << 32) - 1,
)


def case(number: int, random: Random, bench: Bench) -> Case:
    seeds = bench.once("seeds", lambda: list(_seeds()))
    what, content = mutant(random, seeds)
    (bench.folder / "picture").write_bytes(content)
    session = bench.once("session", lambda: _session(bench)) if number % SEGMENTED == 0 else None
    return Case(lambda: check(session, what, content), f"{what}, {len(content)} bytes")


def cases(seed: int) -> Iterator[tuple[str, bytes]]:
    """Mutants without end, each with what it is."""
    seeds = list(_seeds())
    for number in itertools.count():
        yield mutant(Random(f"pictures-{seed}-{number}"), seeds)


def check(session: Session | None, name: str, content: bytes) -> str | None:
    """Decode a mutant, and with a session segment it. Returns what is wrong with how that ends, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what is broken
        try:
            rgb = decode(content, max_pixels=MAX_PIXELS)
        except FusionerError as error:
            return None if "\n" not in str(error) and error.is_input else f"an error of {name} blames us: {error!r}"
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.flags.c_contiguous:
            return f"gives {rgb.dtype} of {rgb.shape}"
        claimed = Image.open(io.BytesIO(content)).size
        if rgb.shape[:2] not in (claimed, claimed[::-1]) or rgb.size > 3 * MAX_PIXELS:
            return f"gives {rgb.shape}, its header says {claimed}"
        if session and rgb.size < 3_000_000:
            labels = session.segment(content, words="cat, sofa").labels
            if labels.shape != rgb.shape[:2] or labels.max() > 2:
                return f"its labels are {labels.shape}, up to {labels.max()}"
    return None


def mutant(random: Random, seeds: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """A mutant: what it is, and its bytes."""
    if random.random() < 0.03:
        bomb = random.choice(_BOMBS)
        return bomb.__name__.strip("_").replace("_", " "), bomb(random)
    name, content = random.choice(seeds)
    steps = []
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        mutation = random.choice(_MUTATIONS)
        content = mutation(random, content, seeds)
        steps.append(mutation.__name__.strip("_").replace("_", " "))
    return f"{name}: {', '.join(steps)}", content


def _session(bench: Bench) -> Session:
    session = Session(bench.bundle, backend="onnxruntime-cpu", threads=1)
    session.set_vocabulary("cat, sofa")
    return session


# Seeds


def _seeds() -> Iterator[tuple[str, bytes]]:
    """What Pillow writes, by name: each mode, compression and depth."""
    made = np.random.default_rng(0)
    noise = Image.fromarray(made.integers(0, 255, (37, 41, 4), np.uint8))
    smooth = Image.linear_gradient("L").resize((53, 29)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    modes = {mode: noise.convert("RGB").convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LAB")}
    wide = made.integers(0, 65535, (37, 41))
    modes |= {
        "LA": noise.convert("LA"), "RGBA": noise, "smooth": smooth, "I": Image.fromarray(wide.astype(np.int32)),
        "I;16": Image.fromarray(wide.astype(np.uint16)), "F": Image.fromarray(wide.astype(np.float32)),
    }  # fmt: skip
    modes["PA"] = modes["LA"].convert("PA")
    frames = {"save_all": True, "append_images": [smooth, modes["RGB"]]}
    options: dict[str, list[dict[str, object]]] = {
        "PNG": [{}, {"compress_level": 0}, {"bits": 4}, {"bits": 1}, {"transparency": 0}, {"exif": exif}, frames],
        "JPEG": [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}, {"exif": exif}, {"restart_marker_rows": 1}],
        "MPO": [frames],
        "WEBP": [{}, {"lossless": True}, {"exif": exif}, frames],
        "AVIF": [{"speed": 10}, {"speed": 10, "exif": exif}, {"speed": 10, **frames}],
        "GIF": [{}, {"interlace": 1}, {"transparency": 0}, frames],
        "BMP": [{}],
        "TGA": [{}, {"compression": "tga_rle"}],
        "PPM": [{}],
        "JPEG2000": [{}, {"irreversible": True}, {"tile_size": (16, 16)}, {"no_jp2": True}, {"num_resolutions": 1}],
        "TIFF": [
            *({"compression": name} for name in (
                None, "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg", "group3", "group4", "tiff_ccitt",
                "lzma", "zstd", "webp",
            )),
            {"exif": exif}, {"tiffinfo": {262: 0}}, {"big_tiff": True}, {"tiffinfo": {278: 3}}, frames,
        ],
    }  # fmt: skip
    for form, variants in options.items():
        for variant, (mode, image) in itertools.product(variants, modes.items()):
            stream = io.BytesIO()
            try:
                image.save(stream, form, **variant)
            except Exception:  # this format has no such mode
                continue
            told = ", ".join(
                key if key == "append_images" else f"{key} {str(value)[:20]}" for key, value in variant.items()
            )
            yield f"{form} of {mode}, {told}".rstrip(", "), stream.getvalue()
    for text in (
        b"P2 3 2 100 1 2 3 4 5 6",
        b"P1 3 2 1 0 1 0 1 1",
        b"P3 1 1 9 1 2 3",
        b"P5 3 2 100 abcdef",
        b"P6 1 2 999 abcdefabcdef",
    ):
        yield f"PPM {text[:2].decode()}", text
    for depth, kind, transparent in (
        (16, 0, b"\1\2"),
        (16, 2, b"\1\2\1\2\1\2"),
        (2, 0, b"\0\1"),
        (16, 4, b""),
        (16, 6, b""),
    ):
        yield (
            f"PNG of depth {depth}, kind {kind}",
            _png(16, 5, depth, kind, [(b"tRNS", transparent)] if transparent else []),
        )


# Mutations


def _bits_flipped(random: Random, content: bytes, _: object) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 2, 8, 40))):
        changed[_place(random, content)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _bytes_set(random: Random, content: bytes, _: object) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 3))):
        changed[_place(random, content)] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
    return bytes(changed)


def _numbers_set(random: Random, content: bytes, _: object) -> bytes:
    number, layout = random.choice(_EDGES), random.choice((">H", "<H", ">I", "<I"))
    packed = struct.pack(layout, number & (0xFFFF if layout[1] == "H" else 0xFFFFFFFF))
    place = _place(random, content)
    return content[:place] + packed + content[place + len(packed) :]


def _cut(random: Random, content: bytes, _: object) -> bytes:
    return content[: random.randrange(len(content) + 1)] or b"\0"


def _spliced(random: Random, content: bytes, seeds: list[tuple[str, bytes]]) -> bytes:
    other = random.choice(seeds)[1]
    return content[: _place(random, content)] + other[_place(random, other) :] or b"\0"


def _part_repeated(random: Random, content: bytes, _: object) -> bytes:
    start = _place(random, content)
    part = content[start : start + random.choice((1, 4, 12, 60, 1000))]
    return content[:start] + part * random.choice((2, 3, 50, 1000)) + content[start:]


def _part_removed(random: Random, content: bytes, _: object) -> bytes:
    start = _place(random, content)
    return content[:start] + content[start + random.choice((1, 2, 4, 50)) :] or b"\0"


def _chunks_changed(random: Random, content: bytes, seeds: list[tuple[str, bytes]]) -> bytes:
    """PNG's chunks, one repeated, removed, moved or changed, with a checksum that is right; of others, any bytes."""
    if not content.startswith(b"\x89PNG"):
        return _numbers_set(random, content, seeds)
    chunks, place = [], 8
    while place + 8 <= len(content):
        length = struct.unpack_from(">I", content, place)[0]
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return content
    index = random.randrange(len(chunks))
    kind, inside = chunks.pop(index)
    if random.random() < 0.6 and inside:
        inside = random.choice((_bits_flipped, _numbers_set, _cut))(random, inside, seeds)
    for _ in range(random.choice((0, 1, 1, 1, 2, 30))):
        chunks.insert(random.choice((index, random.randrange(len(chunks) + 1))), (kind, inside))
    return content[:8] + b"".join(_chunk(*chunk) for chunk in chunks)


def _tags_changed(random: Random, content: bytes, seeds: list[tuple[str, bytes]]) -> bytes:
    """A field of an entry of TIFF's first directory; of others, any bytes."""
    if content[:4] != b"II*\0" or len(content) < 40:
        return _numbers_set(random, content, seeds)
    first = struct.unpack_from("<I", content, 4)[0]
    if first + 14 > len(content):
        return content
    entry = first + 2 + 12 * random.randrange(max(1, struct.unpack_from("<H", content, first)[0]))
    offset, layout = random.choice(((0, "<H"), (2, "<H"), (4, "<I"), (8, "<I"), (8, "<H")))
    number = random.choice((*_EDGES, *range(20), 257, 258, 259, 262, 273, 277, 278, 279, 320, 330, 338, 339))
    packed = struct.pack(layout, number & (0xFFFF if layout[1] == "H" else 0xFFFFFFFF))
    return content[: entry + offset] + packed + content[entry + offset + len(packed) :]


def _place(random: Random, content: bytes) -> int:
    """A byte's index, most often in the header."""
    most = max(1, len(content))
    return random.randrange(min(most, random.choice((32, 200, 200, most))))


_MUTATIONS: list[Callable[..., bytes]] = [
    _bits_flipped, _bytes_set, _numbers_set, _cut, _spliced, _part_repeated, _part_removed, _chunks_changed, _tags_changed,
]  # fmt: skip


# Bombs: small files of great cost


def _webp_that_claims_a_size(random: Random) -> bytes:
    width, height = _size(random, 16_383)
    bits = (width - 1) | (height - 1) << 14 | random.randrange(2) << 28
    # a header, and codes of one symbol each, so that pixels take no bits
    body = (
        b"\x2f" + struct.pack("<I", bits) + random.choice((b"\x07\x10\xfd\x4f\x04\x44\0\0", b"\x88\x88\x08\0\0\0\0\0"))
    )
    return b"RIFF" + struct.pack("<I", 12 + len(body) + 1) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body + b"\0"


def _jpeg_of_many_scans(random: Random) -> bytes:
    edge = random.choice((64, 1000, 3000))
    content = _encoded(Image.new("RGB", (edge, edge)), "JPEG", progressive=True, subsampling=random.choice((0, 2)))
    scans = [content.find(b"\xff\xda")]
    while (found := content.find(b"\xff\xda", scans[-1] + 2)) > 0:
        scans.append(found)
    chosen = random.randrange(len(scans) - 1)
    scan = content[scans[chosen] : scans[chosen + 1]]
    if random.random() < 0.5:
        scan = scan[:10]  # its header
    return content[: scans[chosen]] + scan * random.choice((10, 100, 400, 5000)) + content[scans[chosen] :]


def _png_that_claims_a_size(random: Random) -> bytes:
    return _png(*_size(random, 1 << 20), *random.choice(((8, 2), (16, 6), (1, 0), (8, 3))), [(b"PLTE", bytes(9))])  # type: ignore[misc]


def _png_of_bombs(random: Random) -> bytes:
    packed = zlib.compress(bytes(1 << 20), 9)
    kind, head = random.choice(((b"iCCP", b"name\0\0"), (b"zTXt", b"name\0\0"), (b"iTXt", b"name\0\1\0\0\0")))
    return _png(4, 4, 8, 2, [(kind, head + packed)] * random.choice((1, 63, 500)))


def _png_of_many_chunks(random: Random) -> bytes:
    kind = random.choice((b"tEXt", b"prIv", b"acTL", b"fcTL", b"gAMA", b"eXIf"))
    return _png(4, 4, 8, 2, [(kind, b"name\0text")] * random.choice((1000, 40_000)))


def _gif_of_a_great_screen(random: Random) -> bytes:
    content = bytearray(_encoded(Image.new("P", (5, 5)), "GIF"))
    content[6:10] = struct.pack("<HH", *_size(random, 65_535))
    return bytes(content)


def _gif_of_a_long_comment(random: Random) -> bytes:
    content = _encoded(Image.new("P", (5, 5)), "GIF")
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * random.choice((100, 4000)) + b"\0"
    place = content.find(b",")
    return content[:place] + comment * random.choice((1, 2)) + content[place:]


def _gif_of_many_frames(random: Random) -> bytes:
    content = _encoded(Image.new("P", (5, 5)), "GIF")
    place = content.find(b",")
    return content[:place] + content[place:-1] * random.choice((100, 20_000)) + b";"


def _tiff_of_tags_in_each_other(random: Random) -> bytes:
    return _exif(random.choice((100, 5000, 60_000)), random.choice((100, 60_000, 900_000)))


def _exif_of_tags_in_each_other(random: Random) -> bytes:
    if random.random() < 0.5:
        return _png(4, 4, 8, 2, [(b"eXIf", _exif(random.choice((5000, 60_000)), 300_000))])
    segment = b"Exif\0\0" + _exif(random.choice((500, 4000)), 60_000)[:65_000]
    content = _encoded(Image.new("RGB", (5, 5)), "JPEG")
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]


def _jpeg_of_many_segments(random: Random) -> bytes:
    content = _encoded(Image.new("RGB", (5, 5)), "JPEG")
    inside = random.choice(
        (b"Exif\0\0MM", b"", b"ICC_PROFILE\0\1\1", b"Photoshop 3.0\x008BIM", b"http://ns.adobe.com/xap/1.0/\0")
    )
    segment = random.choice((b"\xff\xe1", b"\xff\xe2", b"\xff\xed", b"\xff\xfe", b"\xff\xdb"))
    return (
        content[:2]
        + (segment + struct.pack(">H", len(inside) + 2) + inside) * random.choice((1000, 50_000))
        + content[2:]
    )


def _tiff_of_many_strips(random: Random) -> bytes:
    height = random.choice((1000, 30_000, 100_000))
    content = bytearray(
        _encoded(Image.new("L", (1, height)), "TIFF", tiffinfo={278: 1}, compression=random.choice((None, "packbits")))
    )
    return bytes(content)


def _tiff_that_claims_a_size(random: Random) -> bytes:
    compression = random.choice((None, "tiff_lzw", "group4", "jpeg", "packbits", "tiff_adobe_deflate"))
    content = _encoded(Image.new("1" if compression == "group4" else "L", (64, 64)), "TIFF", compression=compression)
    width, height = _size(random, 1 << 20)
    first = struct.unpack_from("<I", content, 4)[0]
    changed = bytearray(content)
    for entry in range(first + 2, first + 2 + 12 * struct.unpack_from("<H", content, first)[0], 12):
        tag = struct.unpack_from("<H", content, entry)[0]
        if tag in (256, 257, 278):
            struct.pack_into("<HHII", changed, entry, tag, 4, 1, {256: width, 257: height, 278: height}[tag])
    return bytes(changed)


def _tiff_of_jpeg_of_many_scans(random: Random) -> bytes:
    """Strips of progressive JPEG."""
    strip = _jpeg_of_many_scans(random)
    width, height = Image.open(io.BytesIO(strip)).size
    entries = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 7),
        (262, 6),
        (273, 200),
        (277, 3),
        (278, height),
        (279, len(strip)),
    ]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries
    )
    return head.ljust(200, b"\0") + strip


def _jpeg2000_that_claims_a_size(random: Random) -> bytes:
    content = _encoded(Image.new("RGB", (64, 64)), "JPEG2000", no_jp2=True)
    size = content.find(b"\xff\x51") + 6
    width, height = _size(random, 1 << 20)
    tile = random.choice(((width, height), (1, 1), (max(1, width // 200), max(1, height // 200))))
    return content[:size] + struct.pack(">6I", width, height, 0, 0, *tile) + content[size + 24 :]


def _jpeg2000_of_small_precincts(random: Random) -> bytes:
    edge = random.choice((64, 1000, 4000))
    content = _encoded(
        Image.new("L", (edge, edge)),
        "JPEG2000",
        no_jp2=True,
        precinct_size=(64, 64),
        codeblock_size=(32, 32),
        num_resolutions=6,
    )
    style = content.find(b"\xff\x52")
    length = struct.unpack_from(">H", content, style + 2)[0]
    end = style + 2 + length
    small = bytes([random.choice((0, 0x11, 0x22))]) * (end - style - 14)
    return content[: style + 14] + small + content[end:]


def _jpeg2000_of_two_sizes(random: Random) -> bytes:
    """Its box says less than its codestream does."""
    content = _encoded(Image.new("RGB", (64, 64)), "JPEG2000")
    size = content.find(b"\xff\x51") + 6
    width, height = _size(random, 1 << 20)
    tile = random.choice(((width, height), (64, 64), (max(1, width // 200), max(1, height // 200))))
    return content[:size] + struct.pack(">6I", 20 * width, height, 0, 0, *tile) + content[size + 24 :]


def _ppm_for_loops(random: Random) -> bytes:
    width, height = _size(random, 1 << 20)
    kind, most = random.choice(((b"P5", 254), (b"P6", 65_535), (b"P2", 255), (b"P1", 1), (b"P3", 9)))
    return (
        kind
        + b" %d %d " % (width, height)
        + (b"%d " % most if kind != b"P1" else b"")
        + b"1 " * random.choice((10, 400_000))
    )


def _rle_that_claims_a_size(random: Random) -> bytes:
    width, height = _size(random, 65_535)
    if random.random() < 0.5:
        return struct.pack(
            "<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, width, height, 24, 0
        ) + b"\xff\1\2\3" * random.choice((1, 200_000))
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 2, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", 0, 0, 0, 62)
        + head
        + bytes(8)
        + random.choice((b"\xff\1", b"\0\2\0\1", b"\0\0")) * 100_000
    )


_BOMBS: list[Callable[[Random], bytes]] = [
    value for name, value in list(globals().items())
    if callable(value) and name.startswith(("_webp", "_jpeg", "_png_", "_gif", "_tiff", "_exif_", "_ppm", "_rle"))
]  # fmt: skip


def _size(random: Random, most: int) -> tuple[int, int]:
    """Width and height of as many pixels as are allowed, or few more."""
    width = min(most, random.choice((1, 64, 5000, 8192, 16_383, most)))
    return width, max(1, min(most, (MAX_PIXELS + random.choice((0, 0, 1))) // width))


def _exif(entries: int, length: int) -> bytes:
    """A TIFF's directory of tags whose values are the same bytes."""
    start = 10 + 12 * entries
    tags = b"".join(struct.pack("<HHII", 1000 + tag, 7, length, start) for tag in range(entries))
    return struct.pack("<2sHIH", b"II", 42, 8, entries) + tags + bytes(length)


def _png(width: int, height: int, depth: int, kind: int, between: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of zeros. between: chunks before its pixels."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    packed = zlib.compressobj(9)
    rows = height * (1 + (width * samples * depth + 7) // 8)
    pixels = (
        b"".join(packed.compress(bytes(min(1 << 20, rows - done))) for done in range(0, rows, 1 << 20)) + packed.flush()
    )
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", head), *between, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, inside: bytes) -> bytes:
    return struct.pack(">I", len(inside)) + kind + inside + struct.pack(">I", zlib.crc32(kind + inside))


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()
