/* SPDX-License-Identifier: GPL-2.0-only */
/* Write xor execute: what a context could have written it neither executes nor maps as code. */
#pragma once
#include "context.h"

/* Read-only, and of a file system that the core has mounted: in a namespace of its own a cage could write to one first
 * and make it read-only then.  A read-only view of what it can write has `noexec` from the core, which it cannot take
 * off. */
static __always_inline bool is_beyond_its_reach(struct file *file)
{
	int mount = BPF_CORE_READ(file, f_path.mnt, mnt_flags);
	struct super_block *sb = BPF_CORE_READ(file, f_path.mnt, mnt_sb);
	unsigned long flags = BPF_CORE_READ(sb, s_flags);

	return (mount & MNT_READONLY || flags & SB_RDONLY) && BPF_CORE_READ(sb, s_user_ns, level) == 0;
}

static __noinline int may_execute(u32 operation, u64 file)
{
	struct context *context;
	u32 subject = me();

	if (subject == CORE)
		return 0;
	context = configuration(subject);
	if (context && (context->flags & EXECUTE_WRITABLE || is_beyond_its_reach((struct file *)file)))
		return 0;
	return refuse(operation, subject, subject, BPF_CORE_READ((struct file *)file, f_inode, i_ino));
}

HOOK(bprm_check_security, struct linux_binprm *program, int ret)
{
	return ret ? ret : may_execute(EXECUTE, (u64)program->file);
}

/* Memory that is of no file may become code: compilers at run time need it, and it is not what a file was. */
HOOK(mmap_file, struct file *file, unsigned long asked, unsigned long protection, unsigned long flags, int ret)
{
	u64 mapped;

	if (ret || !(protection & PROT_EXEC))
		return ret;
	mapped = address(file);
	return mapped ? may_execute(MEMORY, mapped) : 0;
}

HOOK(file_mprotect, struct vm_area_struct *area, unsigned long asked, unsigned long protection, int ret)
{
	u64 mapped;

	if (ret || !(protection & PROT_EXEC))
		return ret;
	mapped = (u64)BPF_CORE_READ(area, vm_file);
	return mapped ? may_execute(MEMORY, mapped) : 0;
}
