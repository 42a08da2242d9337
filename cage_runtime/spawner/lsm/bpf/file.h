/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Files: whose they are, descriptors that arrive, devices, and what /proc and /sys show.
 *
 * Neither inode_permission nor inode_getattr nor file_permission is here: they cost every stat and read on the host.
 * What a path leads to is the mount namespace's matter; this stands behind it.
 */
#pragma once
#include "context.h"
#include "socket.h"

enum {
	PROC_MAGIC = 0x9fa0,
	SYSFS_MAGIC = 0x62656572,
	TMPFS_MAGIC = 0x01021994,
	MQUEUE_MAGIC = 0x19800202,
	CGROUP_MAGIC = 0x27e0eb,
	CGROUP2_MAGIC = 0x63677270,
	BPF_MAGIC = 0xcafe4a11,
	DEBUGFS_MAGIC = 0x64626720,
	TRACEFS_MAGIC = 0x74726163,
	SECURITYFS_MAGIC = 0x73636673,
	CONFIGFS_MAGIC = 0x62656570,
	PSTORE_MAGIC = 0x6165676c,
	EFIVARFS_MAGIC = 0xde5e81e4,
};

/* File systems by which the kernel itself is looked into and changed. */
static __always_inline bool is_the_kernels(u64 magic)
{
	return magic == BPF_MAGIC || magic == DEBUGFS_MAGIC || magic == TRACEFS_MAGIC || magic == SECURITYFS_MAGIC
	       || magic == CONFIGFS_MAGIC || magic == PSTORE_MAGIC || magic == EFIVARFS_MAGIC;
}

static __always_inline bool is_read_only_for_contexts(u64 magic)
{
	return magic == SYSFS_MAGIC || magic == CGROUP_MAGIC || magic == CGROUP2_MAGIC;
}

/* The label of an inode ends when it leaves the kernel's memory, which on a disk's file system is any time; there, the
 * whole superblock has one. */
static __always_inline u32 file_owner(struct inode *inode)
{
	struct label *label = bpf_inode_storage_get(&inode_labels, inode, 0, 0);
	u32 device;

	if (label)
		return label->xid;
	device = inode->i_sb->s_dev;
	label = bpf_map_lookup_elem(&superblock_labels, &device);
	return label ? label->xid : CORE;
}

/* A file without a label is for the mounts and its mode to decide. */
static __always_inline int may_touch(u32 subject, struct inode *inode, u64 detail)
{
	u32 object = file_owner(inode);

	if (object == CORE && configuration(subject))
		return 0;
	return may(FILE, subject, object, CHANGES, detail);
}

/* Inodes in memory live as long as the file: those of POSIX shared memory, of sockets, of /tmp. */
HOOK(inode_init_security, struct inode *inode, struct inode *directory)
{
	struct label label = { .xid = me() };

	if (label.xid != CORE && inode->i_sb->s_magic == TMPFS_MAGIC)
		bpf_inode_storage_get(&inode_labels, inode, &label, BPF_LOCAL_STORAGE_GET_F_CREATE);
	return -EOPNOTSUPP; /* no extended attribute of ours */
}

/* ---- /proc ---------------------------------------------------------------------------------------------------------- */
/*
 * Of the files of the whole machine, those that applications do not do without: programs size themselves by cpuinfo,
 * meminfo and stat (C library, browsers, language runtimes), `ps` and `top` fail without uptime, loadavg and stat,
 * `mount` and bubblewrap read filesystems, installers version.  net is of the network namespace; sys has boot_id, which
 * libostree reads, and is read only by the rule below.  All others are refused, those of a kernel to come too: they
 * show other cages at work (interrupts, locks, vmstat, pressure, timer_list), or the machine (cmdline, modules, config.gz,
 * iomem), or the kernel (kcore, kallsyms, keys).
 */
static __always_inline bool is_for_contexts(const char *name)
{
	u64 text[2] = {};

	bpf_probe_read_kernel_str(text, sizeof(text), name);
	if (text[0] == word("filesyst") && text[1] == word("ems\0\0\0\0\0"))
		return true;
	/* Read to eight bytes with the zero, each of these ends in the first word. */
	return text[0] == word("cpuinfo") || text[0] == word("meminfo") || text[0] == word("loadavg")
	       || text[0] == word("version") || text[0] == word("uptime\0") || text[0] == word("stat\0\0\0")
	       || text[0] == word("net\0\0\0\0") || text[0] == word("sys\0\0\0\0");
}

/* Of an entry below /proc the one right below it: by what the kernel has, and not by a path, which has mounts in it. */
static __always_inline bool is_entry_for_contexts(struct proc_dir_entry *entry)
{
	struct proc_dir_entry *parent, *above;

	for (int depth = 0; depth < 8; depth++) {
		parent = BPF_CORE_READ(entry, parent);
		if (parent == entry)
			return true; /* /proc itself */
		above = BPF_CORE_READ(parent, parent);
		if (above == parent)
			return is_for_contexts(BPF_CORE_READ(entry, name));
		entry = parent;
	}
	return false;
}

/* The context of the task that /proc/PID is of, by its credential: no trusted pointer leads there on Linux 6.1. */
static __always_inline u32 shown_task(struct pid *pid, u32 subject)
{
	u64 node = (u64)BPF_CORE_READ(pid, tasks[0].first), task;

	if (!node)
		return subject; /* it has ended */
	task = node - bpf_core_field_offset(struct task_struct, pid_links[0]);
	if ((u32)BPF_CORE_READ((struct task_struct *)task, tgid) == bpf_get_current_pid_tgid() >> 32)
		return subject;
	return labelled(&cred_labels, (u64)BPF_CORE_READ((struct task_struct *)task, real_cred));
}

static __noinline int may_see_proc(struct file *file, u32 subject)
{
	struct inode *inode = file->f_inode;
	u64 base = address(inode) - bpf_core_field_offset(struct proc_inode, vfs_inode), name = 0;
	struct proc_inode *proc = (struct proc_inode *)base;
	bool writes = file->f_mode & FMODE_WRITE;
	struct pid *pid = BPF_CORE_READ(proc, pid);
	struct proc_dir_entry *entry;

	if (pid) {
		/* It goes round the protection of memory: what cannot be written could else be written by it. */
		bpf_probe_read_kernel_str(&name, sizeof(name), BPF_CORE_READ(file, f_path.dentry, d_name.name));
		if (writes && name == word("mem\0\0\0\0"))
			return refuse(MEMORY, subject, subject, 0);
		return may(PROC, subject, shown_task(pid, subject), writes ? CHANGES : READS, inode->i_ino);
	}
	/* Those of the whole machine are written by who is root of it, with no capability asked for. */
	if (writes && bpf_get_current_task_btf()->real_cred->user_ns->level == 0)
		return refuse(PROC, subject, CORE, inode->i_ino);
	if (BPF_CORE_READ(proc, sysctl))
		return 0;
	entry = BPF_CORE_READ(proc, pde);
	if (entry && is_entry_for_contexts(entry))
		return 0;
	return refuse(PROC, subject, CORE, inode->i_ino);
}

/* ---- devices -------------------------------------------------------------------------------------------------------- */
static __always_inline bool is_device_for_contexts(u32 mode, u32 device)
{
	u32 major = device >> 20;

	if (mode == S_IFBLK)
		return false;
	return device == DEVICE(1, 3) || device == DEVICE(1, 5) || device == DEVICE(1, 7) /* null, zero, full */
	       || device == DEVICE(1, 8) || device == DEVICE(1, 9)			  /* random, urandom */
	       || device == DEVICE(5, 0) || device == DEVICE(5, 2)			  /* tty, ptmx */
	       || (major >= 136 && major <= 143);					  /* pts/N */
}

/* ---- opened, received, changed -------------------------------------------------------------------------------------- */
/* A message queue's inode is asked for by nobody but who opens it, and made just before, in one step. */
static __always_inline void claim(struct inode *inode, u32 subject)
{
	struct label label = { .xid = subject };
	bpf_inode_storage_get(&inode_labels, inode, &label, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

HOOK(file_open, struct file *file, int ret)
{
	struct inode *inode;
	u32 subject, kind;
	u64 magic;

	if (ret)
		return ret;
	inode = file->f_inode;
	magic = inode->i_sb->s_magic;
	subject = me();
	if (magic == MQUEUE_MAGIC)
		claim(inode, subject);
	if (subject == CORE)
		return 0;
	if (!configuration(subject))
		return refuse(FILE, subject, CORE, inode->i_ino);
	if (magic == PROC_MAGIC)
		return may_see_proc(file, subject);
	if (is_the_kernels(magic) || (file->f_mode & FMODE_WRITE && is_read_only_for_contexts(magic)))
		return refuse(FILE, subject, CORE, inode->i_ino);
	kind = inode->i_mode & S_IFMT;
	if ((kind == S_IFCHR || kind == S_IFBLK) && !is_device_for_contexts(kind, inode->i_rdev))
		return refuse(DEVICE, subject, CORE, inode->i_rdev);
	if (magic == MQUEUE_MAGIC && (inode->i_mode & S_IFMT) == 0100000)
		return may(FILE, subject, file_owner(inode), CHANGES, inode->i_ino);
	return may_touch(subject, inode, inode->i_ino);
}

/* By whatever way a descriptor arrives, as a message or by pidfd_getfd: what the core has opened was its decision to
 * give, and what another context has opened does not come in. */
HOOK(file_receive, struct file *file, int ret)
{
	struct socket *socket;
	struct inode *inode;
	u32 subject, object;

	if (ret)
		return ret;
	subject = me();
	if (subject == CORE)
		return 0;
	inode = file->f_inode;
	object = file_owner(inode);
	socket = bpf_sock_from_file(file);
	if (object == CORE && socket)
		object = socket_owner(socket->sk);
	if (object == CORE)
		object = who_has(file->f_cred);
	if (object == CORE && configuration(subject))
		return 0;
	return may(DESCRIPTOR, subject, object, CHANGES, inode->i_ino);
}

static __always_inline int may_change(struct inode *directory)
{
	u32 subject = me();
	u64 magic;

	if (subject == CORE)
		return 0;
	magic = directory->i_sb->s_magic;
	if (is_the_kernels(magic) || is_read_only_for_contexts(magic))
		return refuse(FILE, subject, CORE, directory->i_ino);
	return may_touch(subject, directory, directory->i_ino);
}

static __always_inline int may_touch_at(struct dentry *dentry)
{
	struct inode *inode = dentry->d_inode; /* NULL where there is none of that name */
	u32 subject = me();

	return subject == CORE || !inode ? 0 : may_touch(subject, inode, inode->i_ino);
}

/* Taken away is the file itself too: in /tmp and among message queues the directory is nobody's. */
static __always_inline int may_remove(struct inode *directory, struct dentry *dentry)
{
	int verdict = may_change(directory);
	return verdict ? verdict : may_touch_at(dentry);
}

HOOK(inode_create, struct inode *directory, struct dentry *dentry, unsigned short mode, int ret)
{
	return ret ? ret : may_change(directory);
}

HOOK(inode_mkdir, struct inode *directory, struct dentry *dentry, unsigned short mode, int ret)
{
	return ret ? ret : may_change(directory);
}

HOOK(inode_mknod, struct inode *directory, struct dentry *dentry, unsigned short mode, u32 device, int ret)
{
	return ret ? ret : may_change(directory);
}

HOOK(inode_symlink, struct inode *directory, struct dentry *dentry, const char *to, int ret)
{
	return ret ? ret : may_change(directory);
}

HOOK(inode_link, struct dentry *from, struct inode *directory, struct dentry *to, int ret)
{
	if (ret)
		return ret;
	ret = may_change(directory);
	return ret ? ret : may_touch_at(from);
}

HOOK(inode_unlink, struct inode *directory, struct dentry *dentry, int ret)
{
	return ret ? ret : may_remove(directory, dentry);
}

HOOK(inode_rmdir, struct inode *directory, struct dentry *dentry, int ret)
{
	return ret ? ret : may_remove(directory, dentry);
}

HOOK(inode_rename, struct inode *from, struct dentry *dentry, struct inode *to, struct dentry *replaced, int ret)
{
	if (ret)
		return ret;
	ret = may_remove(from, dentry);
	return ret ? ret : may_remove(to, replaced);
}

HOOK(path_truncate, const struct path *path, int ret)
{
	return ret ? ret : may_touch_at(path->dentry);
}

HOOK(path_chmod, const struct path *path, unsigned short mode, int ret)
{
	return ret ? ret : may_touch_at(path->dentry);
}

HOOK(path_chown, const struct path *path, u64 uid, u64 gid, int ret)
{
	return ret ? ret : may_touch_at(path->dentry);
}

HOOK(path_notify, const struct path *path, u64 mask, unsigned int kind, int ret)
{
	return ret ? ret : may_touch_at(path->dentry);
}
