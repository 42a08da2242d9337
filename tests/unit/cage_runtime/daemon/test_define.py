# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a request to a definition, and to what the host can enforce of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cage_runtime.config import Definition, Limits, Paths, Session
from cage_runtime.daemon.define import (
    CreateOptions,
    birth_limits,
    check_session,
    compose,
    enforceable,
    home_bounds,
)
from cage_runtime.errors import CageError, DefinitionError, HostUnsupported, UsageError
from cage_runtime.model import DEFAULT_TASKS

ALL = frozenset({"memory", "cpu", "pids", "io"})
NONE: frozenset[str] = frozenset()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    for name in ("shipped", "administrator"):
        (tmp_path / name / "templates.d").mkdir(parents=True)
    return Paths(shipped=str(tmp_path / "shipped"), administrator=str(tmp_path / "administrator"))


def template(paths: Paths, name: str, text: str) -> None:
    Path(paths.shipped, "templates.d", f"{name}.toml").write_text(text)


def test_nothing_asked_gives_the_defaults(paths: Paths) -> None:
    assert compose(CreateOptions(), paths) == Definition()


def test_options_go_on_top_of_the_template(paths: Paths) -> None:
    template(paths, "desk", 'level = "secret"\n[limits]\ntasks = 100\nmemory = "1G"\n')
    made = compose(CreateOptions(template="desk", level="internal", memory="2G", ephemeral=True), paths)
    assert (made.level, made.limits.memory, made.limits.tasks, made.session.ephemeral) == ("internal", "2G", 100, True)


def test_the_default_template_is_used_where_there_is_one(paths: Paths) -> None:
    template(paths, "default", 'description = "as we do it here"\n')
    assert compose(CreateOptions(), paths).description == "as we do it here"


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        (CreateOptions(template="nosuch"), UsageError, 'there is no template "nosuch"'),
        (CreateOptions(template="../x"), UsageError, 'there is no template "../x"'),
        (CreateOptions(template="a", definition=""), UsageError, "not from both"),
        (CreateOptions(memory="lots"), UsageError, "memory"),
        (CreateOptions(memory="0"), UsageError, "memory"),
        (CreateOptions(cpus=0.0), UsageError, "cpus"),
        (CreateOptions(tasks=1), UsageError, "tasks"),
        (CreateOptions(network="nat"), UsageError, 'only "none" is'),
        (CreateOptions(level="IN TERNAL"), UsageError, "level"),
        (CreateOptions(definition='colour = "red"', definition_file="mine.toml"), DefinitionError, "mine.toml:1: "),
    ],
)
def test_what_is_wrong_is_said(paths: Paths, options: CreateOptions, kind: type[CageError], said: str) -> None:
    with pytest.raises(kind) as caught:
        compose(options, paths)
    assert said in caught.value.sentence
    assert "\n" not in caught.value.sentence


def test_a_host_with_controllers_enforces_what_is_named() -> None:
    limits, unenforced = enforceable(Limits(memory="1G", cpus=2.0, tasks=100), ALL)
    assert (limits.memory, limits.cpus, limits.tasks, unenforced) == (1 << 30, 2.0, 100, ())


def test_a_bound_on_tasks_is_there_unasked_where_it_can_be() -> None:
    assert enforceable(Limits(), ALL)[0].tasks == DEFAULT_TASKS
    assert enforceable(Limits(), NONE) == (type(enforceable(Limits(), ALL)[0])(), ())


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(memory="1G"), "memory: this host's cgroup v2 has no memory controller"),
        (Limits(memory_guarantee="1G"), "memory-guarantee: "),
        (Limits(cpus=1.0), "cpus: this host's cgroup v2 has no cpu controller"),
        (Limits(cpu_weight=10), "cpu-weight: "),
        (Limits(tasks=100), "tasks: this host's cgroup v2 has no pids controller"),
        (Limits(io_weight=10), "io-weight: "),
        (Limits(disk="1G"), "disk: "),
    ],
)
def test_a_limit_that_cannot_be_enforced_is_refused_or_told(limits: Limits, said: str) -> None:
    with pytest.raises(HostUnsupported) as caught:
        enforceable(limits, NONE)
    assert caught.value.sentence.startswith(said)
    assert 'on-missing = "warn"' in caught.value.sentence
    warned = Limits(**{field: getattr(limits, field) for field in limits.__struct_fields__ if field != "on_missing"},
                    on_missing="warn")
    enforced, unenforced = enforceable(warned, NONE)
    assert [sentence.startswith(said) for sentence in unenforced] == [True]
    assert enforced == type(enforced)()


def test_the_home_in_memory_of_an_ephemeral_cage_is_its_disk_limit() -> None:
    definition = Definition(limits=Limits(disk="64M", disk_files=100), session=Session(ephemeral=True))
    assert birth_limits(definition, NONE)[1] == ()
    assert home_bounds(definition) == (64 << 20, 100)
    with pytest.raises(HostUnsupported):
        birth_limits(Definition(limits=Limits(disk="64M")), ALL)


BOTH = "an ephemeral cage is gone when the host starts again and cannot be started with it; leave out one of ephemeral "
BOTH += "and autostart"


@pytest.mark.parametrize(("options", "sentence"), [
    (CreateOptions(ephemeral=True, autostart=True), BOTH),
    (CreateOptions(definition="[session]\nephemeral = true\n\nautostart = true\n", definition_file="x.toml"),
     f"x.toml:4: {BOTH}"),
    (CreateOptions(definition="[session]\nautostart = true\n", ephemeral=True), f"cage.toml:2: {BOTH}"),
    (CreateOptions(definition="[session]\nephemeral = true\n", autostart=True), BOTH),
])
def test_what_is_gone_cannot_be_started_with_the_host(paths: Paths, options: CreateOptions, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_session(compose(options, paths), options)
    assert refused.value.sentence == sentence


def test_an_option_takes_back_what_a_file_says(paths: Paths) -> None:
    options = CreateOptions(definition="[session]\nautostart = true\n", ephemeral=True, autostart=False)
    made = compose(options, paths)
    check_session(made, options)
    assert (made.session.ephemeral, made.session.autostart) == (True, False)
