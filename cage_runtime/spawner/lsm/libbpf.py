# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is needed of libbpf.so.1, each function once; OSError says what it was about.

Law of this room: no decision is taken here.  The library is the distribution's and is loaded when it is first used, so
that a host without it can say so.  Works with the versions 1.1 (Debian 12) and 1.5 (Debian 13).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

LIBRARY = "libbpf.so.1"
NOEXIST = 1
"""BPF_NOEXIST: update what is not there yet alone."""

_POINTER, _INT, _TEXT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
_SAMPLE = ctypes.CFUNCTYPE(_INT, _POINTER, _POINTER, _SIZE)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    # name: (result, arguments...)
    "libbpf_set_print": (_POINTER, _POINTER),
    "bpf_object__open_file": (_POINTER, _TEXT, _POINTER),
    "bpf_object__load": (_INT, _POINTER),
    "bpf_object__close": (None, _POINTER),
    "bpf_object__next_program": (_POINTER, _POINTER, _POINTER),
    "bpf_object__next_map": (_POINTER, _POINTER, _POINTER),
    "bpf_program__section_name": (_TEXT, _POINTER),
    "bpf_program__fd": (_INT, _POINTER),
    "bpf_program__set_autoload": (_INT, _POINTER, ctypes.c_bool),
    "bpf_program__attach_lsm": (_POINTER, _POINTER),
    "bpf_link__pin": (_INT, _POINTER, _TEXT),
    "bpf_link__destroy": (_INT, _POINTER),
    "bpf_map__name": (_TEXT, _POINTER),
    "bpf_map__set_pin_path": (_INT, _POINTER, _TEXT),
    "bpf_map__max_entries": (ctypes.c_uint32, _POINTER),
    "bpf_map_update_elem": (_INT, _INT, _POINTER, _POINTER, ctypes.c_uint64),
    "bpf_map_lookup_elem": (_INT, _INT, _POINTER, _POINTER),
    "bpf_map_delete_elem": (_INT, _INT, _POINTER),
    "bpf_map_get_next_key": (_INT, _INT, _POINTER, _POINTER),
    "bpf_map_lookup_batch": (_INT, _INT, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    "bpf_obj_get": (_INT, _TEXT),
    "bpf_obj_get_info_by_fd": (_INT, _INT, _POINTER, _POINTER),
    "bpf_prog_get_fd_by_id": (_INT, ctypes.c_uint32),
    "ring_buffer__new": (_POINTER, _INT, _SAMPLE, _POINTER, _POINTER),
    "ring_buffer__consume": (_INT, _POINTER),
    "ring_buffer__epoll_fd": (_INT, _POINTER),
    "ring_buffer__free": (None, _POINTER),
}


@cache
def _library() -> ctypes.CDLL:
    """OSError where there is none."""
    library = ctypes.CDLL(LIBRARY, use_errno=True)
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.libbpf_set_print(None)
    return library


def available() -> None:
    """OSError where the library is not there."""
    _library()


def _number(result: int, subject: str) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), subject)
    return result


def _pointer(result: int | None, subject: str) -> int:
    if not result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
    return result


# --- objects and what is in them ----------------------------------------------------------------------------------
class Object:
    """An object file that is open; `close` ends what has not been pinned of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._object = _pointer(_library().bpf_object__open_file(os.fsencode(path), None), str(path))

    def close(self) -> None:
        _library().bpf_object__close(self._object)

    def programs(self) -> Iterator[tuple[str, int]]:
        """Each program's hook, and the program."""
        program = _library().bpf_object__next_program(self._object, None)
        while program:
            yield _library().bpf_program__section_name(program).decode().removeprefix("lsm/"), program
            program = _library().bpf_object__next_program(self._object, program)

    def maps(self) -> Iterator[tuple[str, int]]:
        map_ = _library().bpf_object__next_map(self._object, None)
        while map_:
            yield _library().bpf_map__name(map_).decode(), map_
            map_ = _library().bpf_object__next_map(self._object, map_)

    def load(self) -> None:
        _number(_library().bpf_object__load(self._object), str(self._path))


def leave_out(program: int, hook: str) -> None:
    _number(_library().bpf_program__set_autoload(program, False), hook)


def descriptor_of(program: int, hook: str) -> int:
    """Of a loaded program; it is the object's."""
    return _number(_library().bpf_program__fd(program), hook)


def attach(program: int, hook: str, pin: Path) -> None:
    """For as long as the pin is there."""
    link = _pointer(_library().bpf_program__attach_lsm(program), hook)
    try:
        _number(_library().bpf_link__pin(link, os.fsencode(pin)), str(pin))
    finally:
        _library().bpf_link__destroy(link)


def pin_at(map_: int, name: str, pin: Path) -> None:
    """When the object is loaded the map is the one that is pinned there, or a new one is and is pinned there."""
    _number(_library().bpf_map__set_pin_path(map_, os.fsencode(pin)), name)


def pinned(pin: Path) -> int:
    """A descriptor of what is pinned."""
    descriptor = _number(_library().bpf_obj_get(os.fsencode(pin)), str(pin))
    os.set_inheritable(descriptor, False)
    return descriptor


# --- facts --------------------------------------------------------------------------------------------------------
class _ProgramInfo(ctypes.Structure):
    """The beginning of struct bpf_prog_info."""

    _fields_ = [("type", ctypes.c_uint32), ("id", ctypes.c_uint32), ("tag", ctypes.c_uint64)]


class _LinkInfo(ctypes.Structure):
    """The beginning of struct bpf_link_info."""

    _fields_ = [("type", ctypes.c_uint32), ("id", ctypes.c_uint32), ("program", ctypes.c_uint32)]


def _info(descriptor: int, info: ctypes.Structure) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _number(_library().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size)), "information")


def tag_of_program(descriptor: int) -> int:
    """The kernel's digest of a program's instructions."""
    info = _ProgramInfo()
    _info(descriptor, info)
    return int(info.tag)


def tag_of_link(descriptor: int) -> int:
    """Of the program that is attached."""
    info = _LinkInfo()
    _info(descriptor, info)
    program = _number(_library().bpf_prog_get_fd_by_id(info.program), f"program {info.program}")
    try:
        return tag_of_program(program)
    finally:
        os.close(program)


# --- maps ---------------------------------------------------------------------------------------------------------
def update(map_: int, key: bytes, value: bytes, flags: int = 0) -> None:
    _number(_library().bpf_map_update_elem(map_, key, value, flags), "map")


def lookup(map_: int, key: bytes, size: int) -> bytes | None:
    """A value of `size` bytes; None where there is none."""
    value = ctypes.create_string_buffer(size)
    result = _library().bpf_map_lookup_elem(map_, key, value)
    if result == -2:  # ENOENT
        return None
    _number(result, "map")
    return value.raw


def delete(map_: int, key: bytes) -> None:
    _number(_library().bpf_map_delete_elem(map_, key), "map")


def keys(map_: int, size: int) -> Iterator[bytes]:
    """FileNotFoundError ends it; who deletes keys meanwhile may see one again."""
    key: bytes | None = None
    while True:
        following = ctypes.create_string_buffer(size)
        result = _library().bpf_map_get_next_key(map_, key, following)
        if result == -2:  # ENOENT
            return
        _number(result, "map")
        key = following.raw
        yield key


def lookup_all(map_: int, size: int, entries: int) -> list[bytes]:
    """Every value of an array map, in one call."""
    keys_, values = ctypes.create_string_buffer(4 * entries), ctypes.create_string_buffer(size * entries)
    batch, count = ctypes.c_uint32(), ctypes.c_uint32(entries)
    result = _library().bpf_map_lookup_batch(map_, None, ctypes.byref(batch), keys_, values, ctypes.byref(count), None)
    if result != -2:  # ENOENT: there are no more, as there are none beyond all
        _number(result, "map")
    every = values.raw
    return [every[start:start + size] for start in range(0, count.value * size, size)]


# --- ring buffers -------------------------------------------------------------------------------------------------
_MAPPED, _DONTFORK = "anon_inode:bpf-map", 10  # MADV_DONTFORK of linux/mman.h


def _keep_from_children(maps: Path = Path("/proc/self/maps")) -> None:
    """A cage's first process is a child that executes nothing: what all are refused is not to be seen in its memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (_POINTER, _SIZE, _INT)
    for line in maps.read_text(encoding="ascii", errors="replace").splitlines():
        if line.endswith(_MAPPED):
            first, last = (int(address, 16) for address in line.split(" ")[0].split("-"))
            if libc.madvise(first, last - first, _DONTFORK):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), "madvise")


class RingBuffer:
    """Of a ring buffer map, its reader; `take` is given each sample and says whether it wants more."""

    def __init__(self, map_: int, take: Callable[[bytes], bool]) -> None:
        def sample(context: int | None, data: int, size: int) -> int:
            del context
            return 0 if take(ctypes.string_at(data, size)) else -1

        self._sample = _SAMPLE(sample)  # the library calls it for as long as we are
        self._buffer = _pointer(_library().ring_buffer__new(map_, self._sample, None, None), "ring buffer")
        try:
            _keep_from_children()
        except OSError:
            self.close()
            raise

    def descriptor(self) -> int:
        """Readable when there is something; it stays ours."""
        return _number(_library().ring_buffer__epoll_fd(self._buffer), "ring buffer")

    def consume(self) -> None:
        result = _library().ring_buffer__consume(self._buffer)
        if result != -1:  # the word of `sample` that it was enough
            _number(result, "ring buffer")

    def close(self) -> None:
        _library().ring_buffer__free(self._buffer)
