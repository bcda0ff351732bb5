// What this processor and its system can run: a library of its own, compiled for any processor, that is asked which of the
// others to load. It reads the registers itself: not every compiler brings the tables of __builtin_cpu_supports.

#include "api.hpp"

#ifdef __x86_64__
#include <cpuid.h>

namespace {

bool all_of(unsigned found, unsigned wanted) { return (found & wanted) == wanted; }

// The parts of the registers that the system keeps for each thread.
unsigned kept_by_system() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

}  // namespace
#endif

// A place in the list of instruction sets in build.py.
KITHKIN_API int kithkin_level() {
#ifdef __x86_64__
    constexpr unsigned FMA = 1u << 12, SYSTEM = 1u << 27, AVX = 1u << 28, YMM = 0x06, ZMM = 0xe6;
    constexpr unsigned AVX2 = 1u << 5, AVX512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW and VL
    constexpr unsigned BF16 = 1u << 5;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !all_of(c, FMA | SYSTEM | AVX)) return 0;
    const unsigned kept = kept_by_system();
    if (!all_of(kept, YMM) || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !all_of(b, AVX2)) return 0;
    if (!all_of(kept, ZMM) || !all_of(b, AVX512)) return 1;
    return a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && all_of(a, BF16) ? 3 : 2;
#else
    return 0;
#endif
}
