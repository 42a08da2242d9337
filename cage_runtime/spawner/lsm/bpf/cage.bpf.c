/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Security contexts: a Linux security module made of BPF programs, one for each hook that it needs.
 *
 * Namespaces part names; contexts part permission.  Every task of a cage has the cage's context, its number is the xid,
 * and everything that a cage makes has it too.  Who has none is the core: the host, which this leaves alone.  Tasks of
 * different contexts cannot touch each other even where they share every namespace and every uid, and have every
 * capability.  Rules come from a configuration for each context; where there is none, everything is refused.
 *
 * GPL, because the kernel gives the helpers that are needed to nothing else.
 */
#include "task.h"

#include "socket.h"

#include "object.h"

#include "file.h"

#include "execute.h"

#include "ceiling.h"

char LICENSE[] SEC("license") = "GPL";
