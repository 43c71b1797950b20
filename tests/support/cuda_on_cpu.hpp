// Just enough of CUDA to run kernels on the CPU, one thread after the other; `cuda_on_cpu.py` includes it before them.
//
// Threads of a block are coroutines, which change only where threads wait for each other: at __syncthreads and in the
// exchange of a warp. So the kernels run as they stand, and a missing or conditional barrier is seen.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#define COATREF_ON_CPU
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(cuda::dynamic)

struct Axes {
  unsigned x, y, z;
};
static Axes threadIdx, blockIdx, blockDim, gridDim;

namespace cuda {

enum Waiting { NOT, WARP, BLOCK, ENDED };

struct Thread {
  ucontext_t context;
  Waiting waiting;
  int place;  // line of the barrier
  Axes index;
};

constexpr std::size_t STACK = 64 * 1024;

static std::vector<Thread> threads;
static std::vector<char> stacks, memory;
static std::vector<double> exchanged;
static char* dynamic;
static ucontext_t scheduler;
static int current;
static void (*body)(void (*)(), void**);
static void (*kernel)();
static void** arguments;

inline void wait(Waiting what, int place) {
  threads[current].waiting = what;
  threads[current].place = place;
  swapcontext(&threads[current].context, &scheduler);
}

static void start() {
  body(kernel, arguments);
  threads[current].waiting = ENDED;
}

// Whether all threads from `first` to `last` that have not ended wait at the same place; then they go on.
inline bool release(int first, int last, Waiting what) {
  bool any = false;
  int place = 0;
  for (int i = first; i < last; i++) {
    if (threads[i].waiting == ENDED) continue;
    if (threads[i].waiting != what || (any && threads[i].place != place)) return false;
    any = true;
    place = threads[i].place;
  }
  for (int i = first; any && i < last; i++)
    if (threads[i].waiting == what) threads[i].waiting = NOT;
  return any;
}

// One block: 0 when all its threads have ended, 1 when some wait for ever.
inline int run_block(int count) {
  for (int i = 0; i < count; i++) {
    Thread& t = threads[i];
    t.waiting = NOT;
    t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = stacks.data() + i * STACK;
    t.context.uc_stack.ss_size = STACK;
    t.context.uc_link = &scheduler;
    makecontext(&t.context, start, 0);
  }
  for (;;) {
    bool moved = false, left = false;
    for (int i = 0; i < count; i++) {
      if (threads[i].waiting != NOT) continue;
      current = i;
      threadIdx = threads[i].index;
      swapcontext(&scheduler, &threads[i].context);
      moved = true;
    }
    for (int i = 0; i < count; i++) left = left || threads[i].waiting != ENDED;
    if (!left) return 0;
    for (int warp = 0; warp < count; warp += 32) moved = release(warp, warp + 32 < count ? warp + 32 : count, WARP) || moved;
    moved = release(0, count, BLOCK) || moved;
    if (!moved) return 1;
  }
}

template <class... P, std::size_t... I>
inline void call(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<P*>(arguments[I])...);
}

// A function that calls kernels of this signature, and the number of their arguments.
template <class... P>
struct Signature {
  static void run(void (*kernel)(), void** arguments) {
    call(reinterpret_cast<void (*)(P...)>(kernel), arguments, std::index_sequence_for<P...>{});
  }
};

struct Entry {
  const char* name;
  void (*kernel)();
  void (*body)(void (*)(), void**);
  int arguments;
  unsigned long long floating;  // bit i: argument i is a double
};

template <class... P>
Entry entry(const char* name, void (*kernel)(P...)) {
  unsigned long long floating = 0, bit = 1;
  static_assert(((sizeof(P) == 8) && ...), "CuPy passes Python's numbers in 64 bits");
  ((floating |= std::is_same<P, double>::value ? bit : 0, bit <<= 1), ...);
  return {name, reinterpret_cast<void (*)()>(kernel), Signature<P...>::run, sizeof...(P), floating};
}

// Every byte of shared memory is 0xff before each block, which makes NaN of what nobody wrote.
inline int launch(const Entry& entry, const unsigned* grid, const unsigned* block, void** given, std::size_t shared) {
  const int count = block[0] * block[1] * block[2];
  if (threads.size() < static_cast<std::size_t>(count)) {
    threads.resize(count);
    stacks.resize(count * STACK);
    exchanged.resize(count);
  }
  memory.resize(shared + 64);
  dynamic = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
  blockDim = {block[0], block[1], block[2]};
  gridDim = {grid[0], grid[1], grid[2]};
  body = entry.body;
  kernel = entry.kernel;
  arguments = given;
  for (unsigned z = 0; z < grid[2]; z++)
    for (unsigned y = 0; y < grid[1]; y++)
      for (unsigned x = 0; x < grid[0]; x++) {
        blockIdx = {x, y, z};
        std::memset(dynamic, 0xff, shared);
        if (run_block(count)) return 1;
      }
  return 0;
}

}  // namespace cuda

#define __syncthreads() cuda::wait(cuda::BLOCK, __LINE__)

template <class X>
inline X __shfl_xor_sync(unsigned, X x, int mask) {
  const int self = cuda::current;
  cuda::exchanged[self] = x;
  cuda::wait(cuda::WARP, 1);
  const X other = static_cast<X>(cuda::exchanged[self ^ mask]);
  cuda::wait(cuda::WARP, 2);
  return other;
}

inline float __int_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
