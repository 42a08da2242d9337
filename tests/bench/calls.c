// SPDX-License-Identifier: LGPL-2.1-or-later
// Kernel calls in a loop, so small that nothing else is measured: calls KIND COUNT [PATH [filtered]] prints nanoseconds
// a call; "filtered" loads a filter of system calls that allows everything, which is the least that any filter costs.
// All on one processor: what two of them make of each other is the machine's, and not a wall's.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void check(long result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static double now(void)
{
	struct timespec time;
	check(clock_gettime(CLOCK_MONOTONIC, &time), "clock_gettime");
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static void getppid_once(const char *path)
{
	(void)path;
	syscall(SYS_getppid); // libc's own may answer from memory
}

static void open_once(const char *path)
{
	int descriptor = open(path, O_RDONLY | O_CLOEXEC);
	check(descriptor, path);
	close(descriptor);
}

static void exec_once(const char *path)
{
	int status;
	pid_t pid = fork();
	check(pid, "fork");
	if (pid == 0) {
		execl(path, path, "nothing", NULL);
		_exit(127);
	}
	check(waitpid(pid, &status, 0), "waitpid");
	if (status != 0) {
		fprintf(stderr, "%s ended with %d\n", path, status);
		exit(1);
	}
}

static int ends[2];

static void pingpong_begin(void)
{
	char byte;
	check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), "socketpair");
	pid_t pid = fork();
	check(pid, "fork");
	if (pid == 0) {
		close(ends[0]);
		while (read(ends[1], &byte, 1) == 1)
			check(write(ends[1], &byte, 1), "write");
		_exit(0);
	}
	close(ends[1]);
}

static void pingpong_once(const char *path)
{
	char byte = 0;
	(void)path;
	check(write(ends[0], &byte, 1), "write");
	check(read(ends[0], &byte, 1), "read");
}

int main(int count, char **words)
{
	void (*once)(const char *) = NULL;
	if (count >= 2 && strcmp(words[1], "nothing") == 0)
		return 0;
	if (count < 3)
		return 2;
	const char *path = count > 3 ? words[3] : "";
	long left = atol(words[2]), calls = left;
	if (count > 4) {
		struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
		struct sock_fprog program = {.len = 1, .filter = &allow};
		check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
		check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "filter");
	}
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	check(sched_setaffinity(0, sizeof one, &one), "sched_setaffinity");
	if (strcmp(words[1], "getppid") == 0)
		once = getppid_once;
	else if (strcmp(words[1], "open") == 0) {
		once = open_once;
		close(open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0600));
	} else if (strcmp(words[1], "exec") == 0)
		once = exec_once;
	else if (strcmp(words[1], "pingpong") == 0) {
		once = pingpong_once;
		pingpong_begin();
	} else
		return 2;
	for (int warm = 0; warm < 10; warm++)
		once(path);
	double began = now();
	while (left-- > 0)
		once(path);
	printf("%.2f\n", (now() - began) / calls);
	return 0;
}
