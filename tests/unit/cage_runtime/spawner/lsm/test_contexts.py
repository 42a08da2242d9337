# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the programs and their loader must have alike, and what the loader says of a host that will not do.

That they enforce is shown on kernels that run them: tests/kernels/lsm.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from cage_runtime.errors import HostUnsupported
from cage_runtime.spawner.lsm import contexts, libbpf, operations, programs
from cage_runtime.spawner.lsm.contexts import Context
from cage_runtime.spawner.lsm.operations import Operation, event

SOURCE = Path(programs.OBJECT).parent
TEXT = "".join((SOURCE / name).read_text(encoding="utf-8") for name in (
    "context.h", "task.h", "socket.h", "object.h", "file.h", "execute.h", "ceiling.h"))


def constants() -> dict[str, str]:
    """Every `NAME = VALUE` of the programs' enums."""
    return dict(re.findall(r"\b([A-Z_]+) = ([^,;}]+?)(?= ?[,}])", TEXT))


class TestAlike:
    def test_operations(self) -> None:
        (body,) = re.findall(r"enum operation \{(.*?)OPERATIONS = 32", TEXT, re.DOTALL)
        names = [name.strip().lower().replace("_", "-") for name in body.split(",") if name.strip()]
        assert names == list(Operation)
        assert len(names) <= 32

    def test_numbers(self) -> None:
        there = constants()
        assert [there[name] for name in ("CORE", "WATCH", "ANSWERS", "FIRST", "CONTEXTS")] == [
            str(number) for number in (contexts.CORE, contexts.WATCH, contexts.ANSWERS, contexts.FIRST,
                                       contexts.PLACES)]
        assert [there[name] for name in ("EXECUTE_WRITABLE", "PRIVATE", "WATCHES")] == [
            str(number) for number in (contexts.EXECUTE_WRITABLE, contexts.PRIVATE, contexts.WATCHES)]

    def test_records(self) -> None:
        """struct context, by the sizes of its members: a place of it is read and written whole."""
        (body,) = re.findall(r"struct context \{(.*?)\n\};", TEXT, re.DOTALL)
        members = re.findall(r"^\s+(u32|u64) (\w+)(?:\[(\w+)\])?;", body, re.MULTILINE)
        code = "=" + "".join(f"{ {'OPERATIONS': '32', '': '1'}.get(count, count)}{'I' if kind == 'u32' else 'Q'}"
                             for kind, _, count in members)
        assert struct.calcsize(code) == len(Context().record(16))
        filled = Context(namespace_capabilities=frozenset({0, 40}), families=frozenset({1, 16}), user_namespace_depth=7,
                         execute_writable=True, private=True, watch=True)
        values = dict(zip([name for _, name, count in members if not count],
                          struct.unpack_from(code, filled.record(17)), strict=False))
        assert values["xid"], values["flags"] == (17, 7)
        assert (values["namespace_capabilities"], values["families"]) == (1 << 40 | 1, 1 << 16 | 2)
        assert values["user_namespace_depth"] == 7


class TestObject:
    def test_it_has_one_program_for_each_hook_of_the_source(self) -> None:
        object_ = libbpf.Object(programs.OBJECT)
        hooks = [hook for hook, _ in object_.programs()]
        maps = {name for name, _ in object_.maps()}
        object_.close()
        assert len(hooks) == len(set(hooks)) > 80
        assert {"task_alloc", "cred_prepare", "ptrace_access_check", "file_open", "shm_shmctl", "bpf"} <= set(hooks)
        assert set(hooks) >= programs.OPTIONAL
        assert maps == set(re.findall(r"\} (\w+) SEC\(\"\.maps\"\)", TEXT))

    def test_what_costs_every_stat_and_read_is_left_alone(self) -> None:
        object_ = libbpf.Object(programs.OBJECT)
        hooks = {hook for hook, _ in object_.programs()}
        object_.close()
        assert not hooks & {"inode_permission", "inode_getattr", "file_permission"}


class TestHost:
    @pytest.mark.parametrize(("there", "sentence"), [
        (None, "mount -t securityfs"),
        ("lockdown,capability,landlock", r"lsm=lockdown,capability,landlock,bpf$"),
        ("lockdown,bpfilter", r"lsm=lockdown,bpfilter,bpf$"),
    ])
    def test_what_it_lacks_is_said_with_what_to_do(self, tmp_path: Path, there: str | None, sentence: str) -> None:
        file = tmp_path / "lsm"
        if there is not None:
            file.write_text(there + "\n", encoding="ascii")
        with pytest.raises(HostUnsupported, match=sentence):
            programs.check_host(file)

    def test_a_library_that_is_not_there_is_a_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "lsm").write_text("capability,bpf", encoding="ascii")

        def missing() -> None:
            raise OSError("libbpf.so.1: cannot open shared object file")

        monkeypatch.setattr(libbpf, "available", missing)
        with pytest.raises(HostUnsupported, match="install the package libbpf1"):
            programs.check_host(tmp_path / "lsm")

    def test_pins_need_a_file_system_of_their_own_kind(self, tmp_path: Path) -> None:
        (tmp_path / "mounts").write_text("30 1 0:30 / /sys rw - sysfs none rw\n"
                                         "31 30 0:31 / /sys/fs/bpf rw shared:9 - bpf bpf rw\n", encoding="ascii")
        programs.check_pins(contexts.PINS, tmp_path / "mounts")
        with pytest.raises(HostUnsupported, match=r"mount it: mount -t bpf bpf /sys$"):
            programs.check_pins(Path("/sys/ours"), tmp_path / "mounts")
        with pytest.raises(HostUnsupported, match=r"mount it: mount -t bpf bpf /run$"):
            programs.check_pins(Path("/run/ours"), tmp_path / "mounts")

    def test_hooks_are_found_among_the_types_of_a_kernel(self, tmp_path: Path) -> None:
        (tmp_path / "types").write_bytes(b"\0int\0bpf_lsm_file_open\0bpf_lsm_bpf\0xbpf_lsm_no\0bpf_lsm_cut")
        assert programs.kernel_hooks(tmp_path / "types") == {"file_open", "bpf"}

    def test_a_hook_that_is_needed_and_missing_is_named(self) -> None:
        with pytest.raises(HostUnsupported, match=r"need: userns_create;"):
            programs.wanted(("file_open", "userns_create", "uring_allowed"), frozenset({"file_open"}))
        assert programs.wanted(("file_open", "uring_allowed"), frozenset({"file_open", "other"})) == ("file_open",)


class TestEvents:
    RAW = struct.pack("=QQIIII16s", 5, 9, 17, 18, list(Operation).index(Operation.KILL), 4711, b"sleep\x1b[2J\xff\0x")

    def test_one(self) -> None:
        got = event(self.RAW)
        assert (got.nanoseconds, got.detail, got.xid, got.object, got.operation, got.pid) == (
            5, 9, 17, 18, Operation.KILL, 4711)
        assert got.untrusted_command == "sleep\x1b[2J\\xff"

    @pytest.mark.parametrize("raw", [b"", RAW[:-1], RAW + b"\0", struct.pack("=QQIIII16s", 0, 0, 0, 0, 99, 0, b"")])
    def test_none(self, raw: bytes) -> None:
        with pytest.raises(ValueError, match=r"event|operation"):
            event(raw)

    def test_size(self) -> None:
        assert operations.EVENT_BYTES == 48
