# SPDX-License-Identifier: LGPL-2.1-or-later
"""cagectl: the command with which a person creates, uses and destroys cages."""

from __future__ import annotations

from cage_runtime.cli.command import Program

PROGRAM = Program(
    name="cagectl",
    purpose="Cages hold work of different sensitivity apart on one machine.",
    completes=True,
    closing="See cagectl(1) for what each exit status means.",
    asks=True,
    verbs={
        "create": ("verbs_cage", "define a cage, give it storage, start it"),
        "start": ("verbs_cage", "start cages"),
        "stop": ("verbs_cage", "stop cages; their homes stay"),
        "enable": ("verbs_cage", "have cages started with the host"),
        "disable": ("verbs_cage", "have cages started by request alone"),
        "pause": ("verbs_cage", "freeze every process of cages"),
        "resume": ("verbs_cage", "let paused cages go on"),
        "kill": ("verbs_cage", "end every process of cages at once"),
        "destroy": ("verbs_cage", "stop cages and delete all they hold"),
        "enter": ("verbs_session", "a shell or a command in a cage"),
        "run": ("verbs_session", "a Flatpak application in a cage"),
        "cp": ("verbs_copy", "files into a cage, or out of it"),
        "app remote-add": ("verbs_app", "name a signed repository of applications"),
        "app remote-remove": ("verbs_app", "forget a repository and its key"),
        "app remotes": ("verbs_app", "the repositories known here"),
        "app install": ("verbs_app", "install an application in a cage"),
        "app update": ("verbs_app", "bring a cage's applications up to date"),
        "app remove": ("verbs_app", "remove an application from a cage"),
        "app list": ("verbs_app", "the applications of a cage"),
        "list": ("verbs_show", "the cages of this host"),
        "status": ("verbs_show", "how a cage does, or all of them"),
        "show": ("verbs_show", "the definition of a cage"),
        "logs": ("verbs_show", "what befell a cage, and what its detached programs wrote"),
        "policy check": ("verbs_proof", "faults, leaks and dead rules of the policy"),
        "policy explain": ("verbs_proof", "what would be decided, and by which rule"),
        "policy simulate": ("verbs_proof", "the same by a policy that is not installed"),
        "policy diff": ("verbs_proof", "what another policy would let happen otherwise"),
        "policy reload": ("verbs_policy", "read the policy files again"),
        "graph": ("verbs_proof", "cages, levels and allowed flows as a picture"),
        "prompts list": ("verbs_prompts", "what your cages ask for"),
        "prompts answer": ("verbs_prompts", "allow or deny it"),
        "grants list": ("verbs_prompts", "answers that stand, and for how long"),
        "grants revoke": ("verbs_prompts", "have an answer stand no more"),
        "audit tail": ("verbs_policy", "the last records of what was decided and done"),
        "audit verify": ("verbs_policy", "is the record whole?"),
        "audit key": ("verbs_receipt", "the public key of the receipts of this host"),
        "audit verify-receipt": ("verbs_receipt", "is this receipt one of this host, or of a key?"),
        "doctor": ("verbs_show", "what this host offers, what is missing, how to fix it"),
        "version": ("verbs_show", "the version of this command"),
    },
)


def main(argv: list[str] | None = None) -> int:
    return PROGRAM.main(argv)
