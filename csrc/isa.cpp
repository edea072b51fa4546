// Which instruction set this process uses; native.py asks, and shows the answer.
#include <cstdlib>

#include "vec.h"

#ifndef ISA
static const char* const NAMES[] = {"portable", "avx2", "avx512"};

static bool has(Isa set) {
#ifdef __x86_64__
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (set == Isa::avx2) return avx2;
  if (set == Isa::avx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return set == Isa::portable;
}

// -1 where ASWL_ISA names a set that there is not, or not on this processor
static int choose() {
  const char* asked = getenv("ASWL_ISA");
  for (int i = 2; i >= 0; i--) {
    if (asked && *asked ? !strcmp(asked, NAMES[i]) : has(Isa(i))) return has(Isa(i)) ? i : -1;
  }
  return -1;
}

static const int CHOSEN = choose();

Isa isa() { return CHOSEN < 0 ? Isa::portable : Isa(CHOSEN); }

extern "C" __attribute__((visibility("default"))) const char* aswl_isa() { return CHOSEN < 0 ? "" : NAMES[CHOSEN]; }

#ifdef ASWL_SOURCES
// the digest of the sources this library was built from, which is looked for in the file
extern "C" __attribute__((visibility("default"))) const char* aswl_sources() { return ASWL_SOURCES; }
#endif
#endif
