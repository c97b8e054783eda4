/*
 * Records what a process does to the files below a directory, so that it can be done again in part.
 *
 * Loaded with LD_PRELOAD. RECORDER_ROOT is the directory (absolute, without links), RECORDER_LOG the
 * file that records are appended to; several processes may share one. RECORDER_SYNC_DELAY_US makes
 * every sync take longer, so that more happens while it is under way.
 *
 * A call that changes something and its record are one step for the other threads of the process, so
 * the records have the order of the effects. Each is appended with one writev(2), so records of
 * several processes do not mix, and what one process did because it heard of another comes behind it.
 * A sync is two records: one before it, which says what it covers, and one after it, when that is
 * durable. What cannot be recorded (a file that is mapped for writing) is recorded as such.
 *
 * The layout of a record stands in `recording.py`, too.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x5243524d /* "MRCR" */
#define DESCRIPTORS_MAX 65536
#define PIECES_MAX 1024

struct header {
    uint32_t magic;
    uint32_t kind;
    uint64_t time_ns;
    uint64_t file;
    uint64_t offset;
    uint64_t data_size;
    uint32_t pid;
    uint32_t path_size;
};

static char root[PATH_MAX];
static size_t root_size;
static int log_fd = -1;
static pid_t owner;
static useconds_t sync_delay_us;
static atomic_ullong tokens;
/* The inode of each open file or directory below the root; 0: something else. */
static _Atomic uint64_t tracked[DESCRIPTORS_MAX];
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

typedef int openat_t(int, const char *, int, ...);

#define FOUND(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define REAL(name) __typeof__(&name) real = FOUND(name)

static void die(const char *what)
{
    /* A recording that lacks something must not be taken for a whole one. */
    dprintf(2, "recorder: %s: %s\n", what, strerror(errno));
    abort();
}

__attribute__((constructor)) static void begin(void)
{
    const char *where = getenv("RECORDER_ROOT"), *log = getenv("RECORDER_LOG");
    const char *delay = getenv("RECORDER_SYNC_DELAY_US");
    if (where == NULL || log == NULL)
        return;
    if (strlen(where) >= sizeof root)
        die("RECORDER_ROOT");
    strcpy(root, where);
    root_size = strlen(root);
    sync_delay_us = delay != NULL ? (useconds_t)atoi(delay) : 0;
    owner = getpid();
    log_fd = FOUND(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        die(log);
    /* Out of the way of programs that close what they do not know. */
    int high = fcntl(log_fd, F_DUPFD_CLOEXEC, 900);
    if (high >= 0)
        log_fd = high;
}

/* A child that was forked, or vforked and shares our memory, is no business of ours. */
static int is_recording(void)
{
    return log_fd >= 0 && getpid() == owner;
}

static int is_shared_memory(const char *path)
{
    size_t size = strlen(path);
    return size > 4 && strcmp(path + size - 4, "-shm") == 0;
}

static int is_below(const char *path)
{
    return strncmp(path, root, root_size) == 0 && (path[root_size] == '/' || path[root_size] == 0)
        && !is_shared_memory(path);
}

static void record(char kind, uint64_t file, uint64_t offset, const char *path, size_t path_size,
                   const struct iovec *pieces, int piece_count, size_t data_size)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct header header = {
        .magic = MAGIC,
        .kind = (uint32_t)kind,
        .time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec,
        .file = file,
        .offset = offset,
        .data_size = data_size,
        .pid = (uint32_t)owner,
        .path_size = (uint32_t)path_size,
    };
    if (piece_count > PIECES_MAX - 2)
        die("too many pieces");
    struct iovec out[PIECES_MAX];
    int count = 0;
    out[count++] = (struct iovec){&header, sizeof header};
    if (path_size > 0)
        out[count++] = (struct iovec){(void *)path, path_size};
    size_t left = data_size;
    for (int i = 0; i < piece_count && left > 0; i++) {
        size_t size = pieces[i].iov_len < left ? pieces[i].iov_len : left;
        if (size > 0)
            out[count++] = (struct iovec){pieces[i].iov_base, size};
        left -= size;
    }
    REAL(writev);
    ssize_t wanted = (ssize_t)(sizeof header + path_size + data_size);
    if (real(log_fd, out, count) != wanted)
        die("cannot write the log");
}

static void record_path(char kind, uint64_t file, uint64_t offset, const char *path)
{
    record(kind, file, offset, path, strlen(path), NULL, 0, 0);
}

/* An absolute path, without "//" and "/./"; false when it cannot be found out. */
static int absolute(int folder, const char *path, char *found)
{
    char joined[2 * PATH_MAX];
    if (path[0] == '/') {
        snprintf(joined, sizeof joined, "%s", path);
    } else {
        char base[PATH_MAX];
        if (folder == AT_FDCWD) {
            if (getcwd(base, sizeof base) == NULL)
                return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t size = readlink(link, base, sizeof base - 1);
            if (size < 0)
                return 0;
            base[size] = 0;
        }
        snprintf(joined, sizeof joined, "%s/%s", base, path);
    }
    size_t size = 0;
    for (const char *next = joined; *next != 0; next++) {
        if (next[0] == '/' && next[1] == '/')
            continue;
        if (next[0] == '/' && next[1] == '.' && (next[2] == '/' || next[2] == 0)) {
            next++;
            continue;
        }
        if (size + 1 >= PATH_MAX)
            return 0;
        found[size++] = *next;
    }
    if (size > 1 && found[size - 1] == '/')
        size--;
    found[size] = 0;
    return 1;
}

static uint64_t inode_of(int fd)
{
    if (fd < 0 || fd >= DESCRIPTORS_MAX || tracked[fd] == 0)
        return 0;
    struct stat now;
    /* The number may have gone to a socket without our seeing the close. */
    if (fstat(fd, &now) != 0 || now.st_ino != tracked[fd] || S_ISSOCK(now.st_mode))
        return 0;
    return now.st_ino;
}

/* --- opening and closing --- */

static int opened(int folder, const char *path, int flags, mode_t mode)
{
    openat_t *real = (openat_t *)dlsym(RTLD_NEXT, "openat64");
    char whole[PATH_MAX];
    if (!is_recording() || !absolute(folder, path, whole) || !is_below(whole))
        return real(folder, path, flags, mode);
    pthread_mutex_lock(&order);
    struct stat before;
    int was_there = lstat(whole, &before) == 0;
    int fd = real(folder, path, flags, mode);
    int error = errno;
    struct stat now;
    if (fd >= 0 && fd < DESCRIPTORS_MAX && fstat(fd, &now) == 0) {
        tracked[fd] = now.st_ino;
        if (!was_there && S_ISREG(now.st_mode))
            record_path('C', now.st_ino, 0, whole);
        else if ((flags & O_TRUNC) && S_ISREG(now.st_mode) && before.st_size != 0)
            record_path('T', now.st_ino, 0, whole);
    } else if (fd >= DESCRIPTORS_MAX) {
        die("too many descriptors");
    }
    pthread_mutex_unlock(&order);
    errno = error;
    return fd;
}

#define OPEN_BODY(folder)                                                                        \
    mode_t mode = 0;                                                                             \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                         \
        va_list rest;                                                                            \
        va_start(rest, flags);                                                                   \
        mode = va_arg(rest, mode_t);                                                             \
        va_end(rest);                                                                            \
    }                                                                                            \
    return opened(folder, path, flags, mode)

int open(const char *path, int flags, ...) { OPEN_BODY(AT_FDCWD); }
int open64(const char *path, int flags, ...) { OPEN_BODY(AT_FDCWD); }
int openat(int folder, const char *path, int flags, ...) { OPEN_BODY(folder); }
int openat64(int folder, const char *path, int flags, ...) { OPEN_BODY(folder); }
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __openat_2(int folder, const char *path, int flags) { return opened(folder, path, flags, 0); }
int __openat64_2(int folder, const char *path, int flags) { return opened(folder, path, flags, 0); }

int creat(const char *path, mode_t mode)
{
    return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode)
{
    return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int close(int fd)
{
    REAL(close);
    /* Without the lock: a child between fork and exec may call this. */
    if (is_recording() && fd >= 0 && fd < DESCRIPTORS_MAX)
        tracked[fd] = 0;
    return real(fd);
}

/* A descriptor that another process passes may be of a file below the root. */
static void track_received(int fd)
{
    char link[64], path[PATH_MAX];
    struct stat now;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0 || fstat(fd, &now) != 0)
        return;
    path[size] = 0;
    if (!is_below(path))
        return;
    if (fd >= DESCRIPTORS_MAX)
        die("too many descriptors");
    tracked[fd] = now.st_ino;
}

ssize_t recvmsg(int socket, struct msghdr *message, int flags)
{
    REAL(recvmsg);
    ssize_t size = real(socket, message, flags);
    if (size <= 0 || message->msg_controllen == 0 || !is_recording())
        return size;
    int error = errno;
    for (struct cmsghdr *one = CMSG_FIRSTHDR(message); one != NULL;
         one = CMSG_NXTHDR(message, one)) {
        if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (one->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(one) + i * sizeof fd, sizeof fd);
            track_received(fd);
        }
    }
    errno = error;
    return size;
}

/* --- bytes --- */

static ssize_t written(uint64_t file, ssize_t size, off_t offset, const struct iovec *pieces,
                       int piece_count)
{
    int error = errno;
    if (size > 0)
        record('W', file, (uint64_t)offset, NULL, 0, pieces, piece_count, (size_t)size);
    pthread_mutex_unlock(&order);
    errno = error;
    return size;
}

ssize_t write(int fd, const void *bytes, size_t count)
{
    REAL(write);
    uint64_t file = is_recording() ? inode_of(fd) : 0;
    if (file == 0)
        return real(fd, bytes, count);
    pthread_mutex_lock(&order);
    ssize_t size = real(fd, bytes, count);
    struct iovec piece = {(void *)bytes, count};
    return written(file, size, size > 0 ? lseek(fd, 0, SEEK_CUR) - size : 0, &piece, 1);
}

ssize_t writev(int fd, const struct iovec *pieces, int piece_count)
{
    REAL(writev);
    uint64_t file = is_recording() ? inode_of(fd) : 0;
    if (file == 0)
        return real(fd, pieces, piece_count);
    /* A record needs two pieces of its own: the caller is used to short writes. */
    if (piece_count > PIECES_MAX - 2)
        piece_count = PIECES_MAX - 2;
    pthread_mutex_lock(&order);
    ssize_t size = real(fd, pieces, piece_count);
    return written(file, size, size > 0 ? lseek(fd, 0, SEEK_CUR) - size : 0, pieces, piece_count);
}

#define PWRITE(name, offset_t)                                                                   \
    ssize_t name(int fd, const void *bytes, size_t count, offset_t offset)                       \
    {                                                                                            \
        REAL(name);                                                                              \
        uint64_t file = is_recording() ? inode_of(fd) : 0;                                       \
        if (file == 0)                                                                           \
            return real(fd, bytes, count, offset);                                               \
        pthread_mutex_lock(&order);                                                              \
        ssize_t size = real(fd, bytes, count, offset);                                           \
        struct iovec piece = {(void *)bytes, count};                                             \
        return written(file, size, offset, &piece, 1);                                       \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define PWRITEV(name, offset_t)                                                                  \
    ssize_t name(int fd, const struct iovec *pieces, int piece_count, offset_t offset)           \
    {                                                                                            \
        REAL(name);                                                                              \
        uint64_t file = is_recording() ? inode_of(fd) : 0;                                       \
        if (file == 0)                                                                           \
            return real(fd, pieces, piece_count, offset);                                        \
        if (piece_count > PIECES_MAX - 2)                                                        \
            piece_count = PIECES_MAX - 2;                                                        \
        pthread_mutex_lock(&order);                                                              \
        ssize_t size = real(fd, pieces, piece_count, offset);                                    \
        return written(file, size, offset, pieces, piece_count);                             \
    }

PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

/* What the kernel copied went through no memory of ours: it is read back. */
static void record_copied(int fd, uint64_t file, off_t offset, size_t size)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    openat_t *real = (openat_t *)dlsym(RTLD_NEXT, "openat64");
    int copy = real(AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
    char *bytes = malloc(size);
    if (copy < 0 || bytes == NULL || pread(copy, bytes, size, offset) != (ssize_t)size)
        die("cannot read back what was copied");
    struct iovec piece = {bytes, size};
    record('W', file, (uint64_t)offset, NULL, 0, &piece, 1, size);
    free(bytes);
    FOUND(close)(copy);
}

#define SENDFILE(name, offset_t)                                                                 \
    ssize_t name(int out, int in, offset_t *offset, size_t count)                                \
    {                                                                                            \
        REAL(name);                                                                              \
        uint64_t file = is_recording() ? inode_of(out) : 0;                                      \
        if (file == 0)                                                                           \
            return real(out, in, offset, count);                                                 \
        pthread_mutex_lock(&order);                                                              \
        ssize_t size = real(out, in, offset, count);                                             \
        int error = errno;                                                                       \
        if (size > 0)                                                                            \
            record_copied(out, file, lseek(out, 0, SEEK_CUR) - size, (size_t)size);              \
        pthread_mutex_unlock(&order);                                                            \
        errno = error;                                                                           \
        return size;                                                                             \
    }

SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t count,
                        unsigned flags)
{
    REAL(copy_file_range);
    uint64_t file = is_recording() ? inode_of(out) : 0;
    if (file == 0)
        return real(in, in_offset, out, out_offset, count, flags);
    pthread_mutex_lock(&order);
    ssize_t size = real(in, in_offset, out, out_offset, count, flags);
    int error = errno;
    if (size > 0) {
        off_t end = out_offset != NULL ? *out_offset : lseek(out, 0, SEEK_CUR);
        record_copied(out, file, end - size, (size_t)size);
    }
    pthread_mutex_unlock(&order);
    errno = error;
    return size;
}

/* --- sizes --- */

/* Runs `call`, which may change the size of an open file, and records the size that it has then. */
#define RESIZED(name, parameters, call)                                                          \
    int name parameters                                                                          \
    {                                                                                            \
        REAL(name);                                                                              \
        uint64_t file = is_recording() ? inode_of(fd) : 0;                                       \
        if (file == 0)                                                                           \
            return call;                                                                         \
        pthread_mutex_lock(&order);                                                              \
        struct stat before, now;                                                                 \
        fstat(fd, &before);                                                                      \
        int result = call;                                                                       \
        int error = errno;                                                                       \
        fstat(fd, &now);                                                                         \
        if (now.st_size != before.st_size)                                                       \
            record('T', file, (uint64_t)now.st_size, NULL, 0, NULL, 0, 0);                       \
        pthread_mutex_unlock(&order);                                                            \
        errno = error;                                                                           \
        return result;                                                                           \
    }

RESIZED(ftruncate, (int fd, off_t size), real(fd, size))
RESIZED(ftruncate64, (int fd, off64_t size), real(fd, size))
RESIZED(fallocate, (int fd, int mode, off_t offset, off_t size), real(fd, mode, offset, size))
RESIZED(fallocate64, (int fd, int mode, off64_t offset, off64_t size), real(fd, mode, offset, size))
RESIZED(posix_fallocate, (int fd, off_t offset, off_t size), real(fd, offset, size))
RESIZED(posix_fallocate64, (int fd, off64_t offset, off64_t size), real(fd, offset, size))

/* --- names --- */

/* Runs `call`; when it succeeds, records it with the absolute form of the path. */
#define NAMED(kind, folder, path, call)                                                          \
    char whole[PATH_MAX];                                                                        \
    if (!is_recording() || !absolute(folder, path, whole) || !is_below(whole))                   \
        return call;                                                                             \
    pthread_mutex_lock(&order);                                                                  \
    int result = call;                                                                           \
    int error = errno;                                                                           \
    if (result == 0)                                                                             \
        record_path(kind, 0, 0, whole);                                                          \
    pthread_mutex_unlock(&order);                                                                \
    errno = error;                                                                               \
    return result

/* The same for two paths, which stand in the record with a NUL between them. */
#define TWICE_NAMED(kind, old_folder, old, new_folder, new, call)                                \
    char both[2 * PATH_MAX], target[PATH_MAX];                                                   \
    if (!is_recording() || !absolute(old_folder, old, both)                                      \
        || !absolute(new_folder, new, target) || !is_below(both) || !is_below(target))           \
        return call;                                                                             \
    size_t old_size = strlen(both) + 1, new_size = strlen(target);                               \
    memcpy(both + old_size, target, new_size);                                                   \
    pthread_mutex_lock(&order);                                                                  \
    int result = call;                                                                           \
    int error = errno;                                                                           \
    if (result == 0)                                                                             \
        record(kind, 0, 0, both, old_size + new_size, NULL, 0, 0);                               \
    pthread_mutex_unlock(&order);                                                                \
    errno = error;                                                                               \
    return result

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    NAMED('D', AT_FDCWD, path, real(path, mode));
}

int mkdirat(int folder, const char *path, mode_t mode)
{
    REAL(mkdirat);
    NAMED('D', folder, path, real(folder, path, mode));
}

int unlink(const char *path)
{
    REAL(unlink);
    NAMED('U', AT_FDCWD, path, real(path));
}

int rmdir(const char *path)
{
    REAL(rmdir);
    NAMED('X', AT_FDCWD, path, real(path));
}

int unlinkat(int folder, const char *path, int flags)
{
    REAL(unlinkat);
    NAMED(flags & AT_REMOVEDIR ? 'X' : 'U', folder, path, real(folder, path, flags));
}

int rename(const char *old, const char *new)
{
    REAL(rename);
    TWICE_NAMED('R', AT_FDCWD, old, AT_FDCWD, new, real(old, new));
}

int renameat(int old_folder, const char *old, int new_folder, const char *new)
{
    REAL(renameat);
    TWICE_NAMED('R', old_folder, old, new_folder, new, real(old_folder, old, new_folder, new));
}

int link(const char *old, const char *new)
{
    REAL(link);
    TWICE_NAMED('L', AT_FDCWD, old, AT_FDCWD, new, real(old, new));
}

/* --- durability --- */

static int synced(int (*real)(int), int fd)
{
    uint64_t file = is_recording() ? inode_of(fd) : 0;
    if (file == 0)
        return real(fd);
    struct stat now;
    fstat(fd, &now);
    int is_folder = S_ISDIR(now.st_mode);
    char path[PATH_MAX] = "";
    if (is_folder) {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t size = readlink(link, path, sizeof path - 1);
        path[size > 0 ? size : 0] = 0;
    }
    uint64_t token = atomic_fetch_add(&tokens, 1);
    pthread_mutex_lock(&order);
    record_path(is_folder ? 'b' : 'B', file, token, path);
    pthread_mutex_unlock(&order);
    if (sync_delay_us > 0)
        usleep(sync_delay_us);
    int result = real(fd);
    int error = errno;
    if (result == 0) {
        pthread_mutex_lock(&order);
        record_path(is_folder ? 'e' : 'E', file, token, path);
        pthread_mutex_unlock(&order);
    }
    errno = error;
    return result;
}

int fsync(int fd)
{
    REAL(fsync);
    return synced(real, fd);
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    return synced(real, fd);
}

#define MMAP(name, offset_t)                                                                     \
    void *name(void *where, size_t size, int protection, int flags, int fd, offset_t offset)     \
    {                                                                                            \
        REAL(name);                                                                              \
        void *result = real(where, size, protection, flags, fd, offset);                         \
        uint64_t file = is_recording() && fd >= 0 ? inode_of(fd) : 0;                            \
        if (file != 0 && result != MAP_FAILED && (flags & MAP_SHARED) && (protection & PROT_WRITE)) \
            record('M', file, (uint64_t)offset, NULL, 0, NULL, 0, 0);                            \
        return result;                                                                           \
    }

MMAP(mmap, off_t)
MMAP(mmap64, off64_t)
