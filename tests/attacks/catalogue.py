# SPDX-License-Identifier: LGPL-2.1-or-later
"""The catalogue of attacks: what someone inside a cage tries, by number, and where it is tried.

An attack of which the probe tells something alone is in expected.py; `TRIED` names the tests of everything else.
"""

from __future__ import annotations

from enum import StrEnum


class Group(StrEnum):
    """As the catalogue is divided."""

    ENTRY = "A the runtime and entry"
    CALLS = "B system calls"
    KERNEL = "C the shared kernel, covert channels"
    BUS = "D bus, portals, descriptors"
    CONTEXTS = "E without namespaces"


TITLES: dict[int, str] = {
    1: "the program that enters is overwritten", 2: "descriptors and directories of the host in who enters",
    3: "environment and memory of who enters", 4: "root and cwd of who joins", 5: "the directory to begin in",
    6: "devices swapped while they are masked or bound", 7: "a mount target swapped during set-up",
    8: "cgroup v1 and its release agent", 9: "control files of cgroups", 10: "settings of the kernel",
    11: "configuration for the runtime from inside", 12: "names that are paths", 13: "storage from another uid",
    14: "fake instances, pids used again", 15: "/etc through links", 16: "policy and autostart from inside",
    17: "setuid", 18: "two cages with one host uid", 19: "signals and ptrace to others", 20: "what does not end",
    21: "terminals", 22: "namespaces and the mount API", 23: "keys", 24: "kernel interfaces that nobody needs",
    25: "other processes' memory", 26: "personality and old hardware calls", 27: "file handles",
    28: "execution of what can be written", 29: "mounts undone", 30: "socket families", 31: "own seccomp filters",
    32: "capabilities", 33: "user namespaces in user namespaces", 34: "core dumps, limits, priorities",
    35: "locks on namespaces", 36: "locks on shared files", 37: "watches on shared files", 38: "the page cache",
    39: "/proc tells of the machine", 40: "identifiers of the host", 41: "/sys", 42: "sockets and IPC by name",
    43: "loopback, host services, networks", 44: "exhaustion", 51: "sockets in the file system",
    54: "another context's processes and objects, all namespaces shared",
}


def group_of(attack: int) -> Group:
    for last, group in ((20, Group.ENTRY), (34, Group.CALLS), (44, Group.KERNEL), (53, Group.BUS)):
        if attack <= last:
            return group
    return Group.CONTEXTS


TRIED: dict[int, tuple[str, ...]] = {
    1: ("attacks/test_entry.py::test_the_program_that_enters_is_not_the_hosts",),
    2: ("attacks/test_entry.py::test_nothing_of_the_host_is_in_a_process_that_comes_to_be",
        "attacks/test_wall.py::test_a_command_has_three_descriptors_of_the_cage"),
    3: ("attacks/test_entry.py::test_nothing_of_somebody_elses_can_be_looked_into",
        "attacks/test_entry.py::test_a_mediator_s_half_can_not_be_looked_into",
        "attacks/test_wall.py::test_the_environment_is_exactly_the_rebuilt_one"),
    4: ("attacks/test_entry.py::test_nothing_of_the_host_is_in_a_process_that_comes_to_be",),
    5: ("attacks/test_entry.py::test_a_directory_to_begin_in_is_one_of_the_cage",
        "attacks/test_entry.py::test_a_directory_that_is_renamed_or_removed_leads_nowhere_else"),
    6: ("attacks/test_host_side.py::test_no_step_of_a_root_follows_a_link_that_is_put_there",),
    7: ("attacks/test_host_side.py::test_no_step_of_a_root_follows_a_link_that_is_put_there",
        "attacks/test_host_side.py::test_links_in_a_home_are_not_followed_by_whoever_starts_or_ends_the_cage",),
    11: ("attacks/test_host_side.py::test_a_cage_that_ships_configuration_is_run_as_before",),
    12: ("attacks/test_host_side.py::test_a_name_that_is_a_path_is_refused_before_anything_is_opened",
         "privileged/test_life.py::test_a_name_that_cannot_be_is_refused"),
    13: ("attacks/test_host_side.py::test_storage_and_instances_are_nobody_elses",),
    14: ("attacks/test_host_side.py::test_an_instance_that_is_not_one_is_not_joined",
         "attacks/test_host_side.py::test_no_record_of_an_instance_has_a_pid_in_it"),
    16: ("attacks/test_host_side.py::test_a_cage_that_ships_configuration_is_run_as_before",
         "attacks/test_host_side.py::test_the_cages_root_has_no_configuration_to_write_either"),
    17: ("attacks/test_wall.py::test_a_setuid_program_has_no_effect",),
    18: ("privileged/test_life.py::test_ranges_are_disjoint_recorded_and_not_handed_out_twice",
         "privileged/test_storage.py::test_two_homes_with_one_range_are_not_used"),
    19: ("attacks/test_wall.py::test_signals_to_all_reach_nobody_else",),
    20: ("attacks/test_end.py::test_a_cage_is_destroyed_at_once",
         "attacks/test_end.py::test_a_process_that_cannot_be_killed_holds_nobody_else_up",
         "privileged/test_life.py::test_a_fork_bomb_is_bounded_and_destroyed_at_once"),
    24: ("attacks/test_numbers.py::test_every_number_is_answered_as_written",
         "attacks/test_numbers.py::test_another_way_in_is_the_end_of_the_process"),
    28: ("kernels/lsm/test_attacks.py::test_what_gets_through_without_a_context_is_held",),
    33: ("kernels/lsm/test_attacks.py::test_what_gets_through_without_a_context_is_held",),
    34: ("attacks/test_wall.py::test_limits_are_a_command_s_own",),
    35: ("attacks/test_company.py::test_two_cages_do_not_meet",
         "attacks/test_wall.py::test_every_namespace_is_its_own"),
    36: ("attacks/test_company.py::test_two_cages_do_not_meet",
         "attacks/test_company.py::test_within_one_cage_the_same_things_are_met"),
    37: ("attacks/test_company.py::test_two_cages_do_not_meet",),
    39: ("kernels/lsm/test_attacks.py::test_what_gets_through_without_a_context_is_held",),
    42: ("attacks/test_company.py::test_two_cages_do_not_meet",),
    43: ("attacks/test_company.py::test_two_cages_do_not_meet",),
    44: ("attacks/test_exhaust.py::test_only_the_culprit_suffers",
         "attacks/test_wall.py::test_terminals_run_out_for_the_cage_alone"),
    # On the stock kernels of small guests: scripts/kernel-test.
    54: ("kernels/lsm/test_isolation.py::test_what_is_done_to_another_context_is_refused",
         "kernels/lsm/test_isolation.py::test_shared_memory_of_posix_is_for_who_made_it",
         "kernels/lsm/test_descriptors.py::test_what_another_context_has_opened_does_not_arrive"),
}
