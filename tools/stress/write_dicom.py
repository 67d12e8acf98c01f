"""Write DICOM files byte by byte, so that every element of them can be damaged."""

import struct


def dicom_file(
    pixels: bytes, size: tuple[int, int], bits: int, mode: str, windows: tuple[int, int] | None, syntax: str = ""
) -> bytes:
    """A DICOM file in explicit little endian; with ``syntax`` the pixels are one compressed
    frame."""

    def element(group: int, number: int, kind: str, value: bytes) -> bytes:
        value += (b"\0" if kind in ("UI", "OB") else b" ") * (len(value) % 2)
        head = struct.pack("<HH2s", group, number, kind.encode("ascii"))
        if kind in ("OB", "OW"):
            return head + struct.pack("<HI", 0, len(value)) + value
        return head + struct.pack("<H", len(value)) + value

    def number(group: int, element_number: int, value: int) -> bytes:
        return element(group, element_number, "US", struct.pack("<H", value))

    colour = mode not in ("MONOCHROME1", "MONOCHROME2")
    meta = element(2, 1, "OB", b"\0\1") + element(2, 2, "UI", b"1.2.840.10008.5.1.4.1.1.6.1")
    meta += element(2, 3, "UI", b"1.2.3.4") + element(2, 0x10, "UI", (syntax or "1.2.840.10008.1.2.1").encode("ascii"))
    body = element(8, 0x16, "UI", b"1.2.840.10008.5.1.4.1.1.6.1") + element(8, 0x60, "CS", b"US")
    body += element(0x10, 0x20, "LO", b"P 7") + number(0x28, 2, 3 if colour else 1)
    body += element(0x28, 4, "CS", mode.encode("ascii")) + (number(0x28, 6, 0) if colour else b"")
    body += element(0x28, 8, "IS", b"1") + number(0x28, 0x10, size[0]) + number(0x28, 0x11, size[1])
    body += (
        number(0x28, 0x100, bits) + number(0x28, 0x101, bits) + number(0x28, 0x102, bits - 1) + number(0x28, 0x103, 0)
    )
    body += b"" if colour else number(0x28, 0x120, 3)
    if windows:
        body += element(0x28, 0x1050, "DS", str(windows[0]).encode()) + element(
            0x28, 0x1051, "DS", str(windows[1]).encode()
        )
        body += element(0x28, 0x1052, "DS", b"0") + element(0x28, 0x1053, "DS", b"1")
    if syntax:
        pixels += b"\0" * (len(pixels) % 2)
        items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, len(pixels)) + pixels
        end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        body += struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF) + items + end
    else:
        body += element(0x7FE0, 0x10, "OW" if bits == 16 else "OB", pixels)
    length = element(2, 0, "UL", struct.pack("<I", len(meta)))
    return bytes(128) + b"DICM" + length + meta + body
