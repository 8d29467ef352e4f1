"""Check the pickles in a `.bin` file before torch reads them.

The check finds content that weights never contain, and content that would take forever to read. The reader of weights
in torch runs no code from a file, but a few bytes can still keep it busy for years. Examples are parts that are
compressed a thousandfold, and the hash of a tuple that contains a second tuple twice, which contains a third tuple
twice, and so on.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

_MOST_BYTES = 4 << 20  # of names and shapes; the numbers lie in separate parts, or after the pickles
_LEGACY_PICKLES = 5  # magic number, version, system, tensors, keys; then come the numbers


def require_harmless(file: Path) -> bool:
    """Check the pickles in a `.bin` file, and return whether the file is an archive, whose tensors can be mapped.

    Raises:
        ValueError: the file has content that torch.save does not write.
    """
    if not zipfile.is_zipfile(file):
        with file.open("rb") as opened:
            for _ in range(_LEGACY_PICKLES):
                _look_through(opened)
        return False
    with zipfile.ZipFile(file) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its part {part.filename[:80]} is compressed")
            if part.filename.endswith(".pkl"):
                part.CRC = None  # type: ignore[assignment]  # torch may leave it out
                with archive.open(part) as opened:
                    _look_through(opened)
    return True


def _look_through(opened: IO[bytes]) -> None:
    tuples: set[Any] = set()  # numbers of memoized objects
    before, remembered, start = "", 0, opened.tell()
    for code, argument, _ in pickletools.genops(opened):
        if opened.tell() - start > _MOST_BYTES:
            raise ValueError("its list of tensors is too long")
        if "PUT" in code.name or code.name == "MEMOIZE":
            number = remembered if code.name == "MEMOIZE" else argument
            remembered += 1
            if "TUPLE" in before:
                tuples.add(number)
            continue
        if code.name == "DUP" or ("GET" in code.name and argument in tuples):
            raise ValueError("it repeats a part of itself")
        before = code.name
