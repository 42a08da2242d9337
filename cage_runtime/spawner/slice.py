# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cgroups of cages where systemd manages the hierarchy: each in a scope of its own, which it has delegated.

  cages.slice/cage-NAME.scope/UUID

The scope is systemd's: it is asked for before the birth, because a cage is born into its cgroup, and it goes by itself
when nothing is in it any more.  Until the cage's first process is there, the seed of cage-scopes keeps it.
"""

from __future__ import annotations

from pathlib import Path

from cage_runtime.errors import CageError
from cage_runtime.scopes.spec import name_of, runtime_of, scope_of, slice_of
from cage_runtime.spawner.cgroup import UUID, Cgroup, Made, not_in_force, offered, put_in_force, switch_on
from cage_runtime.spawner.scopes import Scopes
from cage_runtime.spawner.spec import Limits


class Slice:
    def __init__(self, mount_point: Path, name: str, scopes: Scopes) -> None:
        self._runtime, self._scopes = runtime_of(name), scopes
        self.path = mount_point.joinpath(*slice_of(self._runtime))
        self.controllers = offered(mount_point)
        # Now, and not with the first birth: it also hears what systemd has in mind for cages that run already.
        scopes.start()
        self._seeds: dict[str, int] = {}
        """Numbers of the scopes that their seeds still keep, by the cage's uuid."""

    def existing(self) -> dict[str, Cgroup]:
        pattern = f"{scope_of(self._runtime, '*')}/*/"
        return {path.name: Cgroup(path) for path in self.path.glob(pattern) if UUID.fullmatch(path.name)}

    def make(self, name: str, uuid: str, limits: Limits, made: Made) -> None:
        scope = self.path / scope_of(self._runtime, name)

        def told(outcome: int | CageError) -> None:
            if isinstance(outcome, CageError):
                del self._seeds[uuid]
                made(outcome)
                return
            try:
                cgroup = _planted(scope, uuid, outcome, limits)
            except OSError as error:
                self.unmake(uuid)
                made(not_in_force(error))
            else:
                made(cgroup)

        self._seeds[uuid] = self._scopes.open(name, self._runtime, told)

    def born(self, name: str, uuid: str, pid: int) -> None:
        self.unmake(uuid)
        self._scopes.register(name, uuid, pid)

    def ended(self, cgroup: Cgroup) -> None:
        if name := name_of(self._runtime, cgroup.path.parent.name):
            self._scopes.unregister(name, cgroup.path.name)

    def unmake(self, uuid: str) -> None:
        """Let the seed go: of a scope that is empty then, systemd removes all there is."""
        self._scopes.close(self._seeds.pop(uuid))

    def close(self) -> None:
        self._scopes.end()


def _planted(scope: Path, uuid: str, seed: int, limits: Limits) -> Cgroup:
    """The cage's cgroup in its scope, the seed in it: a cgroup with processes of its own gives no controllers below."""
    cgroup = Cgroup(scope / uuid)
    cgroup.path.mkdir()
    if offered(scope):
        (cgroup.path / "cgroup.procs").write_text(str(seed), encoding="ascii")
        switch_on(scope)
    put_in_force(cgroup.path, limits)
    return cgroup
