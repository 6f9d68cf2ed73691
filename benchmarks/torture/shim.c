/* Faults at the k-th system call that changes files below one folder: preloaded into a process, armed from Python
   (torture_arm) or, in processes that are started anew, by the environment. Counts and flags are shared with forked
   children. See torture/faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL_BEFORE, KILL_AFTER, TORN, REFUSE, FULL };
enum { FREES = 0, TAKES = 1 }; /* whether a call takes space, so that a full disk refuses it */

static struct { atomic_long calls; atomic_int full; } *shared;
static char watch[4096];
static long at = -1;
static int action, number, group;

static void arm(const char *folder, long k, int what, int error, int whole_group) {
    strncpy(watch, folder, sizeof watch - 1);
    at = k, action = what, number = error, group = whole_group;
    if (!folder[0]) return; /* disarmed: forks go on counting */
    shared->calls = 0;
    shared->full = 0;
}
void torture_arm(const char *folder, long k, int what, int error, int whole_group) { arm(folder, k, what, error, whole_group); }
long torture_calls(void) { return shared->calls; }

__attribute__((constructor)) static void start(void) {
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) abort();
    const char *folder = getenv("TORTURE_WATCH"), *k = getenv("TORTURE_CALL"), *what = getenv("TORTURE_ACTION");
    if (folder && k && what) arm(folder, atol(k), atoi(what), ENOSPC, 1);
}

static int below(const char *path) {
    size_t length = strlen(watch);
    char full[8192];
    if (!length || !path) return 0;
    if (path[0] != '/') { /* relative to the folder of the process */
        if (!getcwd(full, 4000)) return 0;
        strncat(full, "/", 2), strncat(full, path, 4000);
        path = full;
    }
    return !strncmp(path, watch, length) && (path[length] == '/' || !path[length]);
}
static int below_fd(int fd) {
    char name[64], path[4096];
    if (!watch[0]) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t size = syscall(SYS_readlink, name, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return below(path);
}

static void die(void) {
    syscall(SYS_kill, group ? 0 : getpid(), SIGKILL);
    for (;;) pause();
}
/* What is to happen at this call. */
static int due(int takes) {
    int found = ++shared->calls == at ? action : NOTHING;
    if (found == KILL_BEFORE) die();
    if (found == FULL) shared->full = 1;
    if (found == NOTHING && shared->full && takes) return REFUSE;
    return (found == FULL || found == REFUSE) && !takes ? NOTHING : found; /* what frees space is never refused */
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)
#define AROUND(type, watched, takes, failed, call) \
    if (!(watched)) return call; \
    int what = due(takes); \
    if (what == REFUSE || what == FULL) { errno = number; return failed; } \
    type result = call; \
    if (what == KILL_AFTER || what == TORN) die(); \
    return result;
/* A full disk takes a part of what is written before it refuses; so does a kill in the middle. */
#define AROUND_WRITE(fd, size, whole, half) \
    if (!below_fd(fd)) return whole; \
    int what = due(TAKES); \
    if (what == REFUSE) { errno = number; return -1; } \
    if (what == TORN || what == FULL) { \
        if (size < 2) { if (what == TORN) die(); errno = number; return -1; } \
        ssize_t done = half; if (what == TORN) die(); return done; } \
    ssize_t result = whole; \
    if (what == KILL_AFTER) die(); \
    return result;

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    AROUND_WRITE(fd, size, real(fd, data, size), real(fd, data, size / 2))
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    AROUND_WRITE(fd, size, real(fd, data, size, place), real(fd, data, size / 2, place))
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t place) { return pwrite64(fd, data, size, place); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    AROUND_WRITE(fd, parts[0].iov_len, real(fd, parts, count), write(fd, parts[0].iov_base, parts[0].iov_len / 2))
}
ssize_t sendfile64(int to, int from, off64_t *place, size_t size) {
    REAL(ssize_t, "sendfile64", int, int, off64_t *, size_t);
    AROUND_WRITE(to, size, real(to, from, place, size), real(to, from, place, 1))
}
ssize_t sendfile(int to, int from, off_t *place, size_t size) { return sendfile64(to, from, place, size); }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    AROUND_WRITE(to, size, real(from, a, to, b, size, flags), real(from, a, to, b, 1, flags))
}
int fsync(int fd) { REAL(int, "fsync", int); AROUND(int, below_fd(fd), TAKES, -1, real(fd)) }
int fdatasync(int fd) { REAL(int, "fdatasync", int); AROUND(int, below_fd(fd), TAKES, -1, real(fd)) }
int ftruncate64(int fd, off64_t size) { REAL(int, "ftruncate64", int, off64_t); AROUND(int, below_fd(fd), TAKES, -1, real(fd, size)) }
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int link(const char *a, const char *b) { REAL(int, "link", const char *, const char *); AROUND(int, below(b), TAKES, -1, real(a, b)) }
int linkat(int x, const char *a, int y, const char *b, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    AROUND(int, below(b), TAKES, -1, real(x, a, y, b, flags))
}
int rename(const char *a, const char *b) { REAL(int, "rename", const char *, const char *); AROUND(int, below(b), FREES, -1, real(a, b)) }
int renameat(int x, const char *a, int y, const char *b) {
    REAL(int, "renameat", int, const char *, int, const char *);
    AROUND(int, below(b), FREES, -1, real(x, a, y, b))
}
int unlink(const char *path) { REAL(int, "unlink", const char *); AROUND(int, below(path), FREES, -1, real(path)) }
int unlinkat(int fd, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    AROUND(int, below(path), FREES, -1, real(fd, path, flags))
}
int mkdir(const char *path, mode_t mode) { REAL(int, "mkdir", const char *, mode_t); AROUND(int, below(path), TAKES, -1, real(path, mode)) }

#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC))
#define MODE va_list rest; va_start(rest, flags); mode_t mode = (flags) & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest)
int open64(const char *path, int flags, ...) {
    MODE;
    REAL(int, "open64", const char *, int, ...);
    AROUND(int, CHANGES(flags) && below(path), TAKES, -1, real(path, flags, mode))
}
int open(const char *path, int flags, ...) { MODE; return open64(path, flags, mode); }
int openat64(int fd, const char *path, int flags, ...) {
    MODE;
    REAL(int, "openat64", int, const char *, int, ...);
    AROUND(int, CHANGES(flags) && below(path), TAKES, -1, real(fd, path, flags, mode))
}
int openat(int fd, const char *path, int flags, ...) { MODE; return openat64(fd, path, flags, mode); }
FILE *fopen64(const char *path, const char *mode) {
    REAL(FILE *, "fopen64", const char *, const char *);
    AROUND(FILE *, strchr(mode, 'r') == NULL && below(path), TAKES, NULL, real(path, mode))
}
FILE *fopen(const char *path, const char *mode) { return fopen64(path, mode); }
