# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is under way when caged or its spawner ends: it is finished, done by the next one, or said; never half done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from typing import Any

import pytest

from cage_runtime.model import REPEATS_MAX
from cage_runtime.spawner import spec
from tests.bus.core.conftest import CORE, SECONDS, Client, Core, FakeApps, Refusal


def created(client: Client, name: str, **options: Any) -> None:
    client.call("Create", "sa{sv}", name, options)


def states(client: Client) -> dict[str, str]:
    return {cage["name"][1]: cage["state"][1] for cage in client.call("List", "a{sv}", {})}


def kinds_of_the_record(client: Client) -> list[str]:
    return [json.loads(line)["kind"] for line in client.call("TailAudit", "a{sv}", {"count": ("i", 1000)})]


def replace_spawner(core: Core, kind: type[spec.Request], times: int = 1) -> None:
    """The spawner is killed at each of the next `times` requests of that kind, and started again."""
    for _ in range(times):
        core.spawner.wait_for(kind)
        core.spawner.requests.clear()
        core.spawner.stop()
        core.spawner.start()


# --- a spawner that is killed ------------------------------------------------------------------------------------
@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize("ephemeral", [True, False])
@pytest.mark.parametrize("request_", [spec.MakeStorage, spec.Birth, spec.Keep])
def test_a_create_whose_spawner_is_killed_is_a_create(
    core: Core, client: Client, request_: type[spec.Request], ephemeral: bool, done: bool
) -> None:
    """Also where only the answer was lost: what there is of it is undone and made once more."""
    if ephemeral and request_ is spec.Keep:
        return
    lost = core.spawner.mute if done else core.spawner.silent
    lost.add(request_)
    creating = core.client()
    pending = creating.send("Create", "sa{sv}", "work", {"ephemeral": ("b", ephemeral)})
    core.spawner.wait_for(request_)
    lost.clear()
    replace_spawner(core, request_)
    creating.answer(pending)
    creating.close()
    assert states(client) == {"work": "running"}
    assert len(core.spawner.running) == 1
    assert core.spawner.running == core.spawner.anything
    undoing = {spec.MakeStorage: "Remove", spec.Birth: "Stop", spec.Keep: "Keep"}[request_]
    assert core.spawner.kinds()[2] == undoing, "the first thing after the look"
    assert client.call("VerifyAudit", "a{sv}", {}) == ""


def test_a_start_whose_spawner_is_killed_is_a_start(core: Core, client: Client) -> None:
    created(client, "work", start=("b", False))
    for lost in (core.spawner.mute, core.spawner.silent):
        lost.add(spec.Birth)
        starting = core.client()
        pending = starting.send("Start", "sa{sv}", "work", {})
        core.spawner.wait_for(spec.Birth)
        lost.clear()
        replace_spawner(core, spec.Birth)
        starting.answer(pending)
        starting.close()
        assert states(client) == {"work": "running"}
        client.call("Stop", "sa{sv}", "work", {})
    assert kinds_of_the_record(client).count("cage-started") == 2


def test_a_birth_that_ends_every_spawner_is_given_up_and_leaves_nothing(core: Core, client: Client) -> None:
    core.spawner.silent.add(spec.Birth)
    creating = core.client()
    pending = creating.send("Create", "sa{sv}", "work", {})
    replace_spawner(core, spec.Birth, REPEATS_MAX + 1)
    with pytest.raises(Refusal) as refused:
        creating.answer(pending)
    creating.close()
    assert refused.value.name == "SpawnerUnavailable"
    assert states(client) == {}
    assert core.spawner.anything == set()


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
@pytest.mark.parametrize(("member", "request_", "after"), [
    ("Stop", spec.Stop, {"work": "stopped"}), ("Pause", spec.Freeze, {"work": "paused"}),
    ("Destroy", spec.Condemn, {}), ("Destroy", spec.Stop, {}), ("Destroy", spec.Remove, {}),
    ("Logs", spec.Logs, {"work": "running"}), ("Status", spec.Inspect, {"work": "running"}),
])
def test_what_may_be_done_twice_is_asked_of_the_next_spawner(
    core: Core, client: Client, member: str, request_: type[spec.Request], after: dict[str, str], done: bool
) -> None:
    created(client, "work")
    lost = core.spawner.mute if done else core.spawner.silent
    lost.add(request_)
    asking = core.client()
    core.spawner.requests.clear()
    pending = asking.send(member, "sa{sv}", "work", {})
    core.spawner.wait_for(request_)
    lost.clear()
    replace_spawner(core, request_)
    asking.answer(pending)
    asking.close()
    assert states(client) == after
    assert len(core.spawner.anything) == len(after)


def test_a_command_is_not_started_twice(core: Core, client: Client) -> None:
    created(client, "work")
    core.spawner.silent.add(spec.Spawn)
    entering = core.client()
    pending = entering.send("Enter", "sasa{sv}", "work", ["true"], {})
    replace_spawner(core, spec.Spawn)
    with pytest.raises(Refusal) as refused:
        entering.answer(pending)
    entering.close()
    assert (refused.value.name, refused.value.sentence) == (
        "SpawnerUnavailable", "the spawner ended while it was at it; try again")
    assert "Spawn" not in core.spawner.kinds()


# --- a cage that ends unseen ---------------------------------------------------------------------------------------
def end_unseen(core: Core) -> None:
    """The one cage ends, and nobody is told."""
    (uuid,) = core.spawner.running
    core.spawner.running.discard(uuid)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "told"])
def test_an_end_without_a_core_is_recorded_by_the_next(core: Core, client: Client, kill: bool) -> None:
    created(client, "work")
    core.stop(kill=kill)
    end_unseen(core)
    for _ in range(2):
        core.start()
        assert kinds_of_the_record(client).count("cage-stopped") == 1
        assert states(client) == {"work": "stopped"}
        core.stop()
    core.start()


def test_an_end_at_the_core_s_own_end_is_in_its_record(core: Core, client: Client) -> None:
    created(client, "work")
    end_unseen(core)
    core.stop()
    core.start()
    assert kinds_of_the_record(client)[-4:] == ["cage-stopped", "core-stopped", "core-started", "policy-loaded"]


def test_an_end_without_a_spawner_is_recorded(core: Core, client: Client) -> None:
    created(client, "work")
    core.spawner.stop()
    end_unseen(core)
    core.spawner.start()
    assert states(client) == {"work": "stopped"}
    assert kinds_of_the_record(client)[-1] == "cage-stopped"


def test_an_end_between_two_looks_is_recorded(core: Core, client: Client) -> None:
    """The spawner says that it runs, and by then its gateway is gone."""
    created(client, "work")
    (uuid,) = core.spawner.running
    core.stop()
    shutil.rmtree(core.top / "run/gateways" / uuid)
    core.start()
    assert states(client) == {"work": "stopped"}
    assert kinds_of_the_record(client)[-1] == "cage-stopped"


def test_a_cage_that_was_stopped_is_recorded_once(core: Core, client: Client) -> None:
    created(client, "work")
    client.call("Stop", "sa{sv}", "work", {})
    core.stop(kill=True)
    core.start()
    assert kinds_of_the_record(client).count("cage-stopped") == 1


# --- a caged that is told to end -----------------------------------------------------------------------------------
def test_what_is_in_hand_is_finished(core: Core) -> None:
    """The name is free at once, and who asked before that is answered."""
    client = core.client()
    core.spawner.silent.add(spec.Birth)
    pending = client.send("Create", "sa{sv}", "work", {})
    core.spawner.wait_for(spec.Birth)
    core.spawner.silent.clear()
    core.tell()
    replace_spawner(core, spec.Birth)
    client.answer(pending)
    assert core.ended() == 0
    core.start()
    assert states(client) == {"work": "running"}
    assert kinds_of_the_record(client) == ["core-started", "policy-loaded", "receipt-key-made", "cage-created",
                                           "cage-started", "core-stopped", "core-started", "policy-loaded",
                                           "cage-adopted"]
    client.close()


def test_what_is_not_finished_in_time_is_told_so(core: Core) -> None:
    core.stop()
    core.start(ending=0.1)
    client = core.client()
    created(client, "work")
    core.spawner.silent.add(spec.Stop)
    pending = client.send("Stop", "sa{sv}", "work", {})
    core.spawner.wait_for(spec.Stop)
    core.tell()
    with pytest.raises(Refusal) as refused:
        client.answer(pending)
    assert refused.value.name == "CutOff"
    assert refused.value.sentence.startswith("Stop was cut off: whoever was at it was told to end")
    assert core.ended() == 0
    core.spawner.silent.clear()
    core.spawner.stop()
    core.spawner.start()
    core.start()
    assert kinds_of_the_record(client)[-3:] == ["core-started", "policy-loaded", "cage-adopted"]
    client.close()


def test_a_job_is_finished_or_cancelled_as_by_cancel(core: Core, apps: FakeApps) -> None:
    core.stop()
    core.start(ending=0.1)
    client = core.client()
    created(client, "work")
    apps.patient = True
    job = client.call("InstallApplication", "ssa{sv}", "work", "org.example.App", {})
    pending = client.send("Wait", interface=f"{CORE}.Job", path=job)
    assert apps.asked.wait(SECONDS)
    core.tell()
    with pytest.raises(Refusal, match="cancelled, because caged was told to end before it was done; try again"):
        client.answer(pending)
    assert core.ended() == 0
    assert [member for member, _ in apps.calls] == ["Install", "Cancel"]
    client.close()


def test_a_second_caged_is_refused_and_changes_nothing(core: Core, client: Client) -> None:
    created(client, "work")
    before = client.call("TailAudit", "a{sv}", {"count": ("i", 1000)})
    asked = core.spawner.kinds()
    second = core.popen(stderr=subprocess.PIPE)
    _, said = second.communicate(timeout=SECONDS)
    assert second.returncode == 125
    assert said.decode() == f"caged: the audit chain in {core.top}/state/audit is in use by another core; " \
                            "stop it first\n"
    assert client.call("TailAudit", "a{sv}", {"count": ("i", 1000)}) == before
    assert core.spawner.kinds() == asked
    assert states(client) == {"work": "running"}


def test_the_policy_is_read_again_at_a_hang_up(core: Core, client: Client) -> None:
    """One that cannot be read is said in the log, and the one in force stays."""
    folder = core.top / "etc/policy.d"
    folder.mkdir(parents=True)
    for text, kind in (("files.Send * * * deny\n", "policy-loaded"), ("files.Send *\n", "policy-refused")):
        (folder / "10-ours.policy").write_text(text)
        os.kill(core.pid, signal.SIGHUP)
        client.until(lambda kind=kind: kinds_of_the_record(client)[-1] == kind)
    assert "10-ours.policy" in core.log.read_text()
    assert "the policy in force stays" in core.log.read_text()


# --- gateways ------------------------------------------------------------------------------------------------------
def gateway_of(core: Core) -> tuple[str, str]:
    """The one running cage's uuid, and the path of its gateway."""
    (uuid,) = core.spawner.running
    return uuid, str(core.top / "run/gateways" / uuid / "bus")


def connected(path: str) -> socket.socket:
    """Somebody in the cage, at its gateway."""
    half = socket.socket(socket.AF_UNIX)
    half.connect(path)
    return half


def asked_to_open(core: Core) -> int:
    return core.spawner.kinds().count("OpenGateway")


@pytest.mark.parametrize("kill", [True, False])
def test_a_bus_that_runs_is_taken_over_and_its_socket_stays(core: Core, kill: bool) -> None:
    client = core.client()
    created(client, "work")
    uuid, path = gateway_of(core)
    made = os.stat(path).st_ctime_ns
    with connected(path):
        core.spawner.wait_until(lambda: uuid in core.spawner.gateways)
        core.stop(kill=kill)
        core.start()
        assert states(client) == {"work": "running"}
        assert os.stat(path).st_ctime_ns == made
        with connected(path):  # the bus has the socket, and nobody else listens
            assert states(client) == {"work": "running"}
    assert asked_to_open(core) == 1
    client.call("Destroy", "sa{sv}", "work", {})
    client.close()


def test_a_socket_without_a_bus_is_made_anew(core: Core) -> None:
    client = core.client()
    created(client, "work")
    uuid, path = gateway_of(core)
    core.stop(kill=True)
    with pytest.raises(ConnectionRefusedError):
        connected(path)
    core.start()
    with connected(path):
        core.spawner.wait_until(lambda: uuid in core.spawner.gateways)
    client.close()


@pytest.mark.parametrize("restarted", [True, False])
def test_a_bus_that_ends_is_started_by_the_next_connection(core: Core, restarted: bool) -> None:
    client = core.client()
    created(client, "work")
    uuid, path = gateway_of(core)
    with connected(path):
        core.spawner.wait_until(lambda: uuid in core.spawner.gateways)
    if restarted:
        core.stop()
        core.start()
        made = os.stat(path).st_ctime_ns
    core.spawner.end_gateway(uuid)
    if restarted:
        client.until(lambda: bool(states(client)) and os.stat(path).st_ctime_ns != made)
        with connected(path):
            core.spawner.wait_until(lambda: asked_to_open(core) == 2)
    else:  # the first connection has waited in the socket's queue
        core.spawner.wait_until(lambda: asked_to_open(core) == 2)
    client.close()


def test_a_bus_that_was_asked_of_a_spawner_that_ended_is_asked_of_the_next(core: Core, client: Client) -> None:
    created(client, "work")
    uuid, path = gateway_of(core)
    for lost in (core.spawner.silent, core.spawner.mute):
        lost.add(spec.OpenGateway)
        with connected(path):
            core.spawner.wait_for(spec.OpenGateway)
            lost.clear()
            replace_spawner(core, spec.OpenGateway)
            core.spawner.wait_until(lambda: asked_to_open(core) == 1 and uuid in core.spawner.gateways)
        client.call("Stop", "sa{sv}", "work", {})
        client.call("Start", "sa{sv}", "work", {})
        core.spawner.requests.clear()


def test_a_bus_that_ended_with_nobody_looking_is_noticed(core: Core, client: Client) -> None:
    """While there was no spawner, say."""
    created(client, "work")
    uuid, path = gateway_of(core)
    with connected(path):
        core.spawner.wait_until(lambda: uuid in core.spawner.gateways)
        core.spawner.stop()
        core.spawner.drop_gateway(uuid)
        core.spawner.start()
        core.spawner.wait_until(lambda: asked_to_open(core) == 2)
        assert uuid in core.spawner.gateways
