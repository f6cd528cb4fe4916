// Makes the fsync and fdatasync of the program that it is preloaded into slow, or fail, as the file $IO_FAULT_FILE
// says at the moment of the call; the file holds two signed 64-bit numbers in this machine's byte order:
//   0  nanoseconds that each call takes longer
//   1  how many of the next calls fail with EIO instead; each that fails takes one off
// Only files are meant; folders are synced as ever. Forked processes share the numbers.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL

struct control {
    int64_t delay_ns;
    int64_t failures_left;
};

static struct control *control;

__attribute__((constructor)) static void map_control(void) {
    const char *path = getenv("IO_FAULT_FILE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED) control = mapped;
    close(fd);
}

static void wait_ns(int64_t ns) {
    struct timespec left = {.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};
    while (nanosleep(&left, &left) && errno == EINTR) continue;  // signals, which Postgres uses a lot, shorten nothing
}

static int is_regular(int fd) {
    struct stat found;
    return !fstat(fd, &found) && S_ISREG(found.st_mode);
}

static int takes_a_failure(void) {  // processes share the number: exactly so many fail
    int64_t left = __atomic_load_n(&control->failures_left, __ATOMIC_RELAXED);
    while (left > 0) {
        if (__atomic_compare_exchange_n(&control->failures_left, &left, left - 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return 1;
    }
    return 0;
}

static int faulty_sync(long number, int fd) {
    if (control && is_regular(fd)) {
        int64_t delay_ns = __atomic_load_n(&control->delay_ns, __ATOMIC_RELAXED);
        if (delay_ns > 0) wait_ns(delay_ns);
        if (takes_a_failure()) {
            errno = EIO;
            return -1;
        }
    }
    return (int)syscall(number, fd);
}

int fsync(int fd) { return faulty_sync(SYS_fsync, fd); }

int fdatasync(int fd) { return faulty_sync(SYS_fdatasync, fd); }
