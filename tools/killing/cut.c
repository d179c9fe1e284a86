/* Ends a process group at a chosen file operation below a folder: before it, in its middle or after it.
 *
 * Preloaded (LD_PRELOAD) into a process that forks what is to be cut. Operations are counted over all processes of
 * the group, in shared memory. With a log every operation is written down, and each fsync keeps a copy of what is on
 * the disk from then on, so that the states a power cut may leave can be made afterwards (disk.py).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, WRITE, FSYNC, RENAME, UNLINK, KINDS };
enum moment { BEFORE, MIDDLE, AFTER };
enum { NONE, PLAIN, FOLDER };
enum { FILES = 65536, LINE = 9000 };

static struct {
    long done[KINDS + 1]; /* by kind; the last one is of all */
    long copies;
} *shared;
static char root[4096], book[4096];
static long target = -1; /* -1: nothing is counted; 0: nothing is cut */
static int counted = KINDS, when, writer = -1;
static unsigned char tracked[FILES];

/* Count from nought below `folder`, and cut operation `number` of a kind (KINDS: of any). */
int cut_arm(const char *folder, int kind, long number, int moment, const char *log) {
    if (shared == NULL) {
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (shared == MAP_FAILED) return errno;
    }
    memset(shared, 0, sizeof *shared);
    memset(tracked, 0, sizeof tracked);
    snprintf(root, sizeof root, "%s", folder);
    snprintf(book, sizeof book, "%s", log);
    if (writer >= 0) syscall(SYS_close, writer);
    writer = *book ? syscall(SYS_openat, AT_FDCWD, book, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    counted = kind, when = moment, target = number;
    return *book && writer < 0 ? errno : 0;
}

void cut_disarm(void) { target = -1; }

long cut_count(int kind) { return shared == NULL ? 0 : shared->done[kind]; }

static int inside(const char *path) {
    size_t size = strlen(root);
    return target >= 0 && path != NULL && strncmp(path, root, size) == 0 && (path[size] == '/' || path[size] == 0);
}

static int is_tracked(int file) { return target >= 0 && file >= 0 && file < FILES && tracked[file]; }

/* Count an operation; whether it is the one to cut. */
static int reached(enum kind kind) {
    long own = __atomic_add_fetch(&shared->done[kind], 1, __ATOMIC_SEQ_CST);
    long all = __atomic_add_fetch(&shared->done[KINDS], 1, __ATOMIC_SEQ_CST);
    return target > 0 && (counted == KINDS ? all : counted == (int)kind ? own : 0) == target;
}

static void end(void) {
    kill(0, SIGKILL);
    for (;;) pause();
}

static void cut_if(int here, enum moment moment) {
    if (here && when == (int)moment) end();
}

static void note(const char *format, ...) {
    char line[LINE];
    va_list values;
    int saved = errno, size;
    if (writer < 0) return;
    va_start(values, format);
    size = vsnprintf(line, sizeof line, format, values);
    va_end(values);
    syscall(SYS_write, writer, line, size < LINE ? size : LINE - 1);
    errno = saved;
}

static unsigned long inode(int file) {
    struct stat about;
    return fstat(file, &about) ? 0 : (unsigned long)about.st_ino;
}

/* Keep what a file holds now, which an fsync has put on the disk. */
static void keep(int file) {
    char name[4200], part[65536], link[64], path[4096];
    long number = __atomic_add_fetch(&shared->copies, 1, __ATOMIC_SEQ_CST), size;
    int from, to;
    if (writer < 0) return;
    snprintf(name, sizeof name, "%s.%ld", book, number);
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    from = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
    to = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    while (from >= 0 && to >= 0 && (size = syscall(SYS_read, from, part, sizeof part)) > 0)
        syscall(SYS_write, to, part, size);
    if (from >= 0) syscall(SYS_close, from);
    if (to >= 0) syscall(SYS_close, to);
    size = readlink(link, path, sizeof path - 1);
    path[size > 0 ? size : 0] = 0;
    note("sync %lu %ld %s\n", inode(file), number, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int opened(int at, const char *path, int flags, mode_t mode) {
    static __typeof__(&openat64) next;
    struct stat about;
    int changes = flags & (O_CREAT | O_TRUNC), folder, old, here, file;
    const char *word;
    if (next == NULL) next = NEXT(openat64);
    if (!inside(path)) {
        file = next(at, path, flags, mode);
        if (file >= 0 && file < FILES) tracked[file] = NONE;
        return file;
    }
    old = stat(path, &about) == 0;
    folder = old && S_ISDIR(about.st_mode);
    here = changes ? reached(OPEN) : 0;
    cut_if(here, BEFORE);
    file = next(at, path, flags, mode);
    if (file >= 0 && file < FILES) tracked[file] = folder ? FOLDER : PLAIN;
    word = !old ? "make" : flags & O_TRUNC ? "empty" : "open";
    if (file >= 0 && changes) note("%s %lu %s\n", word, inode(file), path);
    cut_if(here, AFTER);
    return file;
}

#define OPENER(name)                                           \
    int name(const char *path, int flags, ...) {               \
        va_list values;                                        \
        mode_t mode;                                           \
        va_start(values, flags);                               \
        mode = va_arg(values, mode_t);                         \
        va_end(values);                                        \
        return opened(AT_FDCWD, path, flags, mode);            \
    }
#define OPENER_AT(name)                                        \
    int name(int at, const char *path, int flags, ...) {       \
        va_list values;                                        \
        mode_t mode;                                           \
        va_start(values, flags);                               \
        mode = va_arg(values, mode_t);                         \
        va_end(values);                                        \
        return opened(at, path, flags, mode);                  \
    }
OPENER(open)
OPENER(open64)
OPENER_AT(openat)

int close(int file) {
    static __typeof__(&close) next;
    if (next == NULL) next = NEXT(close);
    if (file >= 0 && file < FILES) tracked[file] = NONE;
    return next(file);
}

ssize_t write(int file, const void *data, size_t size) {
    static __typeof__(&write) next;
    ssize_t done;
    int here;
    if (next == NULL) next = NEXT(write);
    if (!is_tracked(file)) return next(file, data, size);
    here = reached(WRITE);
    cut_if(here, BEFORE);
    note("write %lu\n", inode(file));
    if (here && when == MIDDLE) {
        next(file, data, size / 2);
        end();
    }
    done = next(file, data, size);
    cut_if(here, AFTER);
    return done;
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    static __typeof__(&writev) next;
    ssize_t done;
    int here;
    if (next == NULL) next = NEXT(writev);
    if (!is_tracked(file)) return next(file, parts, count);
    here = reached(WRITE);
    cut_if(here, BEFORE);
    note("write %lu\n", inode(file));
    if (here && when == MIDDLE) {
        if (count > 0) syscall(SYS_write, file, parts[0].iov_base, parts[0].iov_len / 2);
        end();
    }
    done = next(file, parts, count);
    cut_if(here, AFTER);
    return done;
}

int fsync(int file) {
    static __typeof__(&fsync) next;
    char link[64], path[4096];
    int here, done;
    ssize_t size;
    if (next == NULL) next = NEXT(fsync);
    if (!is_tracked(file)) return next(file);
    here = reached(FSYNC);
    cut_if(here, BEFORE);
    done = next(file);
    if (tracked[file] == FOLDER) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        size = readlink(link, path, sizeof path - 1);
        path[size > 0 ? size : 0] = 0;
        note("names %s\n", path);
    } else keep(file);
    cut_if(here, AFTER);
    return done;
}

int rename(const char *from, const char *to) {
    static __typeof__(&rename) next;
    int here, done;
    if (next == NULL) next = NEXT(rename);
    if (!inside(from) && !inside(to)) return next(from, to);
    here = reached(RENAME);
    cut_if(here, BEFORE);
    done = next(from, to);
    if (done == 0) note("move %s\t%s\n", from, to);
    cut_if(here, AFTER);
    return done;
}

int unlink(const char *path) {
    static __typeof__(&unlink) next;
    struct stat about;
    int here, done;
    if (next == NULL) next = NEXT(unlink);
    if (!inside(path) || lstat(path, &about)) return next(path); /* one that is not there is no operation */
    here = reached(UNLINK);
    cut_if(here, BEFORE);
    done = next(path);
    if (done == 0) note("gone %s\n", path);
    cut_if(here, AFTER);
    return done;
}

int mkdir(const char *path, mode_t mode) {
    static __typeof__(&mkdir) next;
    int done;
    if (next == NULL) next = NEXT(mkdir);
    done = next(path, mode);
    if (done == 0 && inside(path)) note("folder %s\n", path);
    return done;
}
