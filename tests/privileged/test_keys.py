# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keys of another cage: OpenSSH's own programs use them through the agent, and nothing else is signed by them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.privileged.conftest import MakeCage
from tests.privileged.rules import policy, until
from tests.privileged.runtime import SECONDS, Cage, Ended, Runtime

POLICY = """
keys.List  *        dev  vault  allow
keys.Sign  +work    dev  vault  allow
keys.Sign  +locked  dev  vault  allow
keys.Sign  +gone    dev  vault  allow
keys.Sign  +open    dev  vault  allow
keys.Sign  +rsa     dev  vault  allow
keys.Sign  +ecdsa   dev  vault  allow
"""
RAW = """
import json, sys
sys.path[:0] = ["/opt/cage-runtime/lib"]
from cage_runtime.cli.client import mediator
from cage_runtime.errors import CageError
peer = mediator("keys", "")
arguments = json.loads(sys.argv[1])
values = [bytes.fromhex(value[4:]) if str(value).startswith("hex:") else value for value in arguments]
try:
    answer = peer.call("Sign", "ssayayua{sv}", *values, returns="ay")
    print(json.dumps(["signed", answer.hex()]))
except CageError as error:
    print(json.dumps([error.bus_name, error.sentence]))
"""


@pytest.fixture(scope="module")
def vault(shared_cage: MakeCage) -> Cage:
    """The key cage: keys of each kind, and files that are none."""
    cage = shared_cage("vault", "--level", "internal")
    cage.sh("""mkdir -p -m 700 ~/.config/incage/keys && cd ~/.config/incage/keys &&
        for kind in ed25519 ecdsa rsa; do ssh-keygen -q -t $kind -N '' -C '' -f $kind; done &&
        mv ed25519 work && mv ed25519.pub ~/work.pub && mv rsa.pub ecdsa.pub ~ &&
        ssh-keygen -q -t ed25519 -N '' -f other && mv other.pub ~ &&
        ssh-keygen -q -t ed25519 -N secret -f locked && mv locked.pub ~ &&
        cp work open && chmod 644 open""")
    return cage


@pytest.fixture(scope="module")
def dev(runtime: Runtime, shared_cage: MakeCage, vault: Cage) -> Iterator[Cage]:
    cage = shared_cage("dev", "--level", "internal")
    for name in ("work", "rsa", "ecdsa", "other"):
        cage.sh(f"cat > ~/{name}.pub", input=vault.sh(f"cat ~/{name}.pub").encode())
    with policy(runtime, POLICY):
        yield cage


def agent(cage: Cage, script: str, *, to: str = "vault", content: bytes | None = None) -> Ended:
    """A shell script in the cage, with the agent."""
    return cage.enter("incage", "agent", "--to", to, "--", "/bin/sh", "-c", script, input=content)


def records(runtime: Runtime, service: str) -> list[dict[str, Any]]:
    return [fields for fields in runtime.events() if fields.get("service") == service and "outcome" in fields]


# --- what works --------------------------------------------------------------------------------------------------
def test_its_keys_are_those_of_the_key_cage(dev: Cage) -> None:
    ended = agent(dev, "ssh-add -L")
    assert ended.returncode == 0, ended.stderr
    listed = {line.split()[1]: line.split()[2] for line in ended.stdout.decode().splitlines()}
    blobs = {name: dev.sh(f"cut -d ' ' -f 2 ~/{name}.pub").strip() for name in ("work", "rsa", "ecdsa", "other")}
    assert listed == {blob: name for name, blob in blobs.items()}


@pytest.mark.parametrize("name", ["work", "rsa", "ecdsa"])
def test_openssh_signs_and_verifies_with_them(runtime: Runtime, dev: Cage, name: str) -> None:
    """Detached signatures, as git makes its own too."""
    ended = agent(dev, f"""cd ~ && echo document >doc && rm -f doc.sig &&
        ssh-keygen -Y sign -q -f {name}.pub -n file doc &&
        echo "me $(cat {name}.pub)" >signers &&
        ssh-keygen -Y verify -q -f signers -I me -n file -s doc.sig <doc""")
    assert (ended.returncode, ended.stderr) == (0, b""), ended.stdout
    record = records(runtime, "keys.Sign")[-1]
    fingerprint = dev.sh(f"ssh-keygen -l -f ~/{name}.pub").split()[1]
    assert (record["cage"], record["target"], record["argument"], record["key"], record["outcome"]) == (
        "dev", "vault", name, fingerprint, "signed")
    assert record["signs"].startswith("signature for: file; digest: sha512 ")


def test_git_signs_with_them(dev: Cage) -> None:
    if dev.enter("/bin/sh", "-c", "command -v git").returncode:
        pytest.fail("git is missing; install the package git")
    ended = agent(dev, """set -e; rm -rf ~/repository; git init -q ~/repository; cd ~/repository
        git config user.name me; git config user.email me@example.org; git config gpg.format ssh
        git config user.signingkey ~/work.pub; echo "me@example.org $(cat ~/work.pub)" >~/signers
        git config gpg.ssh.allowedSignersFile ~/signers
        git commit -q --allow-empty -S -m signed; git verify-commit HEAD""")
    assert ended.returncode == 0, ended.stderr
    assert b'Good "git" signature for me@example.org' in ended.stderr


def test_its_socket_is_the_users_alone_and_goes_with_it(dev: Cage) -> None:
    ended = agent(dev, 'stat -c "%a %U" $SSH_AUTH_SOCK $(dirname $SSH_AUTH_SOCK); echo $SSH_AUTH_SOCK; exit 7')
    socket, folder, path = ended.stdout.decode().splitlines()
    assert (socket, folder, ended.returncode) == ("600 user", "700 user", 7)
    assert dev.enter("/bin/ls", path).returncode != 0


def test_without_a_command_it_says_where_it_is(dev: Cage) -> None:
    script = """incage agent --to vault >~/said & trap 'kill $!' EXIT
        while ! grep -q SOCK ~/said; do sleep 0.05; done; . ~/said; ssh-add -l"""
    assert len(dev.sh(script).splitlines()) == 4


# --- what is not signed ------------------------------------------------------------------------------------------
def raw(cage: Cage, *values: object) -> list[str]:
    """What the mediator says to that, and not our own agent: any program in the cage can ask."""
    ended = cage.enter("/usr/bin/python3", "-IS", "-c", RAW, json.dumps(values))
    assert ended.returncode == 0, ended.stderr.decode()
    answer: list[str] = json.loads(ended.stdout)
    return answer


@pytest.fixture(scope="module")
def payload(dev: Cage) -> dict[str, str]:
    """The public key and something that may be signed by it, in hexadecimal."""
    blob = dev.sh("cut -d ' ' -f 2 ~/work.pub | base64 -d | od -An -v -tx1").replace(" ", "").replace("\n", "")
    other = dev.sh("cut -d ' ' -f 2 ~/other.pub | base64 -d | od -An -v -tx1").replace(" ", "").replace("\n", "")
    data = b"SSHSIG" + b"\0\0\0\x04file" + b"\0\0\0\0" + b"\0\0\0\x06sha512" + b"\0\0\0\x40" + b"d" * 64
    return {"blob": f"hex:{blob}", "other": f"hex:{other}", "data": f"hex:{data.hex()}"}


def test_what_can_be_said_is_signed(dev: Cage, payload: dict[str, str]) -> None:
    assert raw(dev, "vault", "work", payload["blob"], payload["data"], 0, {})[0] == "signed"


@pytest.mark.parametrize("data", [b"", b"anything", b"SSHSIG", b"\0\0\0\x20" + b"s" * 32 + b"\x32", b"x" * 16385])
def test_what_nobody_can_say_is_not_signed(runtime: Runtime, dev: Cage, payload: dict[str, str], data: bytes) -> None:
    """M75: there is no question, no key cage and no record without what would be signed."""
    before = len(records(runtime, "keys.Sign"))
    assert raw(dev, "vault", "work", payload["blob"], f"hex:{data.hex()}", 0, {})[0] == "InvalidArgument"
    assert len(records(runtime, "keys.Sign")) == before


@pytest.mark.parametrize("name", ["-oProxyCommand=id", "--", "../keys/work", "/etc/passwd", "", ".", "a b", "work\n"])
def test_a_name_is_no_option_and_no_path(dev: Cage, payload: dict[str, str], name: str) -> None:
    """M70, M72."""
    assert raw(dev, "vault", name, payload["blob"], payload["data"], 0, {})[0] == "InvalidArgument"


@pytest.mark.parametrize("options", [{"status-fd": 1}, {"window": 3600}, {"user": "root"}])
def test_there_are_no_options(dev: Cage, payload: dict[str, str], options: dict[str, object]) -> None:
    """M70, M71, M74."""
    assert raw(dev, "vault", "work", payload["blob"], payload["data"], 0, options)[0] == "InvalidArgument"


def test_a_key_that_there_is_not_looks_like_one_that_does_not_sign(dev: Cage, payload: dict[str, str]) -> None:
    """M72, M73: no such file, one that others can read, one with a passphrase, and another key under this name."""
    said = [raw(dev, "vault", name, payload[blob], payload["data"], 0, {})
            for name, blob in (("gone", "blob"), ("open", "blob"), ("locked", "blob"), ("work", "other"))]
    assert said == [said[0]] * 4
    assert said[0][0] == "TransferFailed"


def test_another_key_is_not_in_the_rule(dev: Cage, payload: dict[str, str]) -> None:
    """M73: it is listed, and policy does not let it sign."""
    assert raw(dev, "vault", "other", payload["other"], payload["data"], 0, {})[0] == "PolicyRefused"
    ended = agent(dev, "cd ~ && echo x >doc2 && ssh-keygen -Y sign -q -f other.pub -n file doc2")
    assert ended.returncode != 0
    assert b'incage: keys.Sign+other to "vault" is refused' in ended.stderr


# --- secrets of applications ---------------------------------------------------------------------------------------
def secret(cage: Cage, target: str, application: str) -> list[str]:
    script = RAW.replace('"Sign", "ssayayua{sv}"', '"Secret", "ssa{sv}"')
    ended = cage.enter("/usr/bin/python3", "-IS", "-c", script, json.dumps([target, application, {}]))
    assert ended.returncode == 0, ended.stderr.decode()
    answer: list[str] = json.loads(ended.stdout)
    return answer


def test_an_application_has_its_secret(runtime: Runtime, dev: Cage, vault: Cage) -> None:
    """Always the same, no other's, and not where policy does not let it have one."""
    with policy(runtime, POLICY + "keys.Secret +org.example.A dev vault allow\nkeys.Secret +B dev vault allow\n"):
        first, other = secret(dev, "vault", "org.example.A"), secret(dev, "vault", "B")
        assert (first[0], other[0], len(first[1]), first[1] == other[1]) == ("signed", "signed", 64, False)
        assert secret(dev, "vault", "org.example.A") == first
        assert secret(dev, "vault", "C")[0] == "PolicyRefused"
        assert secret(dev, "vault", "../B")[0] == "InvalidArgument"
        vault.sh("chmod 644 ~/.config/incage/secret")
        assert secret(dev, "vault", "B")[0] == "TransferFailed"
        vault.sh("chmod 600 ~/.config/incage/secret")
    assert records(runtime, "keys.Secret")[-1]["outcome"].startswith("the key cage ended it with status")
    assert first[1] not in json.dumps(records(runtime, "keys.Secret"))


# --- what a person is asked ----------------------------------------------------------------------------------------
ASKING = POLICY.replace("keys.Sign  +work    dev  vault  allow", "keys.Sign  +work    dev  vault  ask")
SIGN = "cd ~ && echo document >asked && rm -f asked.sig && ssh-keygen -Y sign -q -f work.pub -n release asked"


def question(runtime: Runtime) -> dict[str, Any]:
    """The one that is open, once it is."""
    found: list[Any] = []
    until(lambda: found.extend(runtime.call("ListPrompts", "a{sv}", {})[0]) or found, "the question")
    return {key: value for key, (_, value) in found[0].items()}


def signing(dev: Cage) -> subprocess.Popen[bytes]:
    return dev.popen("incage", "agent", "--to", "vault", "--", "/bin/sh", "-c", SIGN, stderr=subprocess.PIPE)


def test_a_person_is_shown_what_would_be_signed(runtime: Runtime, dev: Cage) -> None:
    """Which key, and for what: as the key cage's half and the core's, each for itself, read it."""
    with policy(runtime, ASKING), signing(dev) as process:
        asked = question(runtime)
        assert (asked["source"], asked["target"], asked["service"], asked["argument"]) == (
            "dev", "vault", "keys.Sign", "work")
        fingerprint = dev.sh("ssh-keygen -l -f ~/work.pub").split()[1]
        digest = dev.sh("sha512sum <~/asked").split()[0]
        assert asked["lines"] == [f"key: work, ssh-ed25519 {fingerprint}", "signature for: release",
                                  f"digest: sha512 {digest}"]
        assert dev.enter("test", "-e", "/home/user/asked.sig").returncode != 0
        runtime.call("AnswerPrompt", "ssa{sv}", asked["id"], "allow", {})
        assert process.wait(SECONDS) == 0
    assert dev.sh("head -n 1 ~/asked.sig") == "-----BEGIN SSH SIGNATURE-----\n"


def test_a_person_who_says_no_is_heard(runtime: Runtime, dev: Cage) -> None:
    with policy(runtime, ASKING), signing(dev) as process:
        runtime.call("AnswerPrompt", "ssa{sv}", question(runtime)["id"], "deny", {})
        _, complaint = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert b"incage: " in complaint
    assert b"agent refused operation" in complaint
    assert dev.enter("test", "-e", "/home/user/asked.sig").returncode != 0


def test_whoever_goes_takes_the_question_along(runtime: Runtime, dev: Cage, vault: Cage) -> None:
    """M16: and the key cage's half, which waits with the key in its hand."""
    with policy(runtime, ASKING), signing(dev) as process:
        assert question(runtime)
        assert vault.enter("pgrep", "-f", "[k]eys --deliver").returncode == 0
        dev.sh("pkill -9 ssh-keygen")
        assert process.wait(SECONDS) != 0
        until(lambda: not runtime.call("ListPrompts", "a{sv}", {})[0], "the end of the question")
    until(lambda: vault.enter("pgrep", "-f", "[k]eys --deliver").returncode != 0, "the end of the half")
    assert records(runtime, "keys.Sign")[-1]["outcome"] == "given up, because whoever asked has gone"


def test_an_answer_for_one_key_is_none_for_another(runtime: Runtime, dev: Cage) -> None:
    """A standing answer is for this key, cage and operation."""
    rules = ASKING.replace("keys.Sign  +rsa     dev  vault  allow", "keys.Sign  +rsa     dev  vault  ask")
    with policy(runtime, rules):
        with signing(dev) as process:
            runtime.call("AnswerPrompt", "ssa{sv}", question(runtime)["id"], "allow", {"for": ("u", 60)})
            assert process.wait(SECONDS) == 0
        with signing(dev) as process:
            assert process.wait(SECONDS) == 0, "it stands"
        with dev.popen("incage", "agent", "--to", "vault", "--", "/bin/sh", "-c",
                       SIGN.replace("release", "git")) as process:
            asked = question(runtime)
            assert asked["lines"][1] == "signature for: git", "that is another operation"
            runtime.call("AnswerPrompt", "ssa{sv}", asked["id"], "deny", {})
            assert process.wait(SECONDS) != 0
        assert [grant["operation"][1] for grant in runtime.call("ListGrants", "a{sv}", {})[0]] == [
            "signature for: release"]
        other = SIGN.replace("work.pub", "rsa.pub")
        with dev.popen("incage", "agent", "--to", "vault", "--", "/bin/sh", "-c", other) as process:
            asked = question(runtime)
            assert asked["argument"] == "rsa"
            runtime.call("AnswerPrompt", "ssa{sv}", asked["id"], "deny", {})
            assert process.wait(SECONDS) != 0
        for grant in runtime.call("ListGrants", "a{sv}", {})[0]:
            runtime.call("RevokeGrant", "sa{sv}", grant["id"][1], {})


# --- who gets nothing ------------------------------------------------------------------------------------------------
def test_a_cage_without_a_rule_gets_nothing(vault: Cage, shared_cage: MakeCage) -> None:
    """M3: and not to know whether there is such a cage."""
    idle = shared_cage("idle", "--level", "internal")
    there, nowhere = (agent(idle, "ssh-add -l", to=name) for name in ("vault", "nowhere"))
    assert there.returncode != 0
    assert there.stderr.replace(b"vault", b"X") == nowhere.stderr.replace(b"nowhere", b"X")
    assert vault.name == "vault"


def test_a_private_cage_may_keep_keys(runtime: Runtime, dev: Cage, shared_cage: MakeCage) -> None:
    """What signs in it is a half of ours, and what leaves it is a signature; this one has none yet."""
    shared_cage("safe", "--level", "internal", "--private")
    with policy(runtime, POLICY + "keys.List * dev safe allow\n"):
        ended = agent(dev, "ssh-add -l", to="safe")
    assert (ended.returncode, ended.stdout) == (1, b"The agent has no identities.\n")


def test_a_key_cage_that_was_stopped_signs_nothing(runtime: Runtime, dev: Cage, shared_cage: MakeCage) -> None:
    shared_cage("asleep", "--level", "internal", "--no-start")
    with policy(runtime, POLICY + "keys.List * dev asleep allow\n"):
        ended = agent(dev, "ssh-add -l", to="asleep")
    assert ended.returncode != 0
    assert b"nothing came from asleep, which may be stopped" in ended.stderr
    until(lambda: records(runtime, "keys.List"), "the record")
