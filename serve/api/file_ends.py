"""Where the image in a file ends: what follows may be a file of another kind, which makes one file two."""

PADDING = b"\0\r\n\t "
FROM_PHONES = (b"\xff\xd8\xff", b"ftyp", b"MotionPhoto_Data")
"""What stands where phones' further pictures and short films behind a JPEG begin."""
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
"""JPEG markers with nothing behind them."""


def hides_another_file(data: bytes, file_format: str) -> bool:
    """Whether something other than padding, or what phones append to photographs, follows the image.

    Formats whose end cannot be told (`file_format` as Pillow names it) are taken to end with the file.
    """
    find_end = {"PNG": _png_end, "JPEG": _jpeg_end, "MPO": _jpeg_end, "GIF": _gif_end, "WEBP": _webp_end}
    if file_format not in find_end:
        return False
    rest = data[find_end[file_format](data) :].strip(PADDING)
    is_jpeg = file_format in ("JPEG", "MPO")
    return bool(rest) and not (is_jpeg and any(sign in rest[:64] for sign in FROM_PHONES))


def _png_end(data: bytes) -> int:
    place = 8
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        if kind == b"IEND":
            break
    return place


def _jpeg_end(data: bytes) -> int:
    place = 2
    while place + 4 <= len(data):
        place = data.find(b"\xff", place)
        if place < 0 or place + 1 >= len(data):
            return len(data)
        marker = data[place + 1]
        if marker == 0xD9:
            return place + 2
        # In the coded data FF is followed by 0, or by a restart marker; FF before FF is padding.
        if marker in (0x00, 0xFF) or marker in WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2
        else:
            place += 2 + max(2, int.from_bytes(data[place + 2 : place + 4], "big"))
    return len(data)


def _gif_end(data: bytes) -> int:
    place = 13 + _colours(data[10:11])
    while place < len(data):
        kind = data[place]
        if kind == 0x3B:
            return place + 1
        if kind == 0x2C:
            place += 11 + _colours(data[place + 9 : place + 10])
        elif kind == 0x21:
            place += 2
        else:
            return len(data)
        while place < len(data) and data[place]:
            place += 1 + data[place]
        place += 1
    return place


def _colours(flags: bytes) -> int:
    """Bytes of a GIF's colour table."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _webp_end(data: bytes) -> int:
    size = int.from_bytes(data[4:8], "little")
    return 8 + size + size % 2
