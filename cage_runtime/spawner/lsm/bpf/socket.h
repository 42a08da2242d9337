/* SPDX-License-Identifier: GPL-2.0-only */
/* Sockets: which there may be, and between whom.  What is sent over a connection is not looked at: who has both ends
 * was decided when it was made, and when a descriptor was received (file.h). */
#pragma once
#include "context.h"

static __always_inline u32 socket_owner(struct sock *sock)
{
	struct label *label = sock ? bpf_sk_storage_get(&socket_labels, sock, 0, 0) : 0;
	return label ? label->xid : CORE;
}

enum { AF_NETLINK = 16, NETLINK_USERSOCK = 2 };

HOOK(socket_create, int family, int type, int protocol, int kernel, int ret)
{
	struct context *context;
	u32 subject;

	if (ret || kernel)
		return ret;
	subject = me();
	if (subject == CORE)
		return 0;
	context = configuration(subject);
	/* By this protocol processes talk to each other, and no hook says to whom. */
	if (family == AF_NETLINK && protocol == NETLINK_USERSOCK)
		return refuse(SOCKET, subject, CORE, family);
	if (context && family >= 0 && family < 64 && (context->families >> (family & 63)) & 1)
		return 0;
	return refuse(SOCKET, subject, CORE, family);
}

HOOK(socket_post_create, struct socket *socket, int family, int type, int protocol, int kernel, int ret)
{
	struct label label = {};
	struct sock *sock;

	if (ret || kernel)
		return ret;
	label.xid = me();
	if (label.xid == CORE)
		return 0;
	sock = socket->sk;
	if (!sock || !bpf_sk_storage_get(&socket_labels, sock, &label, BPF_SK_STORAGE_GET_F_CREATE))
		return -ENOMEM;
	return 0;
}

/* The accepted end is the listener's.  The core marks a socket of its own with the one context that may connect. */
HOOK(unix_stream_connect, struct sock *sock, struct sock *other, struct sock *accepted, int ret)
{
	struct label label = {};

	if (ret)
		return ret;
	label.xid = socket_owner(other);
	if (label.xid != CORE && !bpf_sk_storage_get(&socket_labels, accepted, &label, BPF_SK_STORAGE_GET_F_CREATE))
		return -ENOMEM;
	return may(CONNECT, me(), label.xid, CHANGES, 0);
}

/* Asked for each datagram.  A pair that the core has made and handed over one end of is the core's decision. */
HOOK(unix_may_send, struct socket *socket, struct socket *other, int ret)
{
	struct sock *from, *to;
	u32 subject, object;

	if (ret)
		return ret;
	subject = me();
	if (subject == CORE)
		return 0;
	from = socket->sk;
	to = other->sk;
	object = socket_owner(to);
	if (object == CORE && socket_owner(from) == CORE && configuration(subject)
	    && (u64)BPF_CORE_READ((struct unix_sock *)from, peer) == (u64)to)
		return 0;
	return may(SEND, subject, object, CHANGES, 0);
}
