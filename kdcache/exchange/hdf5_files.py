"""Arrays in an HDF5 file that may come from anywhere: one data set a clip, or one whose rows another data set names.

Only plain links are followed, and only numbers are read: no soft and external links, external storage, virtual data
sets, objects or references. Of filters, those that HDF5 and h5py bring (gzip, shuffle, lzf …) and zstd are used.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdcache.errors import ClipError, OptionError, SourceError, unknown
from kdcache.exchange.arrays import ArrayHeader
from kdcache.exchange.hdf5_text import read_texts
from kdcache.exchange.npy_files import flat_name
from kdcache.files import opened
from kdcache.store.hdf5_guard import MALFORMED, ZSTD, all_there, filters_of, leads_out

_FILTERS = {1, 2, 3, 4, 5, 6, 32000, ZSTD}  # gzip, shuffle, Fletcher-32, szip, n-bit, scale-offset; lzf
_ADVICE = "write it again with h5py's create_dataset"


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open a file for reading; ``SourceError`` if it is not HDF5, ``KdcacheError`` if it is no plain file."""
    import hdf5plugin  # noqa: F401  (registers the zstd filter)

    try:
        opened(path).close()  # of a pipe HDF5 waits for ever
        file = h5py.File(path, "r", locking=False)
    except MALFORMED as error:
        reason = " ".join(str(error).split())[:120]
        raise SourceError(f"{path}: cannot be read as HDF5 ({reason}); name a file that h5py opens.") from error
    with file:
        yield file


class Hdf5Arrays:
    """A file with one data set a clip, named by a path such as ``class/clip``."""

    source = "hdf5"
    one, several = "data set", "data sets"

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file = path, file

    def __str__(self) -> str:
        return str(self.path)

    def find(self, names: Sequence[str]) -> str:
        """The path of the first data set there is for these names: ``class/clip``, or ``class%2Fclip``.

        Raises:
            ClipError: there is none, or it may not be read.
        """
        for name in names:
            for path in dict.fromkeys((name, flat_name(name).removesuffix(".npy"))):
                if (dataset := _dataset_at(self.path, self._file, path)) is not None:
                    if problem := _unreadable(dataset):
                        raise ClipError(f"{self.shown(path)} {problem}.")
                    return path
        raise ClipError(f"{self.path} has no data set {names[0]!r}; put it there, or leave the clip out.")

    def shown(self, where: str) -> str:
        """The data set, for messages."""
        return f"data set {where!r} of {self.path}"

    def header(self, where: str) -> ArrayHeader:
        """What a data set holds."""
        dataset = self._file[where]  # ``find`` has looked at each link on the way
        return ArrayHeader(dataset.dtype, dataset.shape)

    def read(self, where: str, rows: slice = slice(None)) -> NDArray[Any]:
        """The array, or some of its rows; ``ClipError`` if its bytes are damaged."""
        dataset = self._file[where]
        return _read(self.shown(where), dataset, rows if dataset.ndim else ())

    def others(self, used: Collection[str]) -> Iterator[str]:
        """Data sets of the file beside those used, under whatever name."""
        known = {_address(self._file[where]) for where in used}
        return (name for name, address in _datasets(self.path, self._file).items() if address not in known)


class Hdf5Rows:
    """One array of a file whose rows are the clips', and the data set that names them.

    Args:
        ids: path of the names, text or whole numbers, [n].
        data: path of the array, [n, …]; default: the one other data set with n rows.

    Raises:
        OptionError: no such data set, or several that could be the array.
        SourceError: names and array that do not fit each other, or may not be read.
    """

    source = "hdf5"
    one, several = "row", "rows"

    def __init__(self, path: Path, file: Any, ids: str, data: str | None) -> None:
        self.path = path
        names = self._dataset_at(file, ids)
        self._row = {name: i for i, name in enumerate(_texts(f"data set {ids!r} of {path}", names))}
        count = len(self._row)
        if data is None:
            others = [n for n, address in _datasets(path, file).items() if address != _address(names)]
            fitting = [n for n in others if _is_array(file[n], count)]
            if len(fitting) != 1:
                found = ", ".join(fitting) or "none"
                raise OptionError(f"{path}: arrays with as many rows as {ids!r}: {found}; name one with --data.")
            (data,) = fitting
        self.data, self._dataset = data, self._dataset_at(file, data)
        problem = _unreadable(self._dataset)
        if problem is None and not _is_array(self._dataset, count):
            problem = f"has shape {list(self._dataset.shape)}, and {ids!r} names {count} rows; they must be as many"
        if problem:
            raise SourceError(f"data set {data!r} of {path} {problem}.")

    def __str__(self) -> str:
        return f"data set {self.data!r} of {self.path}"

    def _dataset_at(self, file: Any, name: str) -> Any:
        if (found := _dataset_at(self.path, file, name)) is None:
            raise unknown(f"data set of {self.path}", name, list(_datasets(self.path, file)))
        return found

    def find(self, names: Sequence[str]) -> int:
        """The row of the first name there is; ``ClipError`` if there is none."""
        for name in names:
            if name in self._row:
                return self._row[name]
        raise ClipError(f"{self.path} names no row {names[0]!r}; put it there, or leave the clip out.")

    def shown(self, where: int) -> str:
        """The row, for messages."""
        return f"row {where} of {self}"

    def header(self, where: int) -> ArrayHeader:
        """What each row holds."""
        return ArrayHeader(self._dataset.dtype, self._dataset.shape[1:])

    def read(self, where: int, rows: slice = slice(None)) -> NDArray[Any]:
        """A clip's row, or some rows of that; ``ClipError`` if its bytes are damaged."""
        return _read(self.shown(where), self._dataset, (where, rows) if self._dataset.ndim > 1 else (where,))

    def others(self, used: Collection[int]) -> Iterator[str]:
        """Names of rows beside those used."""
        return (repr(name) for name, row in self._row.items() if row not in used)


def _dataset_at(file_path: Path, file: Any, path: str) -> Any:
    """The data set at a path, or ``None``; ``ClipError`` where a link stands in the way."""
    found = file
    for part in path.split("/"):
        if part in ("", ".") or not isinstance(found, h5py.Group) or "\0" in part:
            return None
        try:
            link = found.get(part, getlink=True)
            found = found[part] if type(link) is h5py.HardLink else None
        except MALFORMED as error:
            raise ClipError(f"data set {path!r} of {file_path} cannot be read ({error}); {_ADVICE}.") from error
        if found is None and link is not None:
            raise ClipError(
                f"data set {path!r} of {file_path} is behind a link, which could lead out of the file; copy it in."
            )
    return found if isinstance(found, h5py.Dataset) else None


def _datasets(path: Path, file: Any) -> dict[str, int]:
    """All data sets that plain links lead to, each once, by one of its names, and where they lie."""
    found: dict[str, int] = {}
    try:
        file.visititems(
            lambda name, item: found.update({name: _address(item)}) if isinstance(item, h5py.Dataset) else None
        )
    except MALFORMED as error:
        raise SourceError(f"{path}: its list of data sets cannot be read ({error}); {_ADVICE}.") from error
    return found


def _address(dataset: Any) -> int:
    """Where a data set lies in its file: the same under all its names."""
    return int(h5py.h5o.get_info(dataset.id).addr)


def _is_array(dataset: Any, count: int) -> bool:
    """Whether a data set holds numbers for so many rows."""
    return _unreadable(dataset) is None and bool(dataset.shape) and len(dataset) == count


def _unreadable(dataset: Any) -> str | None:
    """Why a data set must not be read as numbers, with what to do, or ``None``."""
    try:
        dtype = dataset.dtype
        if dtype.kind not in "fiu" or h5py.check_dtype(ref=dtype) is not None:
            return f"holds {dtype}, not numbers; {_ADVICE}"
        return _closed(dataset)
    except MALFORMED as error:
        return f"is damaged ({error}); {_ADVICE}"


def _closed(dataset: Any) -> str | None:
    """Why a data set of whatever type must not be read, or ``None``."""
    if dataset.shape is None:
        return f"is empty; {_ADVICE}"
    if problem := leads_out(dataset):
        return f"{problem}; {_ADVICE}"
    if odd := sorted(set(filters_of(dataset)) - _FILTERS):
        return f"needs HDF5 filter(s) {odd}, which kdcache does not load; write it again with gzip or uncompressed"
    beyond = dataset.chunks is None and dataset.nbytes > os.path.getsize(dataset.file.filename)
    if dataset.dtype.kind != "O" and dataset.size and (beyond or not all_there(dataset)):
        return f"lacks some of its bytes; {_ADVICE}"
    return None


def _texts(shown: str, dataset: Any) -> list[str]:
    """A data set of names: text or whole numbers, all different; ``SourceError`` for any other."""
    try:
        text = h5py.check_string_dtype(dataset.dtype)
        if problem := _closed(dataset):
            raise SourceError(f"{shown} {problem}.")
        if dataset.ndim != 1 or (text is None and dataset.dtype.kind not in "iu"):
            raise SourceError(f"{shown} is {dataset.dtype} {list(dataset.shape)}, not a list of names; name another.")
        if text is not None and text.length is None:
            found = read_texts(Path(dataset.file.filename), dataset)
        else:
            found = [n.decode() if isinstance(n, bytes) else str(n) for n in dataset[()].tolist()]
    except SourceError:
        raise
    except MALFORMED as error:
        raise SourceError(f"{shown} is damaged ({error}); {_ADVICE}.") from error
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        raise SourceError(
            f"{shown} names {len(twice)} rows more than once (such as {twice[0]!r}); each needs one name."
        )
    return found


def _read(shown: str, dataset: Any, selection: Any) -> NDArray[Any]:
    try:
        return np.asarray(dataset[selection])
    except MALFORMED as error:
        raise ClipError(f"{shown} is damaged ({error}); {_ADVICE}.") from error
