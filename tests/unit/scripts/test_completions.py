# SPDX-License-Identifier: LGPL-2.1-or-later
"""What bash, zsh and fish offer while somebody types, with a stand-in for the cagectl that they ask for names."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cage_runtime.cli import incage

TOP = Path(__file__).parents[3]
SECONDS = 60
CAGECTL = """#!/bin/sh
echo "$@" >>"$ASKED"
case $1-$2 in
  --complete-cages) echo vault; echo work ;;
  --complete-applications) echo org.example.Notes ;;
esac
"""
BASH = r"""
source "$COMPLETIONS/bash-completion/completions/${1%% *}"
function=$(complete -p "${1%% *}" | sed 's/.*-F \([^ ]*\).*/\1/')
read -ra COMP_WORDS <<<"$1"
[[ $1 != *" " ]] || COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
$function
printf '%s\n' "${COMPREPLY[@]}"
"""
FISH = 'source "$COMPLETIONS/fish/vendor_completions.d/"(string split " " $argv[1])[1].fish; complete -C $argv[1]'
ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -i
while zpty -r shell line && [[ $line != *@ready* ]]; do :; done
zpty -n -w shell $1$'\t'
while zpty -r shell line 2>/dev/null; do :; done
cat $ZDOTDIR/hits
"""
ZSHRC = r"""
PROMPT=''
fpath=($COMPLETIONS/zsh/vendor-completions $fpath)
autoload -Uz compinit && compinit -u -D
zstyle ':completion:*' insert-tab false
bindkey '^I' complete-word
compadd() {
  local -a hits
  if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\ * ]]; then
    builtin compadd -A hits "$@"
    print -rl -- $hits >>$ZDOTDIR/hits
  fi
  builtin compadd "$@"
}
ended() { exit }
comppostfuncs=(ended)
: >$ZDOTDIR/hits
print @ready
"""
"""An interactive zsh, which alone completes; it notes what it would offer and ends."""

Offered = Callable[[str, str], set[str]]


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shtab = next((TOP / ".build/tools").glob("shtab-*.whl"))
    share = tmp_path_factory.mktemp("share")
    subprocess.run([TOP / "scripts/completions", f"--shtab={shtab}", share], check=True)
    return share


@pytest.fixture
def offered(completions: Path, tmp_path: Path) -> Offered:
    """The candidates of a shell for a line."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/cagectl").write_text(CAGECTL)
    (tmp_path / "bin/cagectl").chmod(0o755)
    (tmp_path / ".zshrc").write_text(ZSHRC)
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "ZDOTDIR": str(tmp_path),
                   "ASKED": str(tmp_path / "asked"), "COMPLETIONS": str(completions), "TERM": "dumb",
                   "LANG": "C.UTF-8"}  # fmt: skip
    shells = {"bash": ["bash", "--norc", "-c", BASH, "bash"], "fish": ["fish", "--no-config", "-c", FISH],
              "zsh": ["zsh", "-f", "-c", ZSH, "zsh"]}  # fmt: skip

    def ask(shell: str, line: str) -> set[str]:
        ended = subprocess.run([*shells[shell], line], env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL,
                               capture_output=True, text=True, timeout=SECONDS, check=False)  # fmt: skip
        assert (ended.returncode, ended.stderr) == (0, "")
        return {found.partition("\t")[0].strip() for found in ended.stdout.splitlines()} - {""}

    return ask


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_sub_commands_and_options_are_those_of_the_parsers(offered: Offered, shell: str) -> None:
    assert {"create", "app", "policy", "doctor"} <= offered(shell, "cagectl ")
    assert offered(shell, "cagectl app re") == {"remote-add", "remote-remove", "remotes", "remove"}
    assert {"--memory", "--exec-home", "--json"} <= offered(shell, "cagectl create --")
    assert offered(shell, "cagectl list --json ") == {"short", "pretty", "off"}
    assert offered(shell, "incage ") == set(incage.PROGRAM.verbs)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "names", "asked"),
    [
        ("enter ", {"vault", "work"}, "cages"),
        ("stop work v", {"vault"}, "cages"),
        ("policy explain vault files.Send ", {"vault", "work"}, "cages"),
        ("app list ", {"vault", "work"}, "cages"),
        ("run --detach work ", {"org.example.Notes"}, "applications"),
        ("app remove work org", {"org.example.Notes"}, "applications"),
    ],
)
def test_names_are_asked_for_when_tab_is_pressed(
    offered: Offered, tmp_path: Path, shell: str, line: str, names: set[str], asked: str
) -> None:
    assert offered(shell, f"cagectl {line}") == names
    questions = [question.split() for question in (tmp_path / "asked").read_text().splitlines()]
    assert {tuple(question[:2]) for question in questions} == {("--complete", asked)}
    if asked == "applications":
        assert all([word for word in question if word[0] != "-"][-1] == "work" for question in questions)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("line", ["create ", "app remote-add ", "app remote-remove "])
def test_no_cage_is_offered_where_none_is_meant(offered: Offered, tmp_path: Path, shell: str, line: str) -> None:
    assert not offered(shell, f"cagectl {line}") & {"vault", "work"}
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_files_are_offered_where_they_are_meant(offered: Offered, tmp_path: Path, shell: str) -> None:
    (tmp_path / "figures.toml").touch()
    assert offered(shell, "cagectl create --from fig") == {"figures.toml"}
    assert offered(shell, "incage send fig") == {"figures.toml"}
