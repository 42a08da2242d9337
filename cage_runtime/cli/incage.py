# SPDX-License-Identifier: LGPL-2.1-or-later
"""incage: the command for someone inside a cage, who asks the core through its mediators."""

from __future__ import annotations

from cage_runtime.cli.command import Program

PROGRAM = Program(
    name="incage",
    purpose="What this cage may ask of the core, the only way to other cages.",
    closing="Exit status: 0, 1 failed, 2 usage, 125 the runtime, 126 refused by policy.",
    verbs={
        "agent": ("verbs_incage_agent", "an SSH agent whose keys are in another cage"),
        "call": ("verbs_incage_call", "call a service of another cage"),
        "cancel": ("verbs_incage_jobs", "cancel what is being sent"),
        "copy": ("verbs_incage_clipboard", "offer standard input to another cage, once"),
        "decrypt": ("verbs_incage_decrypt", "read a file that was encrypted on its way here"),
        "keygen": ("verbs_incage_decrypt", "make the private key for that, and print the public one"),
        "jobs": ("verbs_incage_jobs", "what is being sent, and how far it is"),
        "open": ("verbs_incage_open", "open a link or a file in another cage"),
        "paste": ("verbs_incage_clipboard", "print what another cage offers"),
        "send": ("verbs_incage_files", "send files and trees to another cage, into its ~/Inbox/"),
        "move": ("verbs_incage_files", "the same, and remove here what has arrived"),
        "verify-receipt": ("verbs_receipt", "is this receipt one of the host that has the key?"),
        "log": ("verbs_incage_log", "write lines into the host's journal"),
        "notify": ("verbs_incage_notify", "show a notification on the desktop of whose cage this is"),
        "whoami": ("verbs_incage", "what this cage is, and what it may ask for"),
    },
)


def main(argv: list[str] | None = None) -> int:
    return PROGRAM.main(argv)
