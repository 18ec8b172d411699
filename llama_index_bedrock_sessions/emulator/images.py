"""The width and height of an image, read from its header: all that is needed to hold the documented pixel limit."""

from __future__ import annotations

_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers that carry no segment
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that start a frame


def size_in_pixels(image_format: str, content: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a png, jpeg, gif or webp; None if the bytes are not of that format."""
    measure = {"png": _png, "jpeg": _jpeg, "gif": _gif, "webp": _webp}.get(image_format)
    try:
        return measure(content) if measure else None
    except IndexError:
        return None


def _big(content: bytes, start: int, length: int) -> int:
    return _number(content, start, length, "big")


def _little(content: bytes, start: int, length: int) -> int:
    return _number(content, start, length, "little")


def _number(content: bytes, start: int, length: int, order: str) -> int:
    if start + length > len(content):
        raise IndexError
    return int.from_bytes(content[start : start + length], order)  # type: ignore[arg-type]


def _png(content: bytes) -> tuple[int, int] | None:
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or content[12:16] != b"IHDR":
        return None
    return _big(content, 16, 4), _big(content, 20, 4)


def _gif(content: bytes) -> tuple[int, int] | None:
    if content[:6] not in (b"GIF87a", b"GIF89a"):
        return None
    return _little(content, 6, 2), _little(content, 8, 2)


def _jpeg(content: bytes) -> tuple[int, int] | None:
    if not content.startswith(b"\xff\xd8"):
        return None
    position = 2
    while content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # padding
            position += 1
        elif marker in _FRAMES:
            return _big(content, position + 7, 2), _big(content, position + 5, 2)
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + _big(content, position + 2, 2)
    return None


def _webp(content: bytes) -> tuple[int, int] | None:
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return None
    kind = content[12:16]
    if kind == b"VP8X":
        return _little(content, 24, 3) + 1, _little(content, 27, 3) + 1
    if kind == b"VP8L":
        packed = _little(content, 21, 4)
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return _little(content, 26, 2) & 0x3FFF, _little(content, 28, 2) & 0x3FFF
    return None
