/* Preloaded, this sets the time of day back by a minute whenever somebody looks at it. */
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static _Atomic long looks;
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec -= 60 * looks++;
    return failed;
}
