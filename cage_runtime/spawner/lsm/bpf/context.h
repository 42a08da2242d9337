/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who is it, and may it: contexts, the labels of tasks and objects, and the one place where a refusal is counted.
 *
 * Law of this file: what has no label is the core's; what has one whose context is not configured may do nothing.
 * Everything that a context can make grow has a bound of its own, so that it cannot use up what others need.
 */
#pragma once
#include "kernel.h"

/* Law: contexts.py and operations.py say the same; a test compares them. */
enum { CORE = 0, WATCH = 1, ANSWERS = 2, FIRST = 16 };
enum { CONTEXTS = 4096 };               /* at a time; a power of two */
enum { UNCONFIGURED = FIRST - 1 };      /* the place where their refusals are counted */
enum { CREDS = 1 << 20, CREDS_OF_ONE = 1 << 14 };
enum { OBJECTS = 1 << 18, OBJECTS_OF_ONE = 1 << 12 };
enum { EVENTS_A_SECOND = 16, EVENT_BYTES = 1 << 18 };

enum operation {
	PTRACE, KILL, CONNECT, SEND, SCHEDULE, LIMIT, IPC, KEY, FILE, DESCRIPTOR, BPF, MOUNT, NAMESPACE, SOCKET,
	CAPABILITY, EXECUTE, MEMORY, PROC, DEVICE, IO_URING, PERF, SYSLOG, TIME, MODULE, QUOTA, LOCKDOWN, FORK,
	OPERATIONS = 32
};

enum { EXECUTE_WRITABLE = 1, PRIVATE = 2, WATCHES = 4 };

struct context {
	u32 xid;   /* another's or 0: this one is not configured */
	u32 flags;
	u64 namespace_capabilities;
	u64 families;
	u32 user_namespace_depth;
	u32 creds; /* in the map below */
	u32 objects;
	u32 events; /* sent in this second */
	u64 second;
	u64 unsent;
	u64 spare[2];
	u64 denied[OPERATIONS];
};
struct label {
	u32 xid;
};
struct event {
	u64 when; /* nanoseconds of CLOCK_MONOTONIC */
	u64 detail;
	u32 xid;
	u32 object;
	u32 operation;
	u32 pid;
	char comm[16];
};

/* An xid's place is its lower bits: an array is looked up by the instruction, not by a call. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CONTEXTS);
	__type(key, u32);
	__type(value, struct context);
} contexts SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} next_xid SEC(".maps"); /* the loader's alone */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, u32);
	__type(value, u64);
} program_tags SEC(".maps"); /* the loader's alone */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct label);
} task_labels SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE); /* what is accepted has the listener's */
	__type(key, int);
	__type(value, struct label);
} socket_labels SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_INODE_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct label);
} inode_labels SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * CONTEXTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u32); /* the device number */
	__type(value, struct label);
} superblock_labels SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CREDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64); /* the address */
	__type(value, struct label);
} cred_labels SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, OBJECTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, u64); /* the address */
	__type(value, struct label);
} object_labels SEC(".maps"); /* keys, and what System V IPC has */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENT_BYTES);
} events SEC(".maps");

/* ---- who is it ---------------------------------------------------------------------------------------------------- */
static __always_inline u32 labelled(void *map, u64 key)
{
	struct label *label = bpf_map_lookup_elem(map, &key);
	return label ? label->xid : CORE;
}

static __always_inline u32 who_has(const struct cred *cred)
{
	return labelled(&cred_labels, address(cred));
}

/*
 * Asked twice.  Before Linux 6.2 a look into a task's storage finds nothing when it has interrupted another one on the
 * same processor, as it can in a kernel with full preemption: 5 % of what must be refused got through.  Credentials are
 * in a plain map, and every task has some.
 */
static __noinline u32 who(struct task_struct *task)
{
	struct label *label = bpf_task_storage_get(&task_labels, task, 0, 0);
	u64 key;

	if (label)
		return label->xid == ANSWERS ? CORE : label->xid;
	key = (u64)task->real_cred;
	return labelled(&cred_labels, key);
}

static __always_inline u32 me(void)
{
	return who(bpf_get_current_task_btf());
}

/* The process of the core that writes its answers to system calls into the memory of cages, of private ones too.  In all
 * else it is the core. */
static __always_inline bool i_answer(void)
{
	struct label *label = bpf_task_storage_get(&task_labels, bpf_get_current_task_btf(), 0, 0);
	return label && label->xid == ANSWERS;
}

static __always_inline struct context *place(u32 number)
{
	u32 key = number & (CONTEXTS - 1);
	return bpf_map_lookup_elem(&contexts, &key);
}

/* NULL: it may do nothing.  Not for the core, which has no configuration. */
static __always_inline struct context *configuration(u32 xid)
{
	struct context *context = place(xid);
	return context && context->xid == xid ? context : 0;
}

/* ---- may it --------------------------------------------------------------------------------------------------------- */
/* Of a flood of refusals the counter has all, and the reader of events so many a second of each context. */
static __always_inline bool is_told(struct context *context)
{
	u64 second = bpf_ktime_get_ns() >> 30;

	if (context->second != second) {
		context->second = second;
		context->events = 0;
	}
	if (context->events >= EVENTS_A_SECOND)
		return false;
	context->events++;
	return true;
}

static __noinline int refuse(u32 operation, u32 subject, u32 object, u64 detail)
{
	struct context *context = subject == CORE ? place(CORE) : configuration(subject);
	struct event *event = 0;

	if (!context)
		context = place(UNCONFIGURED);
	if (!context)
		return -EPERM;
	__sync_fetch_and_add(&context->denied[operation & (OPERATIONS - 1)], 1);
	if (is_told(context))
		event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&context->unsent, 1);
		return -EPERM;
	}
	event->when = bpf_ktime_get_ns();
	event->detail = detail;
	event->xid = subject;
	event->object = object;
	event->operation = operation;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
	return -EPERM;
}

enum access { CHANGES, READS };

/* May `subject` act on what is of the context `object`?  The rule of all of it. */
static __noinline int may(u32 operation, u32 subject, u32 object, enum access access, u64 detail)
{
	struct context *context, *its;

	if (subject == CORE)
		return 0;
	context = configuration(subject);
	if (context && subject == object)
		return 0;
	if (context && access == READS && (context->flags & WATCHES)) {
		its = object == CORE ? 0 : configuration(object);
		if (its && !(its->flags & PRIVATE))
			return 0;
	}
	return refuse(operation, subject, object, detail);
}

/* What no context may do at all. */
static __always_inline int never(u32 operation, u64 detail)
{
	u32 subject = me();
	return subject == CORE ? 0 : refuse(operation, subject, CORE, detail);
}

/* ---- labels by address ---------------------------------------------------------------------------------------------- */
enum counted { A_CRED, AN_OBJECT };

static __always_inline void *labels_of(enum counted kind)
{
	return kind == A_CRED ? (void *)&cred_labels : (void *)&object_labels;
}

static __always_inline u32 *count_of(struct context *context, enum counted kind)
{
	return kind == A_CRED ? &context->creds : &context->objects;
}

static __noinline void unlabel(enum counted kind, u64 key)
{
	struct label *label = kind == A_CRED ? bpf_map_lookup_elem(&cred_labels, &key)
					     : bpf_map_lookup_elem(&object_labels, &key);
	struct context *context;
	u32 xid;

	if (!label)
		return;
	xid = label->xid;
	/* Only who takes it out counts it; it fails where it has interrupted another change near by, see `label`. */
	if (kind == A_CRED ? bpf_map_delete_elem(&cred_labels, &key) : bpf_map_delete_elem(&object_labels, &key))
		return;
	context = configuration(xid);
	if (context)
		__sync_fetch_and_add(count_of(context, kind), -1);
}

/*
 * What the current task makes is its context's.  Whatever was at this address before is forgotten first, for the core
 * too: a label that could not be taken away in time would else be the new object's.
 */
static __noinline int label(enum counted kind, u64 key)
{
	u32 subject = me(), limit = kind == A_CRED ? CREDS_OF_ONE : OBJECTS_OF_ONE;
	struct label label = { .xid = subject };
	struct context *context;

	unlabel(kind, key);
	if (subject == CORE)
		return 0;
	context = configuration(subject);
	if (!context)
		return refuse(FORK, subject, CORE, kind);
	if (*count_of(context, kind) >= limit) {
		refuse(FORK, subject, subject, kind);
		return -ENOMEM;
	}
	__sync_fetch_and_add(count_of(context, kind), 1);
	if (kind == A_CRED ? bpf_map_update_elem(&cred_labels, &key, &label, BPF_ANY)
			   : bpf_map_update_elem(&object_labels, &key, &label, BPF_ANY)) {
		__sync_fetch_and_add(count_of(context, kind), -1);
		return -ENOMEM;
	}
	return 0;
}

/*
 * A hook's program: `ret` is what the modules before it have said, and a refusal of theirs stands.  HOOK's arguments
 * are the hook's, with `int ret` after them.
 */
#define HOOK(name, ...) SEC("lsm/" #name) int BPF_PROG(cage_##name, ##__VA_ARGS__)
