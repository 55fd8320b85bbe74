// The sums of gradflow/record/sums.py, each in one read of its tensors. kernel.py compiles this
// file on first use; without a compiler PyTorch takes the same sums in several reads.
//
// Tensors are summed tile by tile: a tile in float32 lanes, the tiles in double. Where the squares
// of a tile leave the safe range of float32, the tile, which is still in the cache, is summed again
// in double. NaN and inf always end there, so that only such tiles pay for counting them.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t TILE = 2048;         // elements; three tensors of float32 fit the L1 cache
constexpr int64_t COLUMNS = 512;       // of a tile
constexpr int64_t PARALLEL = 1 << 15;  // elements from which a second thread pays
constexpr double SMALLEST_SQUARES = 1e-20, LARGEST_SQUARES = 1e37;

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t counts __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

struct bfloat16 {
  uint16_t bits;
  operator float() const {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};

inline lanes load(const float* p) {
  lanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline lanes load(const bfloat16* p) {
  halves h;
  std::memcpy(&h, p, sizeof h);
  return (lanes)(__builtin_convertvector(h, counts) << 16);
}

// The end of a row, filled up with zeros, which change no sum.
template <typename T>
inline lanes load_end(const T* p, int64_t n) {
  lanes v = {};
  for (int64_t i = 0; i < n; i++) v[i] = float(p[i]);
  return v;
}

// A copy is not read before the step is over: it goes past the cache where that can be had.
template <typename T>
inline void store_copy(T* p, const T* from, lanes v) {
#ifdef __AVX512F__
  if (sizeof(T) == 4 && uintptr_t(p) % sizeof v == 0) {
    _mm512_stream_ps((float*)p, (__m512)v);
    return;
  }
#endif
  std::memcpy(p, from, LANES * sizeof(T));
}

inline void store(float* p, lanes v) { std::memcpy(p, &v, sizeof v); }
inline lanes max(lanes a, lanes b) { return a > b ? a : b; }
inline lanes min(lanes a, lanes b) { return a < b ? a : b; }

template <typename V>
inline double total(V v) {
  double sum = 0;
  for (int64_t i = 0; i < LANES; i++) sum += v[i];
  return sum;
}

// Whether float32 squares kept their precision: none overflowed, and none that matters underflowed.
inline bool is_safe(double squares, double n_nonzero) {
  return squares < LARGEST_SQUARES && (squares > SMALLEST_SQUARES || n_nonzero == 0);
}

// Calls work(thread, first, last, sums) on shares of [0, n), and adds the sums in a fixed order.
template <int K, typename Work>
void in_parallel(int64_t n, int64_t elements, int threads, double* out, Work work) {
  if (elements < PARALLEL) threads = 1;
  std::vector<double> sums(K * threads, 0.0);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int t = 0; t < threads; t++)
    work(t, n * t / threads, n * (t + 1) / threads, sums.data() + K * t);
  for (int i = 0; i < K; i++) out[i] = sums[i];
  for (int i = K; i < K * threads; i++) out[i % K] += sums[i];
}

template <typename Tile>
inline void by_tiles(int64_t first, int64_t last, Tile tile) {
  for (int64_t i = first; i < last; i += TILE) tile(i, last - i < TILE ? last - i : TILE);
}

// --- outputs ------------------------------------------------------------------------------------

// Of z, and again of max(z, 0): what a ReLU behind the layer puts out.
enum { SUM, SQUARES, NONZERO, NONFINITE, POSITIVE = 4, OUTPUT_SUMS = 8 };

template <bool RELU>
struct OutputLanes {
  lanes sum = {}, squares = {}, positive_sum = {}, positive_squares = {};
  counts nonzero = {}, positive = {};

  inline void add(lanes z) {
    const lanes zero = {};
    sum += z;
    squares += z * z;
    nonzero -= z != zero;
    if (RELU) {
      const lanes p = max(z, zero);
      positive_sum += p;
      positive_squares += p * p;
      positive -= z > zero;
    }
  }

  // False, and nothing added, where float32 was not enough.
  inline bool add_to(double* sums) const {
    const double n = total(nonzero), n_positive = total(positive);
    const double s = total(squares), p = total(positive_squares);
    if (!is_safe(s, n) || !is_safe(p, n_positive)) return false;
    sums[SUM] += total(sum);
    sums[SQUARES] += s;
    sums[NONZERO] += n;
    sums[POSITIVE + SUM] += total(positive_sum);
    sums[POSITIVE + SQUARES] += p;
    sums[POSITIVE + NONZERO] += n_positive;
    return true;
  }
};

inline void add_exactly(double z, double* sums) {
  sums[SUM] += z;
  sums[SQUARES] += z * z;
  sums[NONZERO] += z != 0;
  sums[NONFINITE] += !std::isfinite(z);
}

// Highest and lowest of the columns of a share; NaN is never higher or lower.
struct Extremes {
  std::vector<float> high, low;
  bool has_nan = false;

  explicit Extremes(int64_t n)
      : high((n + LANES - 1) / LANES * LANES, -INFINITY), low(high.size(), INFINITY) {}

  inline void add(int64_t column, lanes highest, lanes lowest) {
    store(&high[column], max(highest, load(&high[column])));
    store(&low[column], min(lowest, load(&low[column])));
  }
};

// One tile: `rows` rows of `n` columns, `stride` elements apart.
template <bool RELU, typename T>
void add_tile(const T* x, int64_t rows, int64_t n, int64_t stride, int64_t column,
              Extremes& extremes, double* sums) {
  OutputLanes<RELU> acc;
  const int64_t whole = n / LANES * LANES;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)  // four at once: the extremes are loaded and stored less often
    for (int64_t c = 0; c < whole; c += LANES) {
      const T* p = x + r * stride + c;
      const lanes a = load(p), b = load(p + stride);
      const lanes d = load(p + 2 * stride), e = load(p + 3 * stride);
      acc.add(a), acc.add(b), acc.add(d), acc.add(e);
      extremes.add(column + c, max(max(a, b), max(d, e)), min(min(a, b), min(d, e)));
    }
  for (; r < rows; r++)
    for (int64_t c = 0; c < whole; c += LANES) {
      const lanes z = load(x + r * stride + c);
      acc.add(z);
      extremes.add(column + c, z, z);
    }
  if (whole < n)
    for (r = 0; r < rows; r++) {
      const lanes z = load_end(x + r * stride + whole, n - whole);
      acc.add(z);
      extremes.add(column + whole, z, z);
    }
  if (acc.add_to(sums)) return;
  for (r = 0; r < rows; r++)
    for (int64_t c = 0; c < n; c++) {
      const double z = float(x[r * stride + c]);
      add_exactly(z, sums);
      if (RELU) add_exactly(z > 0 || z != z ? z : 0, sums + POSITIVE);
      extremes.has_nan |= z != z;
    }
}

struct Output {
  double max = -INFINITY, min = INFINITY;
  bool has_nan = false;
};

// Threads may mark one channel at the same time.
inline void set(uint8_t* flag) {
  if (!__atomic_load_n(flag, __ATOMIC_RELAXED)) __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
}

inline void mark(uint8_t* active, int64_t channels, int64_t channel, float high, float low) {
  if (high > 0 || low < 0) set(active + channel);
  if (high > 0) set(active + channels + channel);
}

inline bool is_marked(const uint8_t* active, int64_t channels, int64_t channel) {
  return __atomic_load_n(active + channels + channel, __ATOMIC_RELAXED);
}

inline void widen(Output& total, float high, float low) {
  if (high > total.max) total.max = high;
  if (low < total.min) total.min = low;
}

// Channels innermost in memory: rows of channels.
template <bool RELU, typename T>
Output sum_rows(const T* x, int64_t first, int64_t last, int64_t channels, double* sums,
                uint8_t* active) {
  Extremes extremes(channels);
  const int64_t step = channels < COLUMNS ? TILE / channels : TILE / COLUMNS;
  for (int64_t row = first; row < last; row += step)
    for (int64_t c = 0; c < channels; c += COLUMNS) {
      const int64_t rows = last - row < step ? last - row : step;
      const int64_t n = channels - c < COLUMNS ? channels - c : COLUMNS;
      add_tile<RELU>(x + row * channels + c, rows, n, channels, c, extremes, sums);
    }
  Output total;
  total.has_nan = extremes.has_nan;
  for (int64_t c = 0; c < channels; c++) {
    mark(active, channels, c, extremes.high[c], extremes.low[c]);
    widen(total, extremes.high[c], extremes.low[c]);
  }
  return total;
}

// A run of elements whose channels do not matter.
template <bool RELU, typename T>
void add_run(const T* x, int64_t n, Extremes& extremes, double* sums) {
  const int64_t rest = n % LANES;
  if (n > rest) add_tile<RELU>(x, n / LANES, LANES, LANES, 0, extremes, sums);
  if (rest) add_tile<RELU>(x + n - rest, 1, rest, rest, 0, extremes, sums);
}

// Channels outside: planes of `n` elements, one channel each. The sums run over all planes alike;
// after it, planes are only looked into until their channel is known to be active.
template <bool RELU, typename T>
Output sum_planes(const T* x, int64_t first, int64_t last, int64_t channels, int64_t n,
                  double* sums, uint8_t* active) {
  Extremes extremes(LANES);
  by_tiles(first * n, last * n,
           [&](int64_t i, int64_t m) { add_run<RELU>(x + i, m, extremes, sums); });
  for (int64_t plane = first; plane < last; plane++) {
    const int64_t channel = plane % channels;
    for (int64_t i = plane * n; i < (plane + 1) * n && !is_marked(active, channels, channel); i++)
      mark(active, channels, channel, float(x[i]), float(x[i]));
  }
  Output total;
  total.has_nan = extremes.has_nan;
  for (int64_t i = 0; i < LANES; i++) widen(total, extremes.high[i], extremes.low[i]);
  return total;
}

// A NaN is not 0, so its channel is not dead. Only asked where there is one.
template <typename T>
void mark_nan(const T* x, int64_t outer, int64_t channels, int64_t inner, uint8_t* active) {
  for (int64_t i = 0; i < outer * channels * inner; i++)
    if (float z = float(x[i]); z != z)
      active[i / inner % channels] = active[channels + i / inner % channels] = 1;
}

template <bool RELU, typename T>
void output_sums(const T* x, int64_t outer, int64_t channels, int64_t inner, int threads,
                 double* out, uint8_t* active) {
  const int64_t n = outer * channels * inner, units = inner == 1 ? outer : outer * channels;
  std::vector<Output> outputs(threads);
  double sums[OUTPUT_SUMS];
  std::memset(active, 0, 2 * channels);
  in_parallel<OUTPUT_SUMS>(
      units, n, threads, sums, [&](int t, int64_t first, int64_t last, double* mine) {
        outputs[t] = inner == 1
                         ? sum_rows<RELU>(x, first, last, channels, mine, active)
                         : sum_planes<RELU>(x, first, last, channels, inner, mine, active);
      });
  Output all;
  for (const Output& output : outputs) {
    widen(all, output.max, output.min);
    all.has_nan |= output.has_nan;
  }
  if (all.has_nan) mark_nan(x, outer, channels, inner, active);
  for (int relu = 0; relu <= RELU; relu++) {
    const double max_abs = relu ? std::fmax(all.max, 0) : std::fmax(all.max, -all.min);
    const double* from = sums + relu * POSITIVE;
    double* to = out + relu * 6;
    to[0] = n, to[1] = from[SUM], to[2] = from[SQUARES], to[3] = from[NONZERO];
    to[4] = all.has_nan ? NAN : max_abs, to[5] = from[NONFINITE];
  }
}

// --- gradients ----------------------------------------------------------------------------------

// Σx² and the number of NaN and inf.
template <typename T>
void add_squares(const T* x, int64_t n, double* sums) {
  const lanes zero = {};
  lanes squares = {};
  counts nonzero = {};
  const auto add = [&](lanes v) {
    squares += v * v;
    nonzero -= v != zero;
  };
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) add(load(x + i));
  if (i < n) add(load_end(x + i, n - i));
  if (const double s = total(squares); is_safe(s, total(nonzero))) {
    sums[0] += s;
    return;
  }
  for (i = 0; i < n; i++) {
    const double value = float(x[i]);
    sums[0] += value * value;
    sums[1] += !std::isfinite(value);
  }
}

// --- two tensors --------------------------------------------------------------------------------

// Σx², Σy², number of NaN and inf in y, Σxy of one tile; `copy` becomes x where it is given.
template <typename T>
void add_products(const T* x, const T* y, T* copy, int64_t n, double* sums) {
  const lanes zero = {};
  lanes xx = {}, yy = {}, xy = {};
  counts nonzero_x = {}, nonzero_y = {};
  const auto add = [&](lanes a, lanes b) {
    xx += a * a;
    yy += b * b;
    xy += a * b;
    nonzero_x -= a != zero;
    nonzero_y -= b != zero;
  };
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    const lanes a = load(x + i);
    add(a, load(y + i));
    if (copy) store_copy(copy + i, x + i, a);
  }
  if (i < n) {
    add(load_end(x + i, n - i), load_end(y + i, n - i));
    if (copy) std::memcpy(copy + i, x + i, (n - i) * sizeof(T));
  }
  const double x2 = total(xx), y2 = total(yy);
  if (is_safe(x2, total(nonzero_x)) && is_safe(y2, total(nonzero_y))) {
    sums[0] += x2, sums[1] += y2, sums[3] += total(xy);
    return;
  }
  for (i = 0; i < n; i++) {
    const double a = float(x[i]), b = float(y[i]);
    sums[0] += a * a, sums[1] += b * b, sums[2] += !std::isfinite(b), sums[3] += a * b;
  }
}

// Σ(x − y)² and the number of elements whose bits differ.
template <typename T>
void add_differences(const T* x, const T* y, int64_t n, double* sums) {
  const lanes zero = {};
  lanes squares = {};
  counts nonzero = {}, differ = {};
  const auto add = [&](lanes a, lanes b) {
    const lanes d = a - b;
    squares += d * d;
    nonzero -= d != zero;
    differ -= (counts)a != (counts)b;
  };
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) add(load(x + i), load(y + i));
  if (i < n) add(load_end(x + i, n - i), load_end(y + i, n - i));
  sums[1] += total(differ);
  if (const double s = total(squares); is_safe(s, total(nonzero))) {
    sums[0] += s;
    return;
  }
  for (i = 0; i < n; i++) {
    const double d = double(float(x[i])) - double(float(y[i]));
    sums[0] += d * d;
  }
}

template <typename T>
void gradient_sums(const T* x, int64_t n, int threads, double* out) {
  in_parallel<2>(n, n, threads, out, [&](int, int64_t first, int64_t last, double* sums) {
    by_tiles(first, last, [&](int64_t i, int64_t m) { add_squares(x + i, m, sums); });
  });
}

// How many elements have each exponent in their bits, and how many are zero. A tile's exponents are
// taken out first, in lanes, and then counted in four tables, since a count that follows one of the
// same place would wait for it.
template <typename T>
void exponent_counts(const T* x, int64_t n, int threads, double* out) {
  in_parallel<257>(n, n, threads, out, [&](int, int64_t first, int64_t last, double* sums) {
    int64_t fields[4][256] = {}, zeros = 0;
    uint8_t exponents[TILE];
    by_tiles(first, last, [&](int64_t start, int64_t m) {
      int32_t zeros_here = 0;
      for (int64_t i = 0; i < m; i++) {
        const float value = float(x[start + i]);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        exponents[i] = uint8_t(bits >> 23);
        zeros_here += bits << 1 == 0;
      }
      zeros += zeros_here;
      int64_t i = 0;
      for (; i + 4 <= m; i += 4)
        for (int64_t table = 0; table < 4; table++) fields[table][exponents[i + table]]++;
      for (; i < m; i++) fields[0][exponents[i]]++;
    });
    for (int64_t i = 0; i < 1024; i++) sums[i % 256] += double(fields[i / 256][i % 256]);
    sums[256] += double(zeros);
  });
}

// One pair of tensors of a batch: `rows` rows of `n` elements each.
struct Pair {
  int64_t is_bfloat16;
  const void *x, *y;
  void* copy;
  int64_t rows, n;
};

// The four products over all rows, and Σ over rows of (Σx² of the row)(Σy² of the row).
template <typename T>
void add_rows(const Pair& pair, int64_t first, int64_t last, double* sums) {
  const T *x = (const T*)pair.x, *y = (const T*)pair.y;
  T* copy = (T*)pair.copy;
  for (int64_t row = first; row < last; row++) {
    double of_row[4] = {};
    by_tiles(row * pair.n, (row + 1) * pair.n, [&](int64_t i, int64_t m) {
      add_products(x + i, y + i, copy ? copy + i : nullptr, m, of_row);
    });
    for (int i = 0; i < 4; i++) sums[i] += of_row[i];
    sums[4] += of_row[0] * of_row[1];
  }
}

template <typename T>
void add_row_differences(const Pair& pair, int64_t first, int64_t last, double* sums) {
  const T *x = (const T*)pair.x, *y = (const T*)pair.y;
  by_tiles(first * pair.n, last * pair.n,
           [&](int64_t i, int64_t m) { add_differences(x + i, y + i, m, sums); });
}

// The moments of one parameter under Adam: m̂ = first_scale m, and √v̂ = root_scale √v.
struct Moments {
  int64_t is_bfloat16;
  const void *first, *second;
  int64_t rows;  // elements
  double first_scale, root_scale, epsilon;
};

// Σ √v̂ / (√v̂ + ε) and Σ (m̂ / (√v̂ + ε))² of one tile.
template <typename T>
void add_adam(const T* m, const T* v, const Moments& with, int64_t n, double* sums) {
  const lanes zero = {};
  const float first_scale = with.first_scale, root_scale = with.root_scale, epsilon = with.epsilon;
  lanes attenuation = {}, squares = {};
  counts nonzero = {};
  const auto add = [&](lanes a, lanes b) {
    lanes root;
    for (int64_t i = 0; i < LANES; i++) root[i] = std::sqrt(b[i]);
    root *= root_scale;
    const lanes below = root + epsilon, step = a * first_scale / below;
    attenuation += root / below;
    squares += step * step;
    nonzero -= a != zero;
  };
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) add(load(m + i), load(v + i));
  if (i < n) add(load_end(m + i, n - i), load_end(v + i, n - i));
  const double s = total(squares), a = total(attenuation);
  if (is_safe(s, total(nonzero)) && a == a) {
    sums[0] += a, sums[1] += s;
    return;
  }
  for (i = 0; i < n; i++) {
    const double root = std::sqrt(double(float(v[i]))) * with.root_scale;
    const double step = float(m[i]) * with.first_scale / (root + with.epsilon);
    sums[0] += root / (root + with.epsilon), sums[1] += step * step;
  }
}

template <typename T>
void add_moments(const Moments& with, int64_t first, int64_t last, double* sums) {
  const T *m = (const T*)with.first, *v = (const T*)with.second;
  by_tiles(first, last, [&](int64_t i, int64_t n) { add_adam(m + i, v + i, with, n, sums); });
}

// Every thread takes its share of the rows of every pair: they meet once, at the end.
template <int K, typename Pair, typename Work>
void of_pairs(const Pair* pairs, int64_t count, int threads, double* out, Work work) {
  std::vector<double> sums(K * count * threads, 0.0);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int t = 0; t < threads; t++)
    for (int64_t i = 0; i < count; i++) {
      const int64_t rows = pairs[i].rows;
      work(pairs[i], rows * t / threads, rows * (t + 1) / threads,
           sums.data() + K * (count * t + i));
    }
  for (int64_t i = 0; i < K * count; i++) {
    out[i] = sums[i];
    for (int t = 1; t < threads; t++) out[i] += sums[K * count * t + i];
  }
}

}  // namespace

// `is_bfloat16` is 0 for float32.
extern "C" {

// out: 6 sums of z, and 6 more of max(z, 0) if `relu`: n, Σ, Σ², not 0, max |z|, non-finite.
// active: 2 × channels: 1 where z ≠ 0 somewhere, and where z > 0 somewhere.
void gradflow_output(int is_bfloat16, const void* x, int64_t outer, int64_t channels,
                     int64_t inner, int relu, int threads, double* out, uint8_t* active) {
  const auto run = [&](auto* p) {
    if (relu) output_sums<true>(p, outer, channels, inner, threads, out, active);
    else output_sums<false>(p, outer, channels, inner, threads, out, active);
  };
  if (is_bfloat16) run((const bfloat16*)x);
  else run((const float*)x);
}

void gradflow_gradient(int is_bfloat16, const void* x, int64_t n, int threads, double* out) {
  if (is_bfloat16) gradient_sums((const bfloat16*)x, n, threads, out);
  else gradient_sums((const float*)x, n, threads, out);
}

// out: 257 counts, by the eight bits of the exponent, and of zeros.
void gradflow_exponents(int is_bfloat16, const void* x, int64_t n, int threads, double* out) {
  if (is_bfloat16) exponent_counts((const bfloat16*)x, n, threads, out);
  else exponent_counts((const float*)x, n, threads, out);
}

// out: 5 sums per pair.
void gradflow_products(const void* pairs, int64_t count, int threads, double* out) {
  of_pairs<5>((const Pair*)pairs, count, threads, out,
              [](const Pair& pair, int64_t first, int64_t last, double* sums) {
                if (pair.is_bfloat16) add_rows<bfloat16>(pair, first, last, sums);
                else add_rows<float>(pair, first, last, sums);
              });
}

// out: 2 sums per pair.
void gradflow_differences(const void* pairs, int64_t count, int threads, double* out) {
  of_pairs<2>((const Pair*)pairs, count, threads, out,
              [](const Pair& pair, int64_t first, int64_t last, double* sums) {
                if (pair.is_bfloat16) add_row_differences<bfloat16>(pair, first, last, sums);
                else add_row_differences<float>(pair, first, last, sums);
              });
}

// out: 2 sums per pair, of its first tensor.
void gradflow_squares(const void* pairs, int64_t count, int threads, double* out) {
  of_pairs<2>((const Pair*)pairs, count, threads, out,
              [](const Pair& pair, int64_t first, int64_t last, double* sums) {
                const auto add = [&](auto* x) {
                  by_tiles(first * pair.n, last * pair.n,
                           [&](int64_t i, int64_t m) { add_squares(x + i, m, sums); });
                };
                if (pair.is_bfloat16) add((const bfloat16*)pair.x);
                else add((const float*)pair.x);
              });
}

// out: 2 sums per parameter.
void gradflow_adam(const void* moments, int64_t count, int threads, double* out) {
  of_pairs<2>((const Moments*)moments, count, threads, out,
              [](const Moments& with, int64_t first, int64_t last, double* sums) {
                if (with.is_bfloat16) add_moments<bfloat16>(with, first, last, sums);
                else add_moments<float>(with, first, last, sums);
              });
}
}
