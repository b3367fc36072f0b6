"""The table of uploads: files that strangers send, and how each must be answered.

Some look odd and are images all the same; those are compared with what `explain` says about the same bytes.
"""

import io
import json
import struct
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo
from skimage import data

CAT = Image.fromarray(data.chelsea()).resize((150, 100))
BOUNDARY = "frontier"


@dataclass(frozen=True)
class Case:
    """A request to /v1/explain; `image` is what a valid one shows."""

    name: str
    status: int
    body: bytes
    content_type: str
    said: str = ""
    image: bytes | None = None


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def black_png(side: int) -> bytes:
    """A real image of side² pixels in few bytes: what a decompression bomb is."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    rows = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    return png(side, side, rows)


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("cat.png", encoded(CAT, "PNG"))
    return buffer.getvalue()


def scans(count: int) -> bytes:
    """A progressive JPEG of 4 megapixels that asks for as many passes over them."""
    whole = encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    return whole[:start] + whole[start:-2] * count + whole[-2:]


def exif(turn: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = turn
    return encoded(CAT, "JPEG", quality=95, exif=tags)


def valid_images() -> dict[str, bytes]:
    grey, alpha = CAT.convert("L"), CAT.convert("RGBA")
    alpha.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = [CAT.rotate(angle) for angle in (90, 180)]
    text = PngInfo()
    text.add_text("Comment", "x" * 10_000, zip=True)
    jpeg = encoded(CAT, "JPEG", quality=95)
    images = {
        "jpeg": jpeg,
        "progressive jpeg": encoded(CAT, "JPEG", progressive=True),
        "grey jpeg": encoded(grey, "JPEG"),
        "cmyk jpeg": encoded(CAT.convert("CMYK"), "JPEG"),
        "jpeg and then a zip": jpeg + archive(),
        "jpeg and then a script": jpeg + b"<script>alert(1)</script>",
        "jpeg with a broken colour profile": encoded(CAT, "JPEG", icc_profile=b"no profile" * 30),
        "jpeg with damaged exif": encoded(CAT, "JPEG", exif=b"Exif\0\0no directory of tags"),
        "png": encoded(CAT, "PNG"),
        "png with transparency": encoded(alpha, "PNG"),
        "png with a palette": encoded(CAT.quantize(64), "PNG"),
        "png of one bit": encoded(CAT.convert("1"), "PNG"),
        "png of 16 bit": encoded(deep, "PNG"),
        "png of grey and alpha": encoded(alpha.convert("LA"), "PNG"),
        "png with packed text": encoded(CAT, "PNG", pnginfo=text),
        "png with too few rows": png(400, 300, zlib.compress(bytes(1201 * 5))),
        "animated png": encoded(CAT, "PNG", save_all=True, append_images=frames),
        "gif": encoded(CAT, "GIF"),
        "animated gif": encoded(CAT, "GIF", save_all=True, append_images=frames),
        "gif that is a script": encoded(CAT, "GIF", comment=b"*/=1;alert(1);/*"),
        "webp": encoded(CAT, "WEBP"),
        "animated webp": encoded(CAT, "WEBP", save_all=True, append_images=frames),
        "tiff": encoded(CAT, "TIFF"),
        "tiff of pages": encoded(CAT, "TIFF", save_all=True, append_images=frames),
        "tiff of 16 bit": encoded(deep, "TIFF"),
        "bmp": encoded(CAT, "BMP"),
        "ppm": encoded(CAT, "PPM"),
        "one pixel": encoded(CAT.crop((0, 0, 1, 1)), "PNG"),
        "a line": encoded(CAT.resize((3000, 1)), "PNG"),
    }
    if features.check("avif"):  # Pillow 11.3 or later
        images["avif"] = encoded(CAT, "AVIF")
    return images | {f"turned by exif {turn}": exif(turn) for turn in range(1, 9)}


def bad_images() -> dict[str, tuple[int, str, bytes]]:
    whole_png, whole_jpeg = encoded(CAT, "PNG"), encoded(CAT, "JPEG")
    random = np.random.default_rng(0)
    flipped = bytearray(whole_png)
    flipped[len(flipped) // 2] ^= 0xFF
    floats = Image.fromarray(np.full((30, 40), 0.5, np.float32))
    wide = Image.fromarray(np.full((30, 40), 1 << 20, np.int32))
    no_image, damaged, large = "no image that is known here", "damaged", "limit is"
    vector = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    return {
        "empty": (422, "0 bytes", b""),
        "one byte": (422, no_image, b"\x89"),
        "text": (422, no_image, b"this is not an image\n" * 50),
        "html": (422, no_image, b"<!doctype html><title>cat.jpg</title>"),
        "svg": (422, no_image, vector),
        "pdf": (422, no_image, encoded(CAT, "PDF")),
        "eps, whose reader starts a program": (422, no_image, encoded(CAT, "EPS")),
        "ico": (422, no_image, encoded(CAT, "ICO")),
        "jpeg 2000": (422, no_image, encoded(CAT, "JPEG2000")),
        "tga": (422, no_image, encoded(CAT, "TGA")),
        "zip": (422, no_image, archive()),
        "script and then a jpeg": (422, no_image, b"#!/bin/sh\nid\n" + whole_jpeg),
        "random": (422, no_image, random.bytes(5000)),
        "png of random": (422, "", b"\x89PNG\r\n\x1a\n" + random.bytes(5000)),
        "png cut": (422, damaged, whole_png[: len(whole_png) // 2]),
        "png's first bytes": (422, damaged, whole_png[:20]),
        "png flipped": (422, damaged, bytes(flipped)),
        "png without pixels": (422, damaged, png(40, 30, b"")),
        "png of 0 × 0": (422, "", png(0, 0, b"")),
        "jpeg cut": (422, damaged, whole_jpeg[: len(whole_jpeg) // 2]),
        "jpeg's first bytes": (422, "", whole_jpeg[:30]),
        "gif cut": (422, damaged, encoded(CAT, "GIF")[:2000]),
        "webp cut": (422, "", encoded(CAT, "WEBP")[:1000]),
        "tiff cut": (422, "", encoded(CAT, "TIFF")[:500]),
        "tiff of fractions": (422, "32 bit", encoded(floats, "TIFF")),
        "tiff of 32 bit": (422, "32 bit", encoded(wide, "TIFF")),
        "30,000 × 30,000": (413, large, black_png(30_000)),
        "6,000 × 6,000": (413, large, black_png(6_000)),
        "png that claims 2³¹ − 1": (413, large, png(2**31 - 1, 2**31 - 1, zlib.compress(b"x"))),
        "gif that claims 65,535": (413, large, b"GIF89a\xff\xff\xff\xff\x00\x00\x00" + b"\x2c" + bytes(8) + b"\x00\x3b"),
        "bmp that claims 30,000": (413, large, b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0)),
        "ppm that claims 99,999": (413, large, b"P6 99999 99999 255\n" + bytes(100)),
        "png text of 100 MB": (422, damaged, png(4, 4, zlib.compress(bytes(13 * 4)), png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9)))),
        "jpeg of 2,000 passes": (413, "passes", scans(2000)),
    }  # fmt: skip


def part(content: bytes, name: str = "image", filename: str = "cat.jpg", end: bool = True) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode() + content + b"\r\n" + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


def bad_bodies() -> list[Case]:
    form, jpeg = f"multipart/form-data; boundary={BOUNDARY}", encoded(CAT, "JPEG", quality=95)
    field = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n'.encode()
    header = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"\r\nX: '.encode()
    return [
        Case("form of no parts", 400, b"", form),
        Case("form that ends at once", 422, f"--{BOUNDARY}--\r\n".encode(), form),
        Case("form without boundary", 400, part(jpeg), "multipart/form-data", "boundary"),
        Case("form with another boundary", 400, part(jpeg), "multipart/form-data; boundary=other"),
        Case("form with an endless boundary", 400, part(jpeg), f"multipart/form-data; boundary={'x' * 3000}"),
        Case("form of an unknown charset", 200, part(jpeg), form + "; charset=zlib_codec", image=jpeg),
        Case("form cut off", 400, part(jpeg, end=False), form, "cut off"),
        Case("form without the field", 422, part(jpeg, "file"), form, "field 'image'"),
        Case("form of two images", 413, part(jpeg, end=False) + part(jpeg), form, "over 1 files"),
        Case("form of 10,000 fields", 413, field * 10_000 + part(jpeg), form, "parts"),
        Case("form of some fields", 200, field * 10 + part(jpeg), form, image=jpeg),
        Case("form with an endless header", 400, header + b"x" * 100_000 + b"\r\n\r\n", form, "the form cannot be read"),
        Case("form without a disposition", 422, f"--{BOUNDARY}\r\n\r\n1\r\n--{BOUNDARY}--\r\n".encode(), form),
        Case("file named as a path", 200, part(jpeg, filename="../../../etc/passwd"), form, "passwd", jpeg),
        Case("file with a name of control characters", 200, part(jpeg, filename="a\x1b[2J\u202e.png"), form, "a[2J", jpeg),
        Case("file without a name", 200, part(jpeg, filename=""), form, '"image"', jpeg),
        Case("json of nothing", 400, b"", "application/json", "not JSON"),
        Case("json of a list", 422, b"[]", "application/json"),
        Case("json of a number", 422, b'{"image": 7}', "application/json"),
        Case("json of null", 422, b'{"image": null}', "application/json"),
        Case("json without images", 422, b'{"image": []}', "application/json"),
        Case("json of two images", 413, json.dumps({"image": ["", ""]}).encode(), "application/json"),
        Case("json nested 100,000 deep", 400, b"[" * 100_000, "application/json"),
        Case("json that is not UTF-8", 400, b'{"image": "\xff"}', "application/json"),
        Case("json of an address", 422, b'{"image": "http://127.0.0.1:1/cat.jpg"}', "application/json", "not base64"),
        Case("json of a path", 422, b'{"image": "file:///etc/passwd"}', "application/json", "not base64"),
        Case("no content type", 415, jpeg, ""),
        Case("text as content type", 415, jpeg, "text/plain"),
        Case("a form in an address", 415, b"image=cat.jpg", "application/x-www-form-urlencoded"),
        Case("control characters in the content type", 415, jpeg, "te\tst/\x7f"),
    ]  # fmt: skip


def cases() -> list[Case]:
    """The whole table."""
    form = f"multipart/form-data; boundary={BOUNDARY}"
    valid = [Case(name, 200, part(content), form, image=content) for name, content in valid_images().items()]
    bad = [Case(name, status, part(c), form, said) for name, (status, said, c) in bad_images().items()]
    return [*valid, *bad, *bad_bodies()]
