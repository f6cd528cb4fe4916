// All clocks of the program that it is preloaded into stand still: CLOCK_REALTIME and CLOCK_MONOTONIC show the two signed
// 64-bit nanoseconds that stand at the start of the file $FROZEN_CLOCK_FILE at the moment of the call.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL
enum { REALTIME, MONOTONIC, COUNT };

static const int64_t *shown_ns = NULL;

__attribute__((constructor)) static void map_times(void) {
    const char *path = getenv("FROZEN_CLOCK_FILE");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *mapped = mmap(NULL, COUNT * sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED) shown_ns = mapped;
    close(fd);
}

static int kind_of(clockid_t clock) {
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE: return REALTIME;
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_BOOTTIME: return MONOTONIC;
    default: return COUNT;
    }
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int kind = kind_of(clock);
    if (!shown_ns || kind == COUNT) return (int)syscall(SYS_clock_gettime, clock, now);
    int64_t ns = __atomic_load_n(&shown_ns[kind], __ATOMIC_RELAXED);
    now->tv_sec = ns / NS_PER_S;
    now->tv_nsec = ns % NS_PER_S;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec shown;
    if (clock_gettime(CLOCK_REALTIME, &shown)) return -1;
    now->tv_sec = shown.tv_sec;
    now->tv_usec = shown.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *seconds) {
    struct timespec shown;
    if (clock_gettime(CLOCK_REALTIME, &shown)) return -1;
    if (seconds) *seconds = shown.tv_sec;
    return shown.tv_sec;
}

// Where Valkey learns from the name of the processor how fast its own counter runs, it reads that counter and no clock.
FILE *fopen(const char *restrict path, const char *restrict mode) {
    static FILE *(*true_fopen)(const char *, const char *);
    if (!strcmp(path, "/proc/cpuinfo")) {
        errno = ENOENT;
        return NULL;
    }
    if (!true_fopen) *(void **)&true_fopen = dlsym(RTLD_NEXT, "fopen");
    return true_fopen(path, mode);
}
