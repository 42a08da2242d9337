/* SPDX-License-Identifier: GPL-2.0-only */
/* Tasks: a context is inherited and never shed; one context does not touch another's tasks. */
#pragma once
#include "context.h"

HOOK(task_alloc, struct task_struct *task, unsigned long flags, int ret)
{
	struct label label = {};
	u64 key;

	if (ret)
		return ret;
	label.xid = me();
	if (label.xid == CORE)
		return 0;
	if (!configuration(label.xid))
		return refuse(FORK, label.xid, CORE, flags);
	if (bpf_task_storage_get(&task_labels, task, &label, BPF_LOCAL_STORAGE_GET_F_CREATE))
		return 0;
	/* What has no label is not made.  This fails without need where `who` would, and the credential that the child
	 * has by now is enough. */
	key = (u64)task->real_cred;
	if (labelled(&cred_labels, key) == label.xid)
		return 0;
	refuse(FORK, label.xid, label.xid, flags);
	return -ENOMEM;
}

/* Credentials of a labelled task are labelled: they tell who has opened a file, and who a task is (see `who`). */
HOOK(cred_prepare, struct cred *new, const struct cred *old, unsigned int gfp, int ret)
{
	if (ret)
		return ret;
	return label(A_CRED, address(new));
}

/* Made blank, and filled afterwards: what keyctl(2) gives to the caller's parent, KEYCTL_SESSION_TO_PARENT. */
HOOK(cred_alloc_blank, struct cred *new, unsigned int gfp, int ret)
{
	if (ret)
		return ret;
	return label(A_CRED, address(new));
}

SEC("lsm/cred_free") int BPF_PROG(cage_cred_free, struct cred *cred)
{
	unlabel(A_CRED, address(cred));
	return 0;
}

/* Also what /proc shows of a task: its memory, environment, descriptors, root, namespaces. */
HOOK(ptrace_access_check, struct task_struct *child, unsigned int mode, int ret)
{
	u32 subject, object;
	struct context *its;

	if (ret)
		return ret;
	subject = me();
	object = who(child);
	if (subject == CORE) {
		/* Nobody walks into a private cage, the host's root no more than others. */
		its = object == CORE ? 0 : configuration(object);
		if (!its || !(its->flags & PRIVATE) || i_answer())
			return 0;
		return mode & PTRACE_MODE_NOAUDIT ? -EPERM : refuse(PTRACE, subject, object, mode);
	}
	if (mode & PTRACE_MODE_NOAUDIT && subject != object)
		return -EPERM;
	return may(PTRACE, subject, object, mode & PTRACE_MODE_ATTACH ? CHANGES : READS, mode);
}

/* Who is made the tracer is the one that could act. */
HOOK(ptrace_traceme, struct task_struct *parent, int ret)
{
	u32 subject;

	if (ret)
		return ret;
	subject = me();
	if (subject == CORE)
		return may(PTRACE, who(parent), subject, CHANGES, 0);
	return may(PTRACE, subject, who(parent), CHANGES, 0);
}

/* Signals of the kernel itself, as cgroup.kill and a terminal send them, do not come by here. */
HOOK(task_kill, struct task_struct *task, void *info, int signal, const struct cred *cred, int ret)
{
	if (ret)
		return ret;
	return may(KILL, me(), who(task), signal ? CHANGES : READS, signal);
}

/* A file's signal comes at any time, from whatever runs then: it is for the context that opened the file. */
enum { F_SETOWN = 8, F_SETSIG = 10, F_SETOWN_EX = 15, FIOSETOWN = 0x8901, SIOCSPGRP = 0x8902 };

static __always_inline int may_aim(struct file *file, u64 detail)
{
	u32 subject = me();
	return subject == CORE ? 0 : may(KILL, subject, who_has(file->f_cred), CHANGES, detail);
}

HOOK(file_fcntl, struct file *file, unsigned int command, unsigned long argument, int ret)
{
	if (ret || (command != F_SETOWN && command != F_SETOWN_EX && command != F_SETSIG))
		return ret;
	return may_aim(file, command);
}

HOOK(file_ioctl, struct file *file, unsigned int command, unsigned long argument, int ret)
{
	if (ret || (command != FIOSETOWN && command != SIOCSPGRP))
		return ret;
	return may_aim(file, command);
}

/* Linux 6.12 has moved the owner out of the file; there it says itself which file it is of. */
struct fown_struct {
	struct file *file;
} CORE_READABLE;
struct file___before_6_12 {
	struct fown_struct f_owner;
} CORE_READABLE;

HOOK(file_send_sigiotask, struct task_struct *task, struct fown_struct *owner, int signal, int ret)
{
	u64 file, cred = 0;
	u32 subject, object;

	if (ret)
		return ret;
	if (bpf_core_field_exists(owner->file))
		file = (u64)BPF_CORE_READ(owner, file);
	else
		file = address(owner) - bpf_core_field_offset(struct file___before_6_12, f_owner);
	if (file)
		cred = (u64)BPF_CORE_READ((struct file *)file, f_cred);
	subject = labelled(&cred_labels, cred);
	object = who(task);
	if (subject == object)
		return 0;
	return refuse(KILL, subject, object, signal);
}

HOOK(task_setnice, struct task_struct *task, int nice, int ret)
{
	return ret ? ret : may(SCHEDULE, me(), who(task), CHANGES, nice);
}

HOOK(task_setioprio, struct task_struct *task, int priority, int ret)
{
	return ret ? ret : may(SCHEDULE, me(), who(task), CHANGES, priority);
}

HOOK(task_getioprio, struct task_struct *task, int ret)
{
	return ret ? ret : may(SCHEDULE, me(), who(task), READS, 0);
}

HOOK(task_setscheduler, struct task_struct *task, int ret)
{
	return ret ? ret : may(SCHEDULE, me(), who(task), CHANGES, 0);
}

HOOK(task_getscheduler, struct task_struct *task, int ret)
{
	return ret ? ret : may(SCHEDULE, me(), who(task), READS, 0);
}

HOOK(task_movememory, struct task_struct *task, int ret)
{
	return ret ? ret : may(SCHEDULE, me(), who(task), CHANGES, 0);
}

HOOK(task_setpgid, struct task_struct *task, int group, int ret)
{
	return ret ? ret : may(SCHEDULE, me(), who(task), CHANGES, group);
}

HOOK(task_getpgid, struct task_struct *task, int ret)
{
	return ret ? ret : may(SCHEDULE, me(), who(task), READS, 0);
}

HOOK(task_getsid, struct task_struct *task, int ret)
{
	return ret ? ret : may(SCHEDULE, me(), who(task), READS, 0);
}

HOOK(task_setrlimit, struct task_struct *task, unsigned int resource, void *limit, int ret)
{
	return ret ? ret : may(LIMIT, me(), who(task), CHANGES, resource);
}

HOOK(task_prlimit, const struct cred *cred, const struct cred *its, unsigned int flags, int ret)
{
	if (ret)
		return ret;
	return may(LIMIT, me(), who_has(its), flags & PRLIMIT_WRITE ? CHANGES : READS, flags);
}
