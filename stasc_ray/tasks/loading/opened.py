"""A data file as a stream of bytes, unpacked, after a look at its first bytes: files that are not what their
name says are refused by name. Reads through fsspec; writes nothing.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import IO, Any

COMPRESSION_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_ANNEX = "a git-annex pointer, not the file itself: run `git annex get` in the clone"
_PACKAGE = "an archive: unpack it, and name the file in it"
_OTHERS = {
    b"/annex/objects/": _ANNEX,
    b".git/annex/objects/": _ANNEX,
    b"../.git/annex/objects/": _ANNEX,
    b"7z\xbc\xaf\x27\x1c": f"a 7z file, {_PACKAGE}",
    b"Rar!\x1a\x07": f"a RAR file, {_PACKAGE}",
    b"\x04\x22\x4d\x18": "an lz4 file: unpack it",
    b"SQLite format 3\x00": "an SQLite database: write its table as CSV",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"\xff\xfe\x00\x00": "text in UTF-32: save it as UTF-8",
    b"\x00\x00\xfe\xff": "text in UTF-32: save it as UTF-8",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull` in the clone",
    b"PK\x03\x04": "a ZIP file (or a spreadsheet): unpack it, or save it as CSV",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
    b"<!doctype html": "a web page: take the link of the file itself (on the Hub `resolve`, not `blob`)",
    b"<html": "a web page: take the link of the file itself (on the Hub `resolve`, not `blob`)",
}
_CHUNK_BYTES = 1 << 18
_HEAD_BYTES = 512


@contextlib.contextmanager
def opened(filesystem: Any, path: str, suffix: str, compression: str | None) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked.

    Args:
        filesystem: of fsspec.
        path: on it.
        suffix: what the name says of the contents, such as `.jsonl`.
        compression: what the name says, a value of COMPRESSION_SUFFIXES, or None.

    Raises:
        ValueError: the file is something else, or is damaged; the message starts with its path.
    """
    with filesystem.open(path, "rb") as handle:
        head = handle.read(_HEAD_BYTES)
    _check(path, suffix, compression, head)
    with filesystem.open(path, "rb") as raw:
        if compression is None:
            yield raw
            return
        with _unpacked(raw, compression) as handle:
            try:
                _check(path, suffix, None, handle.peek(_HEAD_BYTES)[:_HEAD_BYTES], inside=compression)
                yield handle
            except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, _Damaged, OSError) as error:
                raise ValueError(f"{path}: the {compression} file is damaged: {error}") from error


def _check(path: str, suffix: str, compression: str | None, head: bytes, inside: str = "") -> None:
    """Refuse a file by its first bytes; with `inside` those are what a file of that compression holds."""
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    ending = next((end for end, name in COMPRESSION_SUFFIXES.items() if name == found), "")
    within = f" in the {inside} file" if inside else ""
    what = _other(head)
    if what:
        raise ValueError(f"{path}: expected a {suffix} file{within}, found {what}")
    if inside and found:
        raise ValueError(f"{path}: is compressed twice ({found} in {inside}): unpack it once")
    if compression and found is None and head:
        raise ValueError(
            f"{path}: expected a {compression} file, as its name says, found that it is none (it begins with "
            f"{head[:12]!r}): leave the last part of its name out if it is plain text"
        )
    if compression and not head:
        raise ValueError(f"{path}: expected a {compression} file, found an empty one")
    if found != compression:
        raise ValueError(f"{path}: is compressed ({found}): name it {suffix}{ending}")
    parquet, named = head.startswith(b"PAR"), suffix in (".parquet", ".pq")
    if parquet and not named:
        raise ValueError(f"{path}: expected a {suffix} file, found a Parquet file: name it .parquet")
    if named and not parquet:
        raise ValueError(
            f"{path}: expected a Parquet file, found one that begins with {head[:12]!r}: give it the ending "
            "of what it is (.jsonl, .json, .csv or .tsv), or get it again if it is damaged"
        )


def _other(head: bytes) -> str | None:
    """What a file is that can't be read, by its first bytes; None if it may be."""
    if head[257:262] == b"ustar":
        return f"a tar file, {_PACKAGE}"
    begin = head.lower()
    return next((what for magic, what in _OTHERS.items() if begin.startswith(magic.lower())), None)


def _unpacked(raw: Any, compression: str) -> Any:
    if compression == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _CHUNK_BYTES)  # pyright: ignore[reportArgumentType]
    if compression == "bzip2":
        return bz2.BZ2File(raw)
    if compression == "xz":
        return lzma.LZMAFile(raw)
    return io.BufferedReader(_Zstandard(raw), _CHUNK_BYTES)


class _Damaged(Exception):
    """What zstandard found."""


class _Zstandard(io.RawIOBase):
    """Unpacks all frames of a zstandard file; unlike zstandard's reader it notices a cut end."""

    def __init__(self, raw: Any) -> None:
        import zstandard

        self._raw, self._pending, self._begun = raw, b"", False
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame, self._error = self._new(), zstandard.ZstdError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = self._new(), False
            packed = packed or self._raw.read(_CHUNK_BYTES)
            if not packed:
                if self._begun:
                    raise EOFError("it ends before its last frame does")
                return 0
            try:
                self._pending, self._begun = self._frame.decompress(packed), True
            except self._error as error:
                raise _Damaged(str(error)) from error
        size = min(len(buffer), len(self._pending))
        buffer[:size], self._pending = self._pending[:size], self._pending[size:]
        return size
