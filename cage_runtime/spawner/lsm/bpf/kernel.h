/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs see of the kernel's structures: names only.  libbpf relocates every offset against the types of the
 * running kernel (CO-RE), so that one object fits Linux 6.1 and later, and no generated header is needed to build it.
 */
#pragma once
#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

typedef __u32 u32;
typedef __u64 u64;

/* An attribute of each structure, and not a pragma around them: what does not know it fails, instead of building wrong
 * offsets. */
#define CORE_READABLE __attribute__((preserve_access_index))

struct hlist_node {
	struct hlist_node *next;
} CORE_READABLE;
struct hlist_head {
	struct hlist_node *first;
} CORE_READABLE;

struct user_namespace {
	int level; /* 0 is the host's */
} CORE_READABLE;
struct cred {
	struct user_namespace *user_ns;
} CORE_READABLE;
struct pid {
	struct hlist_head tasks[4]; /* by type; 0 are processes */
} CORE_READABLE;
struct task_struct {
	int tgid;
	const struct cred *real_cred;
	const struct cred *cred;
	struct hlist_node pid_links[4];
} CORE_READABLE;

struct qstr {
	const unsigned char *name;
} CORE_READABLE;
struct file_system_type {
	const char *name;
} CORE_READABLE;
struct super_block {
	u32 s_dev;
	unsigned long s_flags;
	unsigned long s_magic;
	struct file_system_type *s_type;
	struct user_namespace *s_user_ns;
} CORE_READABLE;
struct inode {
	unsigned short i_mode;
	u32 i_rdev;
	unsigned long i_ino;
	struct super_block *i_sb;
} CORE_READABLE;
struct dentry {
	struct qstr d_name;
	struct inode *d_inode;
} CORE_READABLE;
struct vfsmount {
	struct super_block *mnt_sb;
	int mnt_flags;
} CORE_READABLE;
struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} CORE_READABLE;
struct fown_struct;
struct file {
	struct inode *f_inode;
	struct path f_path;
	const struct cred *f_cred;
	unsigned int f_mode;
} CORE_READABLE;
struct vm_area_struct {
	struct file *vm_file;
} CORE_READABLE;
struct linux_binprm {
	struct file *file;
} CORE_READABLE;

/* Linux, fs/proc/internal.h: exactly one of the three says what the file shows. */
struct proc_dir_entry {
	struct proc_dir_entry *parent;
	const char *name;
} CORE_READABLE;
struct ctl_table_header;
struct proc_inode {
	struct pid *pid;
	struct proc_dir_entry *pde;
	struct ctl_table_header *sysctl;
	struct inode vfs_inode;
} CORE_READABLE;

struct sock;
struct socket {
	struct sock *sk;
} CORE_READABLE;
struct unix_sock {
	struct sock *peer;
} CORE_READABLE;
struct kern_ipc_perm;
struct key;

enum {
	EPERM = 1,
	ENOMEM = 12,
	EOPNOTSUPP = 95,

	PTRACE_MODE_ATTACH = 0x02,
	PTRACE_MODE_NOAUDIT = 0x04,
	PRLIMIT_WRITE = 2, /* LSM_PRLIMIT_WRITE */
	CAP_OPT_NOAUDIT = 0x02,

	FMODE_WRITE = 0x2,
	MNT_READONLY = 0x40,
	SB_RDONLY = 1,
	PROT_EXEC = 4,
	S_IFMT = 0170000,
	S_IFBLK = 0060000,
	S_IFCHR = 0020000,
};

#define DEVICE(major, minor) ((u32)(major) << 20 | (minor)) /* as the kernel keeps it, not as stat(2) shows it */

/* A name's first eight bytes as one number; `s` must have as many, so that names are written "stat\0\0\0". */
static __always_inline u64 word(const char *s)
{
	u64 w;
	__builtin_memcpy(&w, s, sizeof(w));
	return w;
}

/* A pointer as a plain number.  Read back from the stack, because the verifier takes some arguments for never NULL that
 * are, and would remove our own look. */
static __always_inline u64 address(const void *pointer)
{
	const void *slot = pointer;
	u64 value = 0;
	bpf_probe_read_kernel(&value, sizeof(value), &slot);
	return value;
}
