// The CUDA kernels of coatref's fast forms on CuPy. `cupy_steps.py` launches them; the tests also run them on the CPU.
//
// Compiled once for each data type, REAL = 16, 32 or 64: T is what arrays hold, A what is computed in (float for half).
// Letters are those of `coatref.ops`. Arrays are contiguous and channels last, so neighbouring threads take neighbouring
// channels and their reads and writes run together. V numbers of a thread make one wide access; every kernel is there
// for V = 1 too, where channels or addresses do not divide so. Pointers that may be null say "or null". All numbers come
// in 64 bits, because that is what CuPy makes of Python's.

typedef long long i64;

#if REAL == 16
struct alignas(2) T {
  unsigned short bits;
};
typedef float A;
#elif REAL == 32
typedef float T;
typedef float A;
#else
typedef double T;
typedef double A;
#endif

#if REAL == 16 && !defined(COATREF_ON_CPU)
__device__ __forceinline__ A wide(T x) {  // in PTX: cuda_fp16.h would take longer to compile than all of this
  A y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ __forceinline__ T narrow(A x) {
  T y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
#elif REAL != 16
__device__ __forceinline__ A wide(T x) { return x; }
__device__ __forceinline__ T narrow(A x) { return x; }
#endif

#ifndef COATREF_ON_CPU
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

constexpr int COLUMNS = 4;  // neighbouring outputs that one thread of a convolution computes from the same loads
constexpr int LANES = 32;   // threads of a warp
constexpr int HELD = 8;     // numbers of a row that a lane of the softmax keeps in registers

#if REAL == 64
__device__ __forceinline__ A exp_of(A x) { return exp(x); }
__device__ __forceinline__ A erf_of(A x) { return erf(x); }
__device__ __forceinline__ A tanh_of(A x) { return tanh(x); }
__device__ __forceinline__ A log1p_of(A x) { return log1p(x); }
__device__ __forceinline__ A abs_of(A x) { return fabs(x); }
__device__ __forceinline__ A root_of(A x) { return sqrt(x); }
#else
__device__ __forceinline__ A exp_of(A x) { return expf(x); }
__device__ __forceinline__ A erf_of(A x) { return erff(x); }
__device__ __forceinline__ A tanh_of(A x) { return tanhf(x); }
__device__ __forceinline__ A log1p_of(A x) { return log1pf(x); }
__device__ __forceinline__ A abs_of(A x) { return fabsf(x); }
__device__ __forceinline__ A root_of(A x) { return sqrtf(x); }
#endif

__device__ __forceinline__ A minus_infinity() { return (A)__int_as_float(0xff800000); }

// The larger; NaN wins, as in the definition.
__device__ __forceinline__ A larger(A a, A b) { return a > b || a != a ? a : b; }

// --- numbers that lie together ---

template <int V>
struct alignas(V * sizeof(T)) Vector {
  T at[V];
};

template <int V>
__device__ __forceinline__ void fill(A (&y)[V], A value) {
#pragma unroll
  for (int v = 0; v < V; v++) y[v] = value;
}

template <int V>
__device__ __forceinline__ void load(A (&y)[V], const T* from) {
  const Vector<V> raw = *reinterpret_cast<const Vector<V>*>(from);
#pragma unroll
  for (int v = 0; v < V; v++) y[v] = wide(raw.at[v]);
}

#if REAL == 16
template <int V>
struct alignas(V * sizeof(T)) Words {
  unsigned at[V / 2];
};
#endif

template <int V>
__device__ __forceinline__ void store(T* to, const A (&y)[V]) {
#if REAL == 16
  if constexpr (V % 2 == 0) {  // in words of two, or the compiler may write one number at a time
    Words<V> words;
#pragma unroll
    for (int v = 0; v < V / 2; v++)
      words.at[v] = (unsigned)narrow(y[2 * v]).bits | (unsigned)narrow(y[2 * v + 1]).bits << 16;
    *reinterpret_cast<Words<V>*>(to) = words;
  } else
#endif
  {
    Vector<V> raw;
#pragma unroll
    for (int v = 0; v < V; v++) raw.at[v] = narrow(y[v]);
    *reinterpret_cast<Vector<V>*>(to) = raw;
  }
}

// from[offset...], or `otherwise` where there is no array.
template <int V>
__device__ __forceinline__ void load_or(A (&y)[V], const T* from, i64 offset, A otherwise) {
  if (from != nullptr)
    load<V>(y, from + offset);
  else
    fill<V>(y, otherwise);
}

__device__ __forceinline__ i64 this_thread() { return blockIdx.x * (i64)blockDim.x + threadIdx.x; }

// i / n and i % n for what is not negative; in 32 bits, where that does, a division takes a fraction of the time.
__device__ __forceinline__ i64 quotient(i64 i, i64 n) {
  return ((i | n) >> 32) == 0 ? (i64)((unsigned)i / (unsigned)n) : i / n;
}
__device__ __forceinline__ i64 remainder_of(i64 i, i64 n) { return i - quotient(i, n) * n; }

// --- activations: the formulas of coatref.ops.activation, which settle what NaN and infinity give ---

__device__ __forceinline__ A relu_of(A x) { return x > 0 || x != x ? x : (A)0; }

__device__ __forceinline__ A sigmoid_of(A x) {
  const A e = exp_of(-abs_of(x));
  return (x < 0 ? e : (A)1) / (1 + e);
}

enum Activation { NONE, GELU, GELU_TANH, SILU, RELU, MISH, TANH };  // the order of CODES in cupy_steps.py

__device__ __forceinline__ A activated(A x, int kind) {
  switch (kind) {
    case GELU: return (A)0.5 * x * (1 + erf_of(x * (A)0.70710678118654752440));
    case GELU_TANH:
      return (A)0.5 * x * (1 + tanh_of((A)0.79788456080286535588 * (x + (A)0.044715 * (x * x * x))));
    case SILU: return x * sigmoid_of(x);
    case RELU: return relu_of(x);
    case MISH: return x * tanh_of(relu_of(x) + log1p_of(exp_of(-abs_of(x))));
    case TANH: return tanh_of(x);
  }
  return x;
}

// `kind` is the same for all threads. With SiLU and GELU the switch stands outside the loop, so that the V numbers are
// computed side by side.
template <int V>
__device__ __forceinline__ void activate(A (&y)[V], int kind) {
  if (kind == SILU) {
#pragma unroll
    for (int v = 0; v < V; v++) y[v] = activated(y[v], SILU);
  } else if (kind == GELU) {
#pragma unroll
    for (int v = 0; v < V; v++) y[v] = activated(y[v], GELU);
  } else if (kind != NONE) {
#pragma unroll
    for (int v = 0; v < V; v++) y[v] = activated(y[v], kind);
  }
}

// --- elementwise chains ---

// out = act(x scale + shift) + residual; scale and shift (C,) or null, residual or null; out may be x.
template <int V>
__global__ void chain(T* out, const T* x, const T* scale, const T* shift, const T* residual, i64 count, i64 channels,
                      i64 act) {
  const i64 i = this_thread() * V;
  if (i >= count) return;
  const i64 c = remainder_of(i, channels);
  A y[V], s[V], t[V], r[V];
  load<V>(y, x + i);
  load_or<V>(r, residual, i, 0);
  load_or<V>(s, scale, c, 1);
  load_or<V>(t, shift, c, 0);
#pragma unroll
  for (int v = 0; v < V; v++) y[v] = scale == nullptr && shift == nullptr ? y[v] : y[v] * s[v] + t[v];
  activate<V>(y, (int)act);
  if (residual != nullptr) {
#pragma unroll
    for (int v = 0; v < V; v++) y[v] += r[v];
  }
  store<V>(out + i, y);
}

// out = act(x gate[n] + shift): gate (N, C) of squeeze-excite; shift (C,) or null; out may be x. `plane` is H W C.
template <int V>
__global__ void gated(T* out, const T* x, const A* gate, const T* shift, i64 count, i64 plane, i64 channels, i64 act) {
  const i64 i = this_thread() * V;
  if (i >= count) return;
  const i64 n = quotient(i, plane), c = remainder_of(i, channels);
  A y[V], t[V];
  load<V>(y, x + i);
  load_or<V>(t, shift, c, 0);
#pragma unroll
  for (int v = 0; v < V; v++) y[v] = y[v] * gate[n * channels + c + v] + t[v];
  activate<V>(y, (int)act);
  store<V>(out + i, y);
}

// out = (x - mean) gamma/sqrt(var + epsilon) + beta, all four (C,).
template <int V>
__global__ void batch_norm(T* out, const T* x, const T* gamma, const T* beta, const T* mean, const T* var, i64 count,
                           i64 channels, double epsilon) {
  const i64 i = this_thread() * V;
  if (i >= count) return;
  const i64 c = remainder_of(i, channels);
  A y[V], g[V], b[V], m[V], s[V];
  load<V>(y, x + i);
  load<V>(g, gamma + c);
  load<V>(b, beta + c);
  load<V>(m, mean + c);
  load<V>(s, var + c);
#pragma unroll
  for (int v = 0; v < V; v++) y[v] = (y[v] - m[v]) * (g[v] / root_of(s[v] + (A)epsilon)) + b[v];
  store<V>(out + i, y);
}

// --- rows, a warp for each: blocks of (32, rows) threads ---

__device__ __forceinline__ A sum_of_warp(A x) {
  for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

__device__ __forceinline__ A max_of_warp(A x) {
  for (int step = LANES / 2; step > 0; step /= 2) x = larger(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

// LayerNorm of each row of x (rows, C); gamma and beta (C,), or both null. The row comes from memory once and from the
// nearest cache twice more, so that the variance can be that of the centred values.
template <int V>
__global__ void layer_norm(T* out, const T* x, const T* gamma, const T* beta, i64 rows, i64 channels, double epsilon) {
  const i64 row = blockIdx.x * (i64)blockDim.y + threadIdx.y;
  if (row >= rows) return;  // the whole warp
  const T* from = x + row * channels;
  const int first = threadIdx.x * V, step = LANES * V, end = (int)channels;
  A y[V], g[V], b[V], total = 0;
  for (int c = first; c < end; c += step) {
    load<V>(y, from + c);
#pragma unroll
    for (int v = 0; v < V; v++) total += y[v];
  }
  const A mean = sum_of_warp(total) / (A)channels;
  total = 0;
  for (int c = first; c < end; c += step) {
    load<V>(y, from + c);
#pragma unroll
    for (int v = 0; v < V; v++) total += (y[v] - mean) * (y[v] - mean);
  }
  const A factor = 1 / root_of(sum_of_warp(total) / (A)channels + (A)epsilon);
  for (int c = first; c < end; c += step) {
    load<V>(y, from + c);
    load_or<V>(g, gamma, c, 1);
    load_or<V>(b, beta, c, 0);
#pragma unroll
    for (int v = 0; v < V; v++) y[v] = (y[v] - mean) * factor * g[v] + b[v];
    store<V>(out + row * channels + c, y);
  }
}

// One row of attention weights: number k of it is softmax_k(x + factor bias), or softmax_k(x) + bias where `late`.
struct Row {
  const T* x;
  const T* bias;              // or null
  const unsigned char* shown;  // or null; 0 hides a key
  A factor;
  bool late;

  __device__ __forceinline__ A logit(int k) const {
    if (shown != nullptr && shown[k] == 0) return minus_infinity();
    return bias != nullptr && !late ? wide(x[k]) + factor * wide(bias[k]) : wide(x[k]);
  }
  __device__ __forceinline__ A weight(int k, A p) const {
    return bias != nullptr && late && (shown == nullptr || shown[k] != 0) ? p + wide(bias[k]) : p;
  }
};

// Softmax of rows of K numbers that begin `stride` apart in x and out, with the bias of relative attention: row
// (n heads + h) Q + q has bias[h, q, :] of (bias_heads, Q, K) or null, bias_heads 1 or heads, and mask (mask_images, K)
// or null, mask_images 1 or N. out may be x. Rows of up to 32 HELD numbers are read once and kept in registers.
__global__ void softmax(T* out, const T* x, const T* bias, const unsigned char* mask, i64 rows, i64 keys, i64 stride,
                        i64 queries, i64 heads, i64 bias_heads, i64 mask_images, double factor, i64 late) {
  const i64 row = blockIdx.x * (i64)blockDim.y + threadIdx.y;
  if (row >= rows) return;  // the whole warp
  const i64 image_head = quotient(row, queries), q = row - image_head * queries;
  const i64 n = quotient(image_head, heads), h = image_head - n * heads;
  Row r;
  r.x = x + row * stride;
  r.bias = bias == nullptr ? nullptr : bias + ((bias_heads == 1 ? 0 : h) * queries + q) * keys;
  r.shown = mask == nullptr ? nullptr : mask + (mask_images == 1 ? 0 : n) * keys;
  r.factor = (A)factor;
  r.late = late != 0;
  T* to = out + row * stride;
  const int lane = threadIdx.x, end = (int)keys;
  A most = minus_infinity(), total = 0;
  if (end <= LANES * HELD) {
    A e[HELD];
#pragma unroll
    for (int j = 0; j < HELD; j++) {
      const int k = lane + j * LANES;
      e[j] = k < end ? r.logit(k) : minus_infinity();
      most = larger(most, e[j]);
    }
    most = max_of_warp(most);
#pragma unroll
    for (int j = 0; j < HELD; j++) {
      e[j] = lane + j * LANES < end ? exp_of(e[j] - most) : 0;
      total += e[j];
    }
    total = sum_of_warp(total);
#pragma unroll
    for (int j = 0; j < HELD; j++) {
      const int k = lane + j * LANES;
      if (k < end) to[k] = narrow(r.weight(k, e[j] / total));
    }
    return;
  }
  for (int k = lane; k < end; k += LANES) most = larger(most, r.logit(k));
  most = max_of_warp(most);
  for (int k = lane; k < end; k += LANES) total += exp_of(r.logit(k) - most);
  total = sum_of_warp(total);
  for (int k = lane; k < end; k += LANES) to[k] = narrow(r.weight(k, exp_of(r.logit(k) - most) / total));
}

// --- windows on a grid ---

struct Window {
  int height, width, channels;  // of x
  int rows, columns;            // of the output
  int size_h, size_w, stride, top, left;
};

#define WINDOW_PARAMETERS                                                                                      \
  i64 height, i64 width, i64 channels, i64 rows, i64 columns, i64 size_h, i64 size_w, i64 stride, i64 top, i64 left
#define WINDOW                                                                                                 \
  { (int)height, (int)width, (int)channels, (int)rows, (int)columns, (int)size_h, (int)size_w, (int)stride, (int)top, \
    (int)left }

// Depthwise convolution, bias and activation: w (kh, kw, C), b (C,) or null. One thread computes V channels of COLUMNS
// neighbouring outputs. SIZE and STRIDE are those of the window where they are known to the compiler, which then loads
// each number of x once; with 0 they are read from `o`, and some numbers come several times, from the nearest cache.
template <int V, int SIZE, int STRIDE>
__device__ __forceinline__ void depthwise_at(T* out, const T* x, const T* w, const T* b, const Window& o, int row,
                                             int first, int c, int act) {
  const int size_h = SIZE ? SIZE : o.size_h, size_w = SIZE ? SIZE : o.size_w, stride = STRIDE ? STRIDE : o.stride;
  A sum[COLUMNS][V], factor[V];
#pragma unroll
  for (int t = 0; t < COLUMNS; t++) fill<V>(sum[t], 0);
  for (int k = 0; k < size_h; k++) {
    const int i = row * stride + k - o.top;
    const bool inside = i >= 0 && i < o.height;
    const T* line = x + ((i64)(inside ? i : 0) * o.width) * o.channels + c;
    if constexpr (SIZE != 0) {
      constexpr int SPAN = (COLUMNS - 1) * STRIDE + SIZE;
      A y[SPAN][V];
#pragma unroll
      for (int m = 0; m < SPAN; m++) {
        const int j = first * STRIDE + m - o.left;
        if (inside && j >= 0 && j < o.width)
          load<V>(y[m], line + (i64)j * o.channels);
        else
          fill<V>(y[m], 0);
      }
#pragma unroll
      for (int l = 0; l < SIZE; l++) {
        load<V>(factor, w + (k * SIZE + l) * o.channels + c);
#pragma unroll
        for (int t = 0; t < COLUMNS; t++)
#pragma unroll
          for (int v = 0; v < V; v++) sum[t][v] += y[t * STRIDE + l][v] * factor[v];
      }
    } else {
      for (int l = 0; l < size_w; l++) {
        load<V>(factor, w + (k * size_w + l) * o.channels + c);
#pragma unroll
        for (int t = 0; t < COLUMNS; t++) {
          const int j = (first + t) * stride + l - o.left;
          A y[V];
          if (inside && j >= 0 && j < o.width)
            load<V>(y, line + (i64)j * o.channels);
          else
            fill<V>(y, 0);
#pragma unroll
          for (int v = 0; v < V; v++) sum[t][v] += y[v] * factor[v];
        }
      }
    }
  }
  A shift[V];
  load_or<V>(shift, b, c, 0);
#pragma unroll
  for (int t = 0; t < COLUMNS; t++) {
    if (first + t < o.columns) {
#pragma unroll
      for (int v = 0; v < V; v++) sum[t][v] += shift[v];
      activate<V>(sum[t], act);
      store<V>(out + ((i64)row * o.columns + first + t) * o.channels + c, sum[t]);
    }
  }
}

// Grid of blocks: (channels and columns, rows, images), the last two as many as the device takes.
template <int V, int SIZE, int STRIDE>
__global__ void depthwise(T* out, const T* x, const T* w, const T* b, i64 images, WINDOW_PARAMETERS, i64 act) {
  const Window o = WINDOW;
  const int vectors = o.channels / V, tiles = (o.columns + COLUMNS - 1) / COLUMNS;
  const i64 i = this_thread();
  if (i >= (i64)vectors * tiles) return;
  const int tile = (int)(i / vectors), c = ((int)i - tile * vectors) * V;
  for (i64 n = blockIdx.z; n < images; n += gridDim.z)
    for (int row = blockIdx.y; row < o.rows; row += gridDim.y)
      depthwise_at<V, SIZE, STRIDE>(out + n * rows * columns * channels, x + n * height * width * channels, w, b, o, row,
                                    tile * COLUMNS, c, (int)act);
}

enum Pool { LARGEST, MEAN_INSIDE, MEAN_COUNTED };  // the order of POOLS in cupy_steps.py

// The largest number or the mean of each window.
template <int V>
__global__ void pool(T* out, const T* x, i64 count, WINDOW_PARAMETERS, i64 kind) {
  const i64 i = this_thread() * V;
  if (i >= count) return;
  const Window o = WINDOW;
  i64 position = quotient(i, channels);
  const int c = (int)(i - position * channels);
  const i64 line = quotient(position, columns), n = quotient(line, rows);
  const int column = (int)(position - line * columns), row = (int)(line - n * rows);
  A best[V], y[V];
  fill<V>(best, kind == LARGEST ? minus_infinity() : (A)0);
  int inside = 0;
  for (int k = 0; k < o.size_h; k++) {
    const int a = row * o.stride + k - o.top;
    if (a < 0 || a >= o.height) continue;
    for (int l = 0; l < o.size_w; l++) {
      const int j = column * o.stride + l - o.left;
      if (j < 0 || j >= o.width) continue;
      load<V>(y, x + ((n * o.height + a) * o.width + j) * channels + c);
      inside++;
#pragma unroll
      for (int v = 0; v < V; v++) best[v] = kind == LARGEST ? larger(best[v], y[v]) : best[v] + y[v];
    }
  }
  const A number = (A)(kind == MEAN_COUNTED ? o.size_h * o.size_w : inside);
  if (kind != LARGEST) {
#pragma unroll
    for (int v = 0; v < V; v++) best[v] /= number;
  }
  store<V>(out + i, best);
}

// What the windows of `count / (kh kw C)` positions see, from position `start` of (N, H', W') on: (positions, kh kw C).
// Convolution is then one product of matrices.
template <int V>
__global__ void patches(T* out, const T* x, i64 count, i64 start, WINDOW_PARAMETERS) {
  const i64 i = this_thread() * V;
  if (i >= count) return;
  const Window o = WINDOW;
  const int length = o.size_h * o.size_w * o.channels;
  const i64 place = quotient(i, length), position = start + place;
  const int within = (int)(i - place * length), tap = within / o.channels, c = within - tap * o.channels;
  const int k = tap / o.size_w, l = tap - k * o.size_w;
  const i64 line = quotient(position, columns), n = quotient(line, rows);
  const int a = (int)(line - n * rows) * o.stride + k - o.top, j = (int)(position - line * columns) * o.stride + l - o.left;
  A y[V];
  if (a >= 0 && a < o.height && j >= 0 && j < o.width)
    load<V>(y, x + ((n * o.height + a) * o.width + j) * channels + c);
  else
    fill<V>(y, 0);
  store<V>(out + i, y);
}

// Convolution, bias and activation for kernels of few numbers (a stem of 3 channels): w (kh, kw, C, D), b (D,) or null.
// One thread computes V output channels of COLUMNS neighbouring positions.
template <int V>
__global__ void convolution(T* out, const T* x, const T* w, const T* b, i64 positions, i64 outputs, WINDOW_PARAMETERS,
                            i64 act) {
  const Window o = WINDOW;
  const i64 vectors = outputs / V, i = this_thread(), group = quotient(i, vectors);
  const i64 first = group * COLUMNS, d = (i - group * vectors) * V;
  if (first >= positions) return;
  const T* image[COLUMNS];
  int a0[COLUMNS], j0[COLUMNS];
#pragma unroll
  for (int t = 0; t < COLUMNS; t++) {
    const i64 position = first + t < positions ? first + t : first;
    const i64 line = quotient(position, columns), n = quotient(line, rows);
    image[t] = x + n * height * width * channels;
    a0[t] = (int)(line - n * rows) * o.stride - o.top;
    j0[t] = (int)(position - line * columns) * o.stride - o.left;
  }
  A sum[COLUMNS][V], factor[V];
#pragma unroll
  for (int t = 0; t < COLUMNS; t++) fill<V>(sum[t], 0);
  const T* weight = w + d;
  for (int k = 0; k < o.size_h; k++) {
    for (int l = 0; l < o.size_w; l++) {
      const T* from[COLUMNS];
#pragma unroll
      for (int t = 0; t < COLUMNS; t++) {
        const int a = a0[t] + k, j = j0[t] + l;
        from[t] = a >= 0 && a < o.height && j >= 0 && j < o.width ? image[t] + ((i64)a * o.width + j) * channels : nullptr;
      }
      for (int c = 0; c < o.channels; c++, weight += outputs) {
        load<V>(factor, weight);
#pragma unroll
        for (int t = 0; t < COLUMNS; t++) {
          const A y = from[t] == nullptr ? (A)0 : wide(from[t][c]);
#pragma unroll
          for (int v = 0; v < V; v++) sum[t][v] += y * factor[v];
        }
      }
    }
  }
  load_or<V>(factor, b, d, 0);
#pragma unroll
  for (int t = 0; t < COLUMNS; t++) {
    if (first + t < positions) {
#pragma unroll
      for (int v = 0; v < V; v++) sum[t][v] += factor[v];
      activate<V>(sum[t], (int)act);
      store<V>(out + (first + t) * outputs + d, sum[t]);
    }
  }
}

// --- means over positions, and squeeze-excite ---

constexpr int STRIPES = 8;

// Sums of x (N, P, C) over parts of the positions: out (N, parts, C) in A. Blocks of (32, STRIPES) threads, a grid of
// (channels, parts, images). Adding always the same numbers in the same order, they give the same sum every time.
template <int V>
__global__ void partial_sums(A* out, const T* x, i64 images, i64 positions, i64 channels, i64 parts) {
  __shared__ A sums[STRIPES][LANES * V];
  const i64 c = (blockIdx.x * (i64)LANES + threadIdx.x) * V;
  const i64 length = (positions + parts - 1) / parts, begin = blockIdx.y * length;
  const i64 end = begin + length < positions ? begin + length : positions;
  for (i64 n = blockIdx.z; n < images; n += gridDim.z) {
    A sum[V], y[V];
    fill<V>(sum, 0);
    if (c < channels) {
#pragma unroll 4
      for (i64 p = begin + threadIdx.y; p < end; p += STRIPES) {
        load<V>(y, x + (n * positions + p) * channels + c);
#pragma unroll
        for (int v = 0; v < V; v++) sum[v] += y[v];
      }
    }
#pragma unroll
    for (int v = 0; v < V; v++) sums[threadIdx.y][threadIdx.x * V + v] = sum[v];
    __syncthreads();
    if (threadIdx.y == 0 && c < channels) {
#pragma unroll
      for (int v = 0; v < V; v++) {
        A total = 0;
        for (int stripe = 0; stripe < STRIPES; stripe++) total += sums[stripe][threadIdx.x * V + v];
        out[(n * parts + blockIdx.y) * channels + c + v] = total;
      }
    }
    __syncthreads();
  }
}

__device__ __forceinline__ A mean_of(const A* sums, i64 n, i64 c, i64 positions, i64 channels, i64 parts) {
  A total = 0;
  for (i64 part = 0; part < parts; part++) total += sums[(n * parts + part) * channels + c];
  return total / (A)positions;
}

// The means themselves, out (N, C).
__global__ void means(T* out, const A* sums, i64 images, i64 positions, i64 channels, i64 parts) {
  const i64 i = this_thread();
  if (i >= images * channels) return;
  const i64 n = quotient(i, channels);
  out[i] = narrow(mean_of(sums, n, i - n * channels, positions, channels, parts));
}

// y = b + x w by one block: x (C,) and y (D,) in shared memory, w (C, D), b (D,) or null, `work` one number a thread.
// Neighbouring threads take neighbouring columns of w; threads left over divide the rows among them.
__device__ __forceinline__ void product(A* y, const A* x, const T* w, const T* b, int c, int d, A* work) {
  const int thread = threadIdx.x, threads = blockDim.x, across = d < threads ? d : threads, parts = threads / across;
  const int column = thread % across, part = thread / across;
  for (int base = 0; base < d; base += across) {
    const int j = base + column;
    A sum = 0;
    if (j < d && part < parts) {
#pragma unroll 8
      for (int k = part; k < c; k += parts) sum += x[k] * wide(w[(i64)k * d + j]);
    }
    work[thread] = sum;
    __syncthreads();
    if (part == 0 && j < d) {
      for (int other = 1; other < parts; other++) sum += work[other * across + column];
      y[j] = b == nullptr ? sum : sum + wide(b[j]);
    }
    __syncthreads();
  }
}

// The gates of squeeze-excite, a block for each image: gate = sigmoid(act(mean w1 + b1) w2 + b2) scale, (N, C) in A;
// w1 (C, D), w2 (D, C), b1, b2 and scale or null. Shared memory: C + D + C numbers and one for each thread.
__global__ void gates(A* gate, const A* sums, const T* w1, const T* b1, const T* w2, const T* b2, const T* scale,
                      i64 positions, i64 channels, i64 hidden, i64 parts, i64 act) {
  DYNAMIC_SHARED(A, memory);
  A *mean = memory, *inner = mean + channels, *last = inner + hidden, *work = last + channels;
  const i64 n = blockIdx.x;
  for (i64 c = threadIdx.x; c < channels; c += blockDim.x) mean[c] = mean_of(sums, n, c, positions, channels, parts);
  __syncthreads();
  product(inner, mean, w1, b1, (int)channels, (int)hidden, work);
  for (i64 j = threadIdx.x; j < hidden; j += blockDim.x) inner[j] = activated(inner[j], (int)act);
  __syncthreads();
  product(last, inner, w2, b2, (int)hidden, (int)channels, work);
  for (i64 c = threadIdx.x; c < channels; c += blockDim.x) {
    const A g = sigmoid_of(last[c]);
    gate[n * channels + c] = scale == nullptr ? g : g * wide(scale[c]);
  }
}

// --- heads ---

// x (N, P, groups, heads, D) -> out (groups, N, heads, P, D): to the heads of attention, and, with other names, back.
template <int V>
__global__ void regroup(T* out, const T* x, i64 count, i64 images, i64 positions, i64 groups, i64 heads, i64 size) {
  const i64 i = this_thread() * V;  // of out
  if (i >= count) return;
  i64 outer = quotient(i, size);
  const i64 d = i - outer * size;
  const i64 p = remainder_of(outer, positions);
  outer = quotient(outer, positions);
  const i64 h = remainder_of(outer, heads);
  outer = quotient(outer, heads);
  const i64 n = remainder_of(outer, images), g = quotient(outer, images);
  A y[V];
  load<V>(y, x + (((n * positions + p) * groups + g) * heads + h) * size + d);
  store<V>(out + i, y);
}
