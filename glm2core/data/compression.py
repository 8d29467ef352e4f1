"""Reads files compressed with gzip, bzip2, xz or zstandard as streams.

The compression is detected from a file's first bytes, not from its name.
"""

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

_MAGIC = {"gzip": b"\x1f\x8b", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd"}
_BZIP2 = b"BZh"
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")
MAGIC_LENGTH = 10
_XZ_MEMORY = 1 << 27  # bytes; the largest preset needs 65 MiB, but a file may ask for gigabytes
_CHUNK = 1 << 16


def compression_of(head: bytes) -> str | None:
    """The compression (gzip, bzip2, xz or zstd) of a file that begins with `head`; None for an uncompressed file."""
    if head.startswith(_BZIP2) and head[4:MAGIC_LENGTH] in _BZIP2_BLOCKS:
        return "bzip2"
    return next((name for name, magic in _MAGIC.items() if head.startswith(magic)), None)


def open_binary(path: Path, compression: str | None) -> BinaryIO:
    """Open a file to read its decompressed bytes; the file is decompressed in chunks, so this takes little memory.

    If the file is damaged, reading it raises EOFError, OSError, zlib.error or lzma.LZMAError.
    """
    match compression:
        case "gzip":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case "bzip2":
            return cast(BinaryIO, bz2.open(path, "rb"))
        case "xz":
            return io.BufferedReader(_XzStream(path))
        case "zstd":
            return cast(BinaryIO, pa.input_stream(str(path), compression="zstd"))
        case _:
            return path.open("rb")


class _XzStream(io.RawIOBase):
    """Reads an xz file under a memory limit; the standard library's reader has no such limit."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        while True:
            packed = b""
            if self._decoder.eof:
                packed = self._decoder.unused_data.lstrip(b"\0")  # streams may be padded
                while not packed:
                    if not (more := self._file.read(_CHUNK)):
                        return 0
                    packed = more.lstrip(b"\0")
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
            elif self._decoder.needs_input:
                packed = self._file.read(_CHUNK)
                if not packed:
                    raise EOFError("the stream ends too early")
            if made := self._decoder.decompress(packed, max_length=len(buffer)):
                buffer[: len(made)] = made
                return len(made)

    def close(self) -> None:
        self._file.close()
        super().close()
