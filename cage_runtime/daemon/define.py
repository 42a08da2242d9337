# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a request to a definition: template or file, then the options on top, then what the host can enforce."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from cage_runtime.config import (
    Definition,
    Limits,
    Network,
    Paths,
    convert,
    line_of,
    masked_file,
    parse_definition,
    read_text,
)
from cage_runtime.errors import HostUnsupported, InvalidName, UnknownLevel, UsageError
from cage_runtime.model import DEFAULT_EPHEMERAL_BYTES, DEFAULT_TASKS, Levels, check_cage_name, parse_size
from cage_runtime.spawner import spec
from cage_runtime.text import escape

CONTROLLERS = {
    "memory": "memory", "memory_guarantee": "memory", "cpus": "cpu", "cpu_weight": "cpu", "tasks": "pids",
    "io_weight": "io",
}
"""The cgroup v2 controller that each limit needs."""


class CreateOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """The options of Create, as the bus carries them."""

    level: str | None = None
    compartments: list[str] | None = None
    template: str | None = None
    definition: str | None = None
    definition_file: str = "cage.toml"
    ephemeral: bool | None = None
    memory: str | None = None
    cpus: float | None = None
    tasks: int | None = None
    disk: str | None = None
    network: str | None = None
    exec_home: bool | None = None
    private: bool | None = None
    require: list[str] | None = None
    autostart: bool | None = None
    start: bool = True


def compose(options: CreateOptions, paths: Paths) -> Definition:
    """The definition that `options` ask for; every fault of it is a UsageError or DefinitionError."""
    base = _base(options, paths)
    limits = _changed(base.limits, _given(options, "memory", "cpus", "tasks", "disk"))
    session = _changed(base.session, _given(options, "ephemeral", "exec-home", "private", "autostart"))
    network = base.network if options.network is None else _network(options.network)
    top = _given(options, "level", "compartments", "require")
    return msgspec.structs.replace(_changed(base, top), limits=limits, session=session, network=network)


def _given(options: CreateOptions, *keys: str) -> dict[str, object]:
    """Those of `keys` (as in cage.toml) that the request names."""
    values = {key: getattr(options, key.replace("-", "_")) for key in keys}
    return {key: value for key, value in values.items() if value is not None}


def _base(options: CreateOptions, paths: Paths) -> Definition:
    if options.definition is not None and options.template is not None:
        raise UsageError("a cage is made from a template or from a file, not from both")
    if options.definition is not None:
        return parse_definition(options.definition, escape(options.definition_file, limit=200))
    template = template_file(options.template or "default", paths)
    if template is not None:
        return parse_definition(read_text(template), str(template))
    if options.template is not None:
        shown = escape(options.template, limit=40)
        raise UsageError(f'there is no template "{shown}"; {paths.administrator}/templates.d is where yours belong')
    return Definition()


def template_file(untrusted_name: str, paths: Paths) -> Path | None:
    """Where the template of that name is; None where there is none."""
    try:
        return masked_file(paths, f"templates.d/{check_cage_name(untrusted_name)}.toml")
    except InvalidName:
        return None


def template_names(paths: Paths) -> list[str]:
    """The names of the templates that there are."""
    names = {file.name.removesuffix(".toml") for parent in (paths.shipped, paths.administrator)
             for file in Path(parent, "templates.d").glob("*.toml")}
    return sorted(name for name in names if template_file(name, paths) is not None)


def check_label(definition: Definition, options: CreateOptions, levels: Levels) -> None:
    """UsageError, with the line where a file says so, unless this host has the level and the compartments."""
    try:
        levels.label(definition.level, definition.compartments)
    except UsageError as error:
        key = "level" if isinstance(error, UnknownLevel) else "compartments"
        if options.definition is None or getattr(options, key) is not None:
            raise
        file = f"{escape(options.definition_file, limit=200)}:{line_of(options.definition, (key,))}"
        raise type(error)(f"{file}: {key}: {error.sentence}") from error


def check_session(definition: Definition, options: CreateOptions) -> None:
    """UsageError, with the line where a file says so, for a cage that would be started when it is gone."""
    if not (definition.session.ephemeral and definition.session.autostart):
        return
    file = ""
    if options.definition is not None and options.autostart is None:
        file = f"{escape(options.definition_file, limit=200)}:{line_of(options.definition, ('session', 'autostart'))}: "
    raise UsageError(f"{file}an ephemeral cage is gone when the host starts again and cannot be started with it; leave "
                     "out one of ephemeral and autostart")


_Table = TypeVar("_Table", bound=msgspec.Struct)


def _changed(table: _Table, changes: dict[str, object]) -> _Table:
    """`table` with `changes` (keys as in cage.toml), checked as a file's would be."""
    return convert({**msgspec.to_builtins(table), **changes}, type(table))


def _network(untrusted_mode: str) -> Network:
    try:
        return msgspec.convert({"mode": untrusted_mode}, Network)
    except msgspec.ValidationError as error:
        raise UsageError(f'network "{escape(untrusted_mode, limit=40)}" is not offered; only "none" is') from error


def enforceable(limits: Limits, controllers: frozenset[str]) -> tuple[spec.Limits, tuple[str, ...]]:
    """The limits for the cage's cgroup, and a sentence for each that this host does not enforce.

    HostUnsupported where a limit that the definition names cannot be enforced and `on-missing` is not "warn".
    """
    wanted = {field: getattr(limits, field) for field in CONTROLLERS if getattr(limits, field) is not None}
    missing = {field: controller for field, controller in CONTROLLERS.items()
               if field in wanted and controller not in controllers}
    sentences = [f"{field.replace('_', '-')}: this host's cgroup v2 has no {controller} controller"
                 for field, controller in missing.items()]
    if limits.disk is not None or limits.disk_files is not None:
        sentences.append("disk: the home's file system has no quotas that this runtime can set")
    if sentences and limits.on_missing == "refuse":
        raise HostUnsupported(
            f'{sentences[0]}, so the limit cannot be enforced; leave it out, or set on-missing = "warn" under [limits]'
        )
    values = {field: parse_size(value) if isinstance(value, str) else value
              for field, value in wanted.items() if field not in missing}
    if "tasks" not in wanted and "pids" in controllers:
        values["tasks"] = DEFAULT_TASKS
    return spec.Limits(**values), tuple(sentences)


def birth_limits(definition: Definition, controllers: frozenset[str]) -> tuple[spec.Limits, tuple[str, ...]]:
    """As `enforceable`; the home of an ephemeral cage is a tmpfs, which bounds itself."""
    limits = definition.limits
    if definition.session.ephemeral:
        limits = msgspec.structs.replace(limits, disk=None, disk_files=None)
    return enforceable(limits, controllers)


def home_bounds(definition: Definition) -> tuple[int, int]:
    """(bytes, files) of the home of an ephemeral cage."""
    limits = definition.limits
    size = parse_size(limits.disk) if limits.disk is not None else DEFAULT_EPHEMERAL_BYTES
    return size, limits.disk_files or 262144
