# SPDX-License-Identifier: LGPL-2.1-or-later
"""One target under atheris, which looks at which lines its inputs come to: scripts/fuzz starts this, once a target.

run.py TARGET SECONDS FOUND FAULTS: FOUND is the folder for inputs that come to something new, FAULTS that for those at
which the target fails.  The first of these ends it, with a status that is not 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

from tests.fuzz import inputs

SECONDS_EACH = 10
"""An input that takes longer is a fault too."""
OTHERS = ("configparser", "ipaddress", "json", "urllib")
"""What of Python itself takes bytes of cages apart."""
MEMORY = 1024
"""MiB, likewise."""


def main(name: str, seconds: str, found: str, faults: str) -> None:
    atheris.enabled_hooks.add("str")  # so that it sees with what startswith() and the like compare
    with atheris.instrument_imports(include=[*inputs.OURS, *OTHERS]):
        module = inputs.target(name)
    for folder in (found, faults):
        Path(folder).mkdir(parents=True, exist_ok=True)
    kept = inputs.KEPT / name
    kept.mkdir(exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={faults}/", f"-timeout={SECONDS_EACH}",
               f"-rss_limit_mb={MEMORY}", f"-max_len={inputs.INPUT_BYTES_MAX}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, found, str(kept)], lambda untrusted: inputs.attempt(module, untrusted))
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
