/* SPDX-License-Identifier: GPL-2.0-only */
/* System V IPC and keys: what a context has made is its own, and nothing else is. */
#pragma once
#include "context.h"

static __always_inline int may_use(u32 operation, u64 key, u64 detail)
{
	u32 subject = me();
	return subject == CORE ? 0 : may(operation, subject, labelled(&object_labels, key), CHANGES, detail);
}

#define IPC_KIND(alloc, free, associate, control)                                                                      \
	HOOK(alloc, struct kern_ipc_perm *object, int ret)                                                             \
	{                                                                                                              \
		return ret ? ret : label(AN_OBJECT, address(object));                                                  \
	}                                                                                                              \
	SEC("lsm/" #free) int BPF_PROG(cage_##free, struct kern_ipc_perm *object)                                      \
	{                                                                                                              \
		unlabel(AN_OBJECT, address(object));                                                                   \
		return 0;                                                                                              \
	}                                                                                                              \
	HOOK(associate, struct kern_ipc_perm *object, int flag, int ret)                                               \
	{                                                                                                              \
		return ret ? ret : may_use(IPC, address(object), flag);                                                \
	}                                                                                                              \
	HOOK(control, struct kern_ipc_perm *object, int command, int ret)                                              \
	{                                                                                                              \
		u64 key = address(object);                                                                             \
		/* NULL: what is asked for are the limits. */                                                          \
		return ret || !key ? ret : may_use(IPC, key, command);                                                 \
	}

IPC_KIND(shm_alloc_security, shm_free_security, shm_associate, shm_shmctl)
IPC_KIND(sem_alloc_security, sem_free_security, sem_associate, sem_semctl)
IPC_KIND(msg_queue_alloc_security, msg_queue_free_security, msg_queue_associate, msg_queue_msgctl)

HOOK(ipc_permission, struct kern_ipc_perm *object, short flag, int ret)
{
	return ret ? ret : may_use(IPC, address(object), flag);
}

HOOK(key_alloc, struct key *key, const struct cred *cred, unsigned long flags, int ret)
{
	return ret ? ret : label(AN_OBJECT, address(key));
}

SEC("lsm/key_free") int BPF_PROG(cage_key_free, struct key *key)
{
	unlabel(AN_OBJECT, address(key));
	return 0;
}

/* key_ref_t is a pointer to a type that is declared nowhere, and the verifier takes no load of it; its lowest bit says
 * that the key is possessed. */
SEC("lsm/key_permission") int cage_key_permission(u64 *context)
{
	u64 key = 0, need = 0;

	if (bpf_get_func_arg(context, 0, &key) || bpf_get_func_arg(context, 2, &need))
		return -EPERM;
	return may_use(KEY, key & ~1ull, need & 0xffffffff);
}
