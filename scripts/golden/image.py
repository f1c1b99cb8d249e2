"""Makes tests/golden/image/: small pictures of many kinds, and what Pillow and Transformers make of them.

    python3 scripts/golden/image.py

Needs pillow, numpy and transformers (the figures in the index say which). Written files:
  pictures    NAME.png/.jpg/.webp
  NAME.rgb    Pillow's Image.open(...).convert("RGB"), raw [height, width, 3]
  NAME.clip64.rgb, NAME.clip336.png   the CLIP processor's picture before rescaling (the second for a few)
  CONFIG.json preprocessor_config.json files, as save_pretrained writes them
  index.txt   a line for each picture: file, width, height and, for each config, 16 hex digits of the SHA-256
              of the processor's float32 output [3, H, W]
  resample.txt a line for each resize of a noise picture: seed, contrast, size, filter, new size, SHA-256 as above
"""
import hashlib
import io
import os
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import Image
import transformers
from transformers import CLIPImageProcessor

warnings.simplefilter("ignore")
OUT = "tests/golden/image"
CORPUS = "tests/fuzz/corpus"

CONFIGS = {
    "clip336": dict(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
    "clip64": dict(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
    # smaller than the crop in both directions, odd differences: zeros around
    "pad": dict(size={"shortest_edge": 31}, crop_size={"height": 48, "width": 50}, resample=2,
                image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.25, 0.5]),
    # a fixed shape, no crop, no normalisation
    "stretch": dict(size={"height": 40, "width": 72}, do_center_crop=False, do_normalize=False),
    # no resize: crop and pad only, no rescale
    "croponly": dict(do_resize=False, crop_size={"height": 51, "width": 44}, do_rescale=False),
}


def scene(width, height, seed, channels=3):
    """Smooth colours, hard edges and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.empty((height, width, channels))
    for c in range(channels):
        fx, fy, ph = rng.uniform(0.02, 0.25, 2).tolist() + [rng.uniform(0, 6)]
        out[..., c] = 128 + 110 * np.sin(fx * x + fy * y + ph)
    for _ in range(4):
        x0, y0 = rng.integers(0, max(1, width)), rng.integers(0, max(1, height))
        out[y0:y0 + height // 3 + 1, x0:x0 + width // 4 + 1] = rng.integers(0, 256, channels)
    out += rng.normal(0, 3, out.shape)
    return np.clip(out, 0, 255).astype(np.uint8)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_write(samples, depth, colour, palette=None, trns=None, interlace=True):
    """A PNG of integer samples [height, width, channels]; Pillow writes no interlaced and few odd ones."""
    height, width, _ = samples.shape
    adam7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    raw = b""
    for x0, y0, dx, dy in adam7 if interlace else [(0, 0, 1, 1)]:
        part = samples[y0::dy, x0::dx]
        if part.shape[0] == 0 or part.shape[1] == 0:
            continue
        for row in part:
            bits = "".join(format(int(v), f"0{depth}b") for v in row.reshape(-1))
            bits += "0" * (-len(bits) % 8)
            raw += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    out = b"\x89PNG\r\n\x1a\n" + png_chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlace)))
    if palette is not None:
        out += png_chunk(b"PLTE", bytes(palette))
    if trns is not None:
        out += png_chunk(b"tRNS", bytes(trns))
    return out + png_chunk(b"IDAT", zlib.compress(raw, 9)) + png_chunk(b"IEND", b"")


def save(im, fmt, **kw):
    b = io.BytesIO()
    im.save(b, fmt, **kw)
    return b.getvalue()


def pictures():
    rgb = Image.fromarray
    yield "rgb.png", save(rgb(scene(61, 47, 1)), "png")
    yield "grey.png", save(rgb(scene(50, 70, 2)[..., 0]), "png")
    yield "grey1.png", save(rgb(scene(33, 17, 3)[..., 0]).convert("1"), "png")
    yield "grey2.png", png_write(scene(29, 31, 4)[..., :1] >> 6, 2, 0)
    yield "greyalpha.png", save(Image.merge("LA", [rgb(scene(41, 53, s)[..., 0]) for s in (5, 6)]), "png")
    yield "greyalpha16.png", png_write(scene(23, 19, 7, 2).astype(np.uint32) * 251 + 77, 16, 4)
    yield "grey16.png", png_write(scene(27, 34, 8, 1).astype(np.uint32) * 2, 16, 0, interlace=False)
    yield "palette.png", save(rgb(scene(45, 64, 9)).quantize(40), "png")
    pal = rgb(scene(52, 39, 10)).quantize(16)
    yield "palettetrns.png", save(pal, "png", transparency=bytes(range(0, 256, 16)), bits=4)
    # 2-bit indices with a palette of three: the fourth colour is missing; interlaced
    yield "paletteshort.png", png_write(scene(21, 26, 11, 1) >> 6, 2, 3, [255, 0, 0, 0, 200, 40, 9, 9, 250], [0, 128])
    yield "rgba.png", save(rgb(scene(58, 44, 12, 4)), "png")
    yield "rgb16.png", png_write(scene(31, 22, 13).astype(np.uint32) * 256 + 200, 16, 2)
    yield "rgba16.png", png_write(scene(18, 25, 14, 4).astype(np.uint32) * 257, 16, 6, interlace=False)
    yield "column.png", save(rgb(scene(1, 37, 15)), "png")
    yield "dot.png", save(rgb(scene(1, 1, 16)), "png")
    yield "wide.png", save(rgb(scene(499, 3, 17)), "png")
    yield "baseline.jpg", save(rgb(scene(97, 63, 18)), "jpeg", quality=88)
    yield "wide.jpg", save(rgb(scene(611, 19, 19)), "jpeg", quality=75, subsampling="4:2:2")
    yield "tall.jpg", save(rgb(scene(80, 260, 30)), "jpeg", quality=80)
    yield "full.jpg", save(rgb(scene(40, 77, 20)), "jpeg", quality=95, subsampling="4:4:4", optimize=True)
    yield "grey.jpg", save(rgb(scene(55, 48, 21)[..., 1]), "jpeg", quality=80)
    yield "progressive.jpg", save(rgb(scene(83, 71, 22)), "jpeg", quality=70, progressive=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "exif6.jpg", save(rgb(scene(66, 42, 23)), "jpeg", quality=85, exif=exif)
    cmyk = save(Image.fromarray(scene(49, 57, 24, 4), "CMYK"), "jpeg", quality=85)
    yield "cmyk.jpg", cmyk
    # the same bytes declared YCCK: the transform byte is the last of the Adobe marker
    at = cmyk.index(b"Adobe") + 11
    assert cmyk[at] == 0
    yield "ycck.jpg", cmyk[:at] + b"\2" + cmyk[at + 1:]
    yield "lossy.webp", save(rgb(scene(75, 51, 25)), "webp", quality=70)
    yield "lossyalpha.webp", save(rgb(scene(62, 54, 26, 4)), "webp", quality=60)
    yield "lossless.webp", save(rgb(scene(43, 39, 27)), "webp", lossless=True)
    yield "losslessalpha.webp", save(rgb(scene(37, 46, 28, 4)), "webp", lossless=True, exact=True)
    yield "large.jpg", save(rgb(scene(640, 427, 29)).convert("RGB"), "jpeg", quality=60)


def digest(a):
    return hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16]


def noise(width, height, seed, contrast):
    """The same picture in tests/unit/test_image.c: a linear congruential generator, highest byte."""
    out = np.empty(width * height * 3, np.uint8)
    s = seed
    for i in range(out.size):
        s = (s * 1664525 + 1013904223) & 0xFFFFFFFF
        v = s >> 24
        out[i] = (255 if v >= 128 else 0) if contrast else v
    return out.reshape(height, width, 3)


RESIZES = [  # width, height -> width, height
    (37, 29, 64, 64), (37, 29, 16, 16), (37, 29, 37, 16), (37, 29, 16, 29), (37, 29, 37, 29), (37, 29, 36, 28),
    (37, 29, 1, 1), (1, 1, 9, 7), (1, 41, 13, 5), (41, 1, 5, 13), (2, 3, 300, 200), (300, 200, 7, 5),
    (300, 200, 224, 149), (131, 97, 130, 98), (64, 64, 33, 95), (5, 400, 5, 31), (400, 5, 31, 5), (3, 3, 4, 4),
    # around the point where Pillow 13 turns to the columns first: the height loses more than twice the width
    (90, 210, 50, 130), (90, 210, 50, 129), (61, 47, 72, 40), (61, 47, 62, 46), (40, 60, 80, 61), (20, 300, 19, 297),
]


def corpus():
    """First inputs for the fuzzers: one small file of each kind, and some that are broken."""
    rgb = Image.fromarray
    small = {
        "rgb.png": save(rgb(scene(13, 9, 40)), "png"),
        "grey1.png": save(rgb(scene(17, 5, 41)[..., 0]).convert("1"), "png"),
        "grey16.png": png_write(scene(7, 6, 42, 1).astype(np.uint32) * 2, 16, 0),
        "greyalpha16.png": png_write(scene(6, 7, 43, 2).astype(np.uint32) * 251, 16, 4),
        "palettetrns.png": png_write(scene(11, 9, 44, 1) >> 6, 2, 3, [255, 0, 0, 0, 200, 40, 9, 9, 250], [0, 128]),
        "rgba.png": save(rgb(scene(9, 12, 45, 4)), "png"),
        "colour.jpg": save(rgb(scene(19, 11, 46)), "jpeg", quality=60),
        "grey.jpg": save(rgb(scene(11, 19, 47)[..., 1]), "jpeg", quality=60),
        "progressive.jpg": save(rgb(scene(17, 17, 48)), "jpeg", quality=50, progressive=True),
        "cmyk.jpg": save(Image.fromarray(scene(9, 10, 49, 4), "CMYK"), "jpeg", quality=60),
        "restart.jpg": save(rgb(scene(33, 17, 50)), "jpeg", quality=60, restart_marker_rows=1),
        "lossy.webp": save(rgb(scene(20, 13, 51)), "webp", quality=50),
        "lossyalpha.webp": save(rgb(scene(12, 14, 52, 4)), "webp", quality=50),
        "lossless.webp": save(rgb(scene(13, 9, 53, 4)), "webp", lossless=True, exact=True),
        "animated.webp": save(rgb(scene(8, 8, 54)), "webp", save_all=True, append_images=[rgb(scene(8, 8, 55))]),
    }
    small["half.png"] = small["rgb.png"][:200]
    small["half.jpg"] = small["progressive.jpg"][:-60]
    small["half.webp"] = small["lossy.webp"][:-10]
    small["bomb.png"] = small["rgb.png"][:16] + struct.pack(">II", 60000, 60000) + small["rgb.png"][24:]
    small["magic"] = b"\xff\xd8\xff"
    os.makedirs(f"{CORPUS}/image", exist_ok=True)
    for name, data in small.items():
        Path(f"{CORPUS}/image/{name}").write_bytes(data)

    configs = {name: Path(f"{OUT}/{name}.json").read_text() for name in CONFIGS}
    configs |= {
        "numbers": '{"size":336,"crop_size":336,"image_mean":0.5,"image_std":0.5,"resample":1}',
        "types": '{"image_processor_type":"CLIPImageProcessor","feature_extractor_type":"CLIPFeatureExtractor",'
                 '"data_format":"channels_first","do_pad":false,"device":null,"_valid_processor_keys":["a"]}',
        "empty": "{}", "none": "", "list": "[]", "open": '{"size":{"height":1', "twice": '{"size":1,"size":2}',
        "huge": '{"size":99999999999999999999,"rescale_factor":1e400}', "other": '{"do_pad":true}',
        "edges": '{"size":{"shortest_edge":1,"height":2},"crop_size":{"height":4096,"width":1}}',
        "bytes": '{"size":"\\u0000","\x7f":1}', "deep": "[" * 3000,
    }
    os.makedirs(f"{CORPUS}/preprocess", exist_ok=True)
    for name, text in configs.items():
        Path(f"{CORPUS}/preprocess/{name}.json").write_text(text)


def main():
    os.makedirs(OUT, exist_ok=True)
    processors = {}
    for name, cfg in CONFIGS.items():
        processors[name] = CLIPImageProcessor(**cfg)
        with tempfile.TemporaryDirectory() as d:
            processors[name].save_pretrained(d)
            with open(f"{d}/preprocessor_config.json") as f, open(f"{OUT}/{name}.json", "w") as g:
                g.write(f.read())
    lines = []
    for name, data in pictures():
        with open(f"{OUT}/{name}", "wb") as f:
            f.write(data)
        im = Image.open(io.BytesIO(data))
        rgb = np.array(im.convert("RGB"))
        large = name == "large.jpg"
        if not large:
            rgb.tofile(f"{OUT}/{name}.rgb")
        # channels_last: otherwise pictures 1 or 3 pixels high are taken for channels first
        digests = [digest(p(im, return_tensors="np", input_data_format="channels_last")["pixel_values"][0])
                   for p in processors.values()]

        def seen(config):
            out = processors[config](im, do_rescale=False, do_normalize=False, return_tensors="np",
                                     data_format="channels_last", input_data_format="channels_last")
            assert out["pixel_values"].dtype == np.uint8
            return out["pixel_values"][0]

        seen("clip64").tofile(f"{OUT}/{name}.clip64.rgb")
        if large or name in ("cmyk.jpg", "palettetrns.png"):
            Image.fromarray(seen("clip336")).save(f"{OUT}/{name}.clip336.png", optimize=True)
        lines.append(" ".join([name, str(im.width), str(im.height)] + digests))
    with open(f"{OUT}/index.txt", "w") as f:
        print(f"# pillow {PIL.__version__}, transformers {transformers.__version__}", file=f)
        print("# file width height", *CONFIGS, file=f)
        print("\n".join(lines), file=f)
    with open(f"{OUT}/resample.txt", "w") as f:
        print(f"# pillow {PIL.__version__}\n# seed contrast width height filter width height digest", file=f)
        for i, (w, h, nw, nh) in enumerate(RESIZES):
            for filt in (1, 2, 3):
                im = Image.fromarray(noise(w, h, i + 1, i % 2))
                print(i + 1, i % 2, w, h, filt, nw, nh, digest(np.array(im.resize((nw, nh), filt))), file=f)
    corpus()


main()
