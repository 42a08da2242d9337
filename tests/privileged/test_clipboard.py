# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is copied in one cage is pasted in another, where and as often as it may be, and nothing else (M40 to M46)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from cage_runtime.model import CLIP_BYTES_MAX, CLIPS_LENT_BYTES
from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy
from tests.privileged.runtime import Cage, Ended, Runtime
from tests.unit.mediators.clipboard.pictures import SIGNATURE, chunk, chunks, header, png

RULES = """clipboard.Paste * alpha beta allow
clipboard.Paste * beta alpha allow
clipboard.Paste * alpha above allow
clipboard.Paste * * * deny
"""
NOTHING = b"incage: there is nothing that this cage may paste\n"


@pytest.fixture(scope="module", autouse=True)
def rules(runtime: Runtime) -> Iterator[None]:
    with policy(runtime, RULES):
        yield


@pytest.fixture
def alpha(cage: MakeCage) -> Cage:
    return cage("alpha", "--level", "internal", "--ephemeral")


@pytest.fixture
def beta(cage: MakeCage) -> Cage:
    return cage("beta", "--level", "internal", "--ephemeral")


def copy(cage: Cage, content: bytes, *options: str) -> Ended:
    return cage.enter("incage", "copy", *options, input=content)


def paste(cage: Cage) -> Ended:
    return cage.enter("incage", "paste")


def test_what_is_copied_is_pasted_once(runtime: Runtime, alpha: Cage, beta: Cage) -> None:
    assert copy(alpha, "grüß dich\n".encode()).returncode == 0
    ended = paste(beta)
    assert (ended.returncode, ended.stdout.decode(), ended.stderr) == (0, "grüß dich\n", b"")
    noted = runtime.events("transfer")[-1]
    assert (noted["cage"], noted["target"], noted["outcome"], noted["size"]) == ("alpha", "beta", "is pasted", "12")
    again = paste(beta)
    assert (again.returncode, again.stdout, again.stderr) == (126, b"", NOTHING), "M45: consumed"


def test_m45_as_often_as_was_said(alpha: Cage, beta: Cage) -> None:
    assert copy(alpha, b"twice", "--pastes", "2").returncode == 0
    assert [paste(beta).stdout for _ in range(3)] == [b"twice", b"twice", b""]


def test_m45_it_expires(alpha: Cage, beta: Cage) -> None:
    assert copy(alpha, b"brief", "--seconds", "1", "--pastes", "100").returncode == 0
    ended, begun = paste(beta), time.monotonic()
    assert ended.stdout == b"brief"
    beta.sh("sleep 1.1")
    assert paste(beta).stderr == NOTHING
    assert time.monotonic() > begun + 1.0


@pytest.mark.parametrize("how", ["stop", "destroy"])
def test_m45_it_goes_with_its_source(runtime: Runtime, alpha: Cage, beta: Cage, how: str) -> None:
    """Also where a cage of that name comes again: what was offered was another one's (M17)."""
    assert copy(alpha, b"gone").returncode == 0
    runtime.ok(how, "alpha", *(["--yes"] if how == "destroy" else []))
    ended = paste(beta)
    assert (ended.returncode, ended.stderr) == (126, NOTHING)
    if how == "destroy":
        runtime.ok("create", "alpha", "--level", "internal", "--ephemeral")
        assert paste(beta).stderr == NOTHING


def test_the_last_copy_counts_and_nothing_is_left_of_the_one_before(alpha: Cage, beta: Cage) -> None:
    """M42: the smaller clip after the larger."""
    assert copy(alpha, b"a long and secret clip", "--pastes", "2").returncode == 0
    assert copy(alpha, b"short", "--pastes", "2").returncode == 0
    assert paste(beta).stdout == b"short"
    assert copy(beta, b"back").returncode == 0
    assert paste(beta).stderr == NOTHING, "M40: what alpha offered is no more, and this is its own"
    assert paste(alpha).stdout == b"back"


def test_who_may_not_paste_learns_nothing_of_an_offer(cage: MakeCage, alpha: Cage, beta: Cage) -> None:
    other = cage("other", "--level", "internal", "--ephemeral")
    before = paste(other)
    assert copy(alpha, b"not for others").returncode == 0
    after = paste(other)
    assert (before.returncode, before.stdout, before.stderr) == (after.returncode, after.stdout, after.stderr)
    assert after.stderr == NOTHING
    assert paste(beta).stdout == b"not for others", "it is not used up by that"


def test_down_it_does_not_go(cage: MakeCage, alpha: Cage) -> None:
    above = cage("above", "--level", "secret", "--ephemeral")
    assert copy(above, b"secret").returncode == 0
    assert paste(alpha).stderr == NOTHING
    assert copy(alpha, b"up").returncode == 0
    assert paste(above).stdout == b"up"


@pytest.mark.parametrize(("content", "text"), [
    (b"ls\x1b[201~\nrm -rf ~\n", b"ls\nrm -rf ~\n"), (b"\x1b]52;c;aGk=\x07x", b"x"), ("a\u009b201~b".encode(), b"ab"),
    (b"x" * CLIP_BYTES_MAX, b"x" * CLIP_BYTES_MAX),
])
def test_m44_text_is_text(alpha: Cage, beta: Cage, content: bytes, text: bytes) -> None:
    assert copy(alpha, content).returncode == 0
    assert paste(beta).stdout == text


@pytest.mark.parametrize(("content", "options", "status", "why"), [
    (b"x" * (CLIP_BYTES_MAX + 1), (), 1, b"more than 1048576 bytes"), (b"a\0b", (), 1, b"has a NUL"),
    (b"\xff\xfe", (), 1, b"not UTF-8"), (b"", (), 1, b"is empty"), (b"\x1b[A", (), 1, b"nothing in it"),
    (b"x", ("--type", "image/jpeg"), 2, b"text/plain and image/png can"), (b"x", ("--pastes", "101"), 2, b"1 to 100"),
    (b"x", ("--seconds", "3601"), 2, b"1 to 3600"), (b"x", ("--pastes", "0"), 2, b"--pastes"),
])
def test_m44_what_cannot_be_copied_is_not(alpha: Cage, beta: Cage, content: bytes, options: tuple[str, ...],
                                          status: int, why: bytes) -> None:
    assert copy(alpha, b"before").returncode == 0
    ended = copy(alpha, content, *options)
    assert ended.returncode == status, ended.stderr
    assert why in ended.stderr
    assert paste(beta).stdout == b"before"


# --- images ----------------------------------------------------------------------------------------------------------
PNG = ("--type", "image/png")


def test_an_image_is_pasted_with_its_pixels_and_nothing_else(runtime: Runtime, alpha: Cage, beta: Cage) -> None:
    image = png(640, 480, before=chunk(b"tEXt", b"Author\0somebody") + chunk(b"eXIf", b"somewhere"))
    ended = copy(alpha, image + b"PK\3\4", *PNG)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert paste(beta).returncode == 126, "it is no text"
    pasted = beta.enter("incage", "paste", *PNG)
    assert (pasted.returncode, pasted.stderr) == (0, b"")
    assert [kind for kind, _ in chunks(pasted.stdout)][:1] == [b"IHDR"]
    assert {kind for kind, _ in chunks(pasted.stdout)} == {b"IHDR", b"IDAT", b"IEND"}
    noted = runtime.events("transfer")[-1]
    assert (noted["outcome"], noted["size"]) == ("is pasted", str(len(pasted.stdout)))
    again = beta.enter("incage", "paste", *PNG)
    assert (again.returncode, again.stdout, again.stderr) == (126, b"", NOTHING)


@pytest.mark.parametrize(("content", "says"), [
    (SIGNATURE + header(65_535, 65_535) + chunk(b"IDAT") + chunk(b"IEND"), b"the clip is an image of 65535 by 65535"),
    (png(4096, 4096, pixels=bytes(65 << 20)), b"the clip is a PNG with more pixels than its header says"),
    (b"\xff\xd8\xff\xe0 a picture of another kind", b"the clip is no PNG"),
])
def test_m44_what_is_no_image_that_we_take_is_refused(alpha: Cage, beta: Cage, content: bytes, says: bytes) -> None:
    ended = copy(alpha, content, *PNG)
    assert (ended.returncode, ended.stderr.startswith(b"incage: " + says)) == (1, True), ended.stderr
    assert beta.enter("incage", "paste", *PNG).returncode == 126


def test_an_image_is_no_text_for_a_rule_that_lets_text_through(runtime: Runtime, alpha: Cage, beta: Cage) -> None:
    with policy(runtime, "clipboard.Paste * alpha beta allow types=text/plain\n"):
        assert copy(alpha, png(4, 4), *PNG).returncode == 0
        assert beta.enter("incage", "paste", *PNG).stderr == NOTHING
    with policy(runtime, "clipboard.Paste * alpha beta allow types=image/*\n"):
        assert beta.enter("incage", "paste", *PNG).returncode == 0


# --- what was pasted and is kept -------------------------------------------------------------------------------------
HOARD = """
import os, sys
sys.path[:0] = ["/opt/cage-runtime/lib"]
from cage_runtime.cli.client import mediator
peer = mediator("clipboard", "")
descriptors, said = [], ""
try:
    for _ in range(100):
        descriptors.append(peer.call("Paste", "sa{sv}", "image/png", {}, returns="h", timeout=None))
except Exception as error:
    said = str(error)
print(len(descriptors), sum(os.fstat(descriptor).st_size for descriptor in descriptors), said)
try:
    os.open(f"/proc/self/fd/{descriptors[0]}", os.O_RDWR)
    print("written")
except PermissionError:
    print("not written")
"""


def test_a_cage_cannot_fill_the_cores_memory_by_keeping_what_it_pasted(alpha: Cage, beta: Cage) -> None:
    """Each is memory of the core's for as long as somebody has a descriptor of it, or until the core takes it back."""
    noise = b"".join(b"\0" + random.Random(row).randbytes(2047 * 4) for row in range(980))
    assert copy(alpha, png(2047, 980, pixels=noise), *PNG, "--pastes", "100").returncode == 0
    ended = beta.enter("/usr/bin/python3", "-I", "-c", HOARD)
    assert ended.returncode == 0, ended.stderr
    (count, size, *said), written = ended.stdout.decode().splitlines()[0].split(), ended.stdout.split(b"\n")[1]
    assert int(size) <= CLIPS_LENT_BYTES
    assert int(count) == CLIPS_LENT_BYTES // (int(size) // int(count)), "it had as much as it may have"
    assert "has been handed" in " ".join(said)
    assert written == b"not written"
