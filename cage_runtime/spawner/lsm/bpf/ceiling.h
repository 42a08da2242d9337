/* SPDX-License-Identifier: GPL-2.0-only */
/* What no context may, whatever its capabilities; and what one may in namespaces of its own. */
#pragma once
#include "context.h"

static __always_inline int my_depth(void)
{
	return bpf_get_current_task_btf()->real_cred->user_ns->level;
}

/* Does the kernel itself ask, with credentials that it has put on: of an overlay, those of whoever mounted it? */
static __always_inline bool is_asked_by_the_kernel(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	return task->cred != task->real_cred;
}

/* Against the host's namespace, none.  What the kernel asks for itself is answered the same, and is nobody's try. */
HOOK(capable, const struct cred *cred, struct user_namespace *namespace, int capability, unsigned int options, int ret)
{
	struct context *context;
	u32 subject;

	if (ret)
		return ret;
	subject = me();
	if (subject == CORE)
		return 0;
	context = configuration(subject);
	if (context && namespace->level > 0 && capability >= 0 && capability < 64
	    && (context->namespace_capabilities >> (capability & 63)) & 1)
		return 0;
	if (options & CAP_OPT_NOAUDIT || is_asked_by_the_kernel())
		return -EPERM;
	return refuse(CAPABILITY, subject, CORE, capability);
}

/* The credential is the one to be; its namespace is still the one in which the new one is made. */
HOOK(userns_create, const struct cred *cred, int ret)
{
	struct context *context;
	u32 subject, depth;

	if (ret)
		return ret;
	subject = me();
	if (subject == CORE)
		return 0;
	context = configuration(subject);
	depth = cred->user_ns->level + 1;
	if (context && depth <= context->user_namespace_depth)
		return 0;
	return refuse(NAMESPACE, subject, CORE, depth);
}

/* ---- mounts --------------------------------------------------------------------------------------------------------- */
enum { MS_REMOUNT = 32, MS_BIND = 1 << 12, MS_MOVE = 1 << 13, MS_PROPAGATION = 0xf << 17 };

/* What bubblewrap mounts, and cage-init. */
static __always_inline bool is_type_for_contexts(u64 text[2])
{
	return text[1] == 0 && (text[0] == word("tmpfs\0\0") || text[0] == word("proc\0\0\0")
				|| text[0] == word("devpts\0") || text[0] == word("mqueue\0"));
}

/* `type` may be NULL, where what is there already is shown elsewhere; `depth` is of the user namespace that owns it. */
static __always_inline int may_mount(const char *type, int depth)
{
	u32 subject = me();
	u64 text[2] = {};

	if (subject == CORE)
		return 0;
	if (type)
		bpf_probe_read_kernel_str(text, sizeof(text), type);
	if (configuration(subject) && depth > 0 && (!type || is_type_for_contexts(text)))
		return 0;
	return refuse(MOUNT, subject, CORE, text[0]);
}

HOOK(sb_mount, const char *device, const struct path *path, const char *type, unsigned long flags, void *data, int ret)
{
	if (ret)
		return ret;
	if (flags & (MS_REMOUNT | MS_BIND | MS_MOVE | MS_PROPAGATION))
		return may_mount(0, my_depth());
	return may_mount((const char *)address(type), my_depth());
}

/* Of fsopen(2) and its kin this is seen, when a superblock is made, and move_mount(2), which shows it.  A new IPC
 * namespace makes one too, before its maker is in the user namespace that owns it. */
HOOK(sb_set_mnt_opts, struct super_block *sb, void *options, unsigned long flags, unsigned long *set, int ret)
{
	return ret ? ret : may_mount(sb->s_type->name, sb->s_user_ns->level);
}

HOOK(sb_kern_mount, struct super_block *sb, int ret)
{
	return ret ? ret : may_mount(sb->s_type->name, sb->s_user_ns->level);
}

HOOK(sb_remount, struct super_block *sb, void *options, int ret)
{
	return ret ? ret : may_mount(0, my_depth());
}

HOOK(move_mount, const struct path *from, const struct path *to, int ret)
{
	return ret ? ret : may_mount(0, my_depth());
}

HOOK(sb_umount, void *mount, int flags, int ret)
{
	return ret ? ret : may_mount(0, my_depth());
}

HOOK(sb_pivotroot, const struct path *old, const struct path *new, int ret)
{
	return ret ? ret : may_mount(0, my_depth());
}

/* ---- the machine's ---------------------------------------------------------------------------------------------------- */
/* Where arguments differ between kernels, so does the place of what earlier modules have said: it is not read there,
 * and they are asked first anyhow. */
SEC("lsm/bpf") int BPF_PROG(cage_bpf, int command)
{
	return never(BPF, command);
}

SEC("lsm/perf_event_open") int cage_perf_event_open(u64 *context)
{
	return never(PERF, 0);
}

HOOK(uring_override_creds, const struct cred *new, int ret)
{
	return ret ? ret : never(IO_URING, 1);
}

HOOK(uring_sqpoll, int ret)
{
	return ret ? ret : never(IO_URING, 2);
}

SEC("lsm/uring_cmd") int cage_uring_cmd(u64 *context)
{
	return never(IO_URING, 3);
}

/* Since Linux 6.16; before, io_uring_setup(2) itself is for seccomp to refuse. */
HOOK(uring_allowed, int ret)
{
	return ret ? ret : never(IO_URING, 0);
}

HOOK(syslog, int type, int ret)
{
	return ret ? ret : never(SYSLOG, type);
}

HOOK(settime, const void *time, const void *zone, int ret)
{
	return ret ? ret : never(TIME, 0);
}

HOOK(kernel_module_request, char *name, int ret)
{
	return ret ? ret : never(MODULE, 0);
}

HOOK(kernel_load_data, int kind, bool contents, int ret)
{
	return ret ? ret : never(MODULE, 1);
}

HOOK(kernel_read_file, struct file *file, int kind, bool contents, int ret)
{
	return ret ? ret : never(MODULE, 2);
}

HOOK(quotactl, int commands, int type, int id, const struct super_block *sb, int ret)
{
	return ret ? ret : never(QUOTA, commands);
}

HOOK(quota_on, struct dentry *dentry, int ret)
{
	return ret ? ret : never(QUOTA, 0);
}

HOOK(locked_down, int what, int ret)
{
	return ret ? ret : never(LOCKDOWN, what);
}
