/* Two primitives of CoAtNet in C, to show that a program in another language can be judged.
 *
 *     gcc -O2 -o kernels kernels.c -lm
 *     coatref check 'op:depthwise_conv2d=cmd:"./kernels depthwise_conv2d {input} {output}"'
 *     coatref check 'op:relative_attention=cmd:"./kernels relative_attention {input} {output}"'
 *
 * It reads one safetensors file (8 bytes of header length, a JSON header, the tensors' bytes) with float32 tensors named like
 * the arguments of coatref's definition and its options as texts in the metadata, computes in float32 (sums in double with
 * -DDOUBLE_SUMS), and writes one with the tensor "y". The header is searched and not parsed in full: that is enough for
 * the files that coatref writes.
 *
 * -DBUG=... plants a mistake:
 *     1  the logits are scaled by 1/sqrt(heads*d)
 *     2  bias[key, query] is added in place of bias[query, key]
 *     3  SAME padding is replaced by (k-1)/2 rows on each side
 *     4  the kernel is flipped
 *     5  the bias is added after the softmax
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef BUG
#define BUG 0
#endif
#ifdef DOUBLE_SUMS
typedef double sum_t;
#else
typedef float sum_t;
#endif

enum { MOST_AXES = 4 };

typedef struct {
    const void *data; /* NULL where the file has no such tensor */
    int axes;
    long shape[MOST_AXES];
} tensor;

static char *header;        /* JSON, ended by a zero */
static const char *payload; /* the tensors' bytes */

static void fail(const char *message, const char *what) {
    fprintf(stderr, "kernels: %s %s\n", message, what);
    exit(1);
}

/* What stands behind `"key":` from `start` on; NULL where it does not occur. */
static const char *after_key(const char *start, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    for (const char *at = start; at && (at = strstr(at, quoted)); at++) {
        const char *next = at + strlen(quoted);
        next += strspn(next, " ");
        if (*next == ':') return next + 1 + strspn(next + 1, " ");
    }
    return NULL;
}

static void read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    uint64_t length;
    if (!file || fread(&length, sizeof length, 1, file) != 1) fail("cannot read", path);
    if (fseek(file, 0, SEEK_END)) fail("cannot read", path);
    long size = ftell(file);
    if (size < 8 || length > (uint64_t)size - 8) fail("no safetensors file:", path);
    char *content = malloc((size_t)size - 8 + 1);
    header = malloc(length + 1);
    if (!content || !header || fseek(file, 8, SEEK_SET)) fail("no memory for", path);
    if (fread(content, 1, (size_t)size - 8, file) != (size_t)size - 8) fail("cannot read", path);
    memcpy(header, content, length);
    header[length] = 0;
    payload = content + length;
    fclose(file);
}

static tensor get(const char *name, const char *dtype) {
    tensor found = {NULL, 0, {1, 1, 1, 1}};
    const char *entry = after_key(header, name);
    if (!entry || *entry != '{') return found;
    const char *kind = after_key(entry, "dtype"), *shape = after_key(entry, "shape");
    const char *offsets = after_key(entry, "data_offsets");
    if (strncmp(kind + 1, dtype, strlen(dtype))) fail("another type than expected:", name);
    for (shape++; *shape != ']'; shape += strspn(shape, ", ")) {
        if (found.axes == MOST_AXES) fail("too many axes:", name);
        found.shape[found.axes++] = strtol(shape, (char **)&shape, 10);
    }
    found.data = payload + strtoll(offsets + 1, NULL, 10);
    return found;
}

static tensor need(const char *name) {
    tensor found = get(name, "F32");
    if (!found.data) fail("no tensor", name);
    return found;
}

/* An option's text in the metadata; texts within it come as \"same\". */
static const char *option(const char *name) {
    const char *text = after_key(header, name);
    if (!text) fail("no option", name);
    text++;
    return text[0] == '\\' ? text + 2 : text;
}

static int option_is(const char *name, const char *value) { return !strncmp(option(name), value, strlen(value)); }

static void write_file(const char *path, const float *y, const long *shape) {
    uint64_t count = (uint64_t)(shape[0] * shape[1] * shape[2] * shape[3]), length;
    char text[256];
    snprintf(text, sizeof text, "{\"y\":{\"dtype\":\"F32\",\"shape\":[%ld,%ld,%ld,%ld],\"data_offsets\":[0,%llu]}}", shape[0],
             shape[1], shape[2], shape[3], (unsigned long long)(4 * count));
    length = strlen(text);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(&length, 8, 1, file) != 1 || fwrite(text, 1, length, file) != length ||
        fwrite(y, 4, count, file) != count || fclose(file))
        fail("cannot write", path);
}

/* Rows before an axis, and rows that come out. */
static void padding_of(long side, long kernel, long stride, long *before, long *rows) {
    long after;
    if (option_is("padding", "same") && BUG != 3) {
        long total = ((side + stride - 1) / stride - 1) * stride + kernel - side;
        total = total > 0 ? total : 0;
        *before = total / 2, after = total - total / 2;
    } else {
        *before = after = option_is("padding", "valid") ? 0 : (kernel - 1) / 2;
    }
    if (*before + side + after < kernel) fail("the window does not fit into", "x");
    *rows = (*before + side + after - kernel) / stride + 1;
}

static float *depthwise_conv2d(long *shape) {
    tensor x = need("x"), w = need("w"), b = get("b", "F32");
    const float *in = x.data, *kernel = w.data, *bias = b.data;
    long stride = strtol(option("stride"), NULL, 10), n = x.shape[0], height = x.shape[1], width = x.shape[2];
    long channels = x.shape[3], kh = w.shape[0], kw = w.shape[1], top, left, rows, columns;
    padding_of(height, kh, stride, &top, &rows);
    padding_of(width, kw, stride, &left, &columns);
    shape[0] = n, shape[1] = rows, shape[2] = columns, shape[3] = channels;
    float *y = malloc(sizeof *y * (size_t)(n * rows * columns * channels));
    for (long image = 0, out = 0; image < n; image++)
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < columns; j++)
                for (long c = 0; c < channels; c++, out++) {
                    sum_t sum = 0;
                    for (long k = 0; k < kh; k++)
                        for (long l = 0; l < kw; l++) {
                            long row = i * stride + k - top, column = j * stride + l - left;
                            if (row < 0 || row >= height || column < 0 || column >= width) continue;
                            long tap = BUG == 4 ? (kh - 1 - k) * kw + kw - 1 - l : k * kw + l;
                            sum += (sum_t)in[((image * height + row) * width + column) * channels + c] *
                                   kernel[tap * channels + c];
                        }
                    y[out] = (float)(sum + (bias ? bias[c] : 0));
                }
    return y;
}

static float *relative_attention(long *shape) {
    tensor q = need("q"), k = need("k"), v = need("v"), b = get("bias", "F32"), m = get("key_mask", "BOOL");
    const float *bias = b.data, *queries = q.data, *keys = k.data, *values = v.data;
    const unsigned char *mask = m.data;
    long n = q.shape[0], heads = q.shape[1], rows = q.shape[2], depth = q.shape[3], columns = k.shape[2];
    double scale = strtod(option("scale"), NULL);
    if (BUG == 1) scale = 1 / sqrt((double)(heads * depth));
    int late = option_is("add", "post_softmax") || BUG == 5, with_bias = option_is("scale_site", "logits_and_bias");
    memcpy(shape, q.shape, sizeof q.shape);
    float *y = malloc(sizeof *y * (size_t)(n * heads * rows * depth));
    double *weight = malloc(sizeof *weight * (size_t)columns), *added = malloc(sizeof *added * (size_t)columns);
    for (long image = 0; image < n; image++)
        for (long head = 0; head < heads; head++)
            for (long i = 0; i < rows; i++) {
                long at = (image * heads + head) * rows + i, of = (image * heads + head) * columns;
                double largest = -INFINITY, total = 0;
                for (long j = 0; j < columns; j++) {
                    sum_t sum = 0;
                    for (long d = 0; d < depth; d++)
                        sum += (sum_t)queries[at * depth + d] * keys[(of + j) * depth + d];
                    long first = b.shape[0] == 1 ? 0 : head;
                    long pair = BUG == 2 ? j * rows + i : i * columns + j;
                    added[j] = bias ? bias[first * rows * columns + pair] : 0;
                    weight[j] = sum * scale + (late ? 0 : added[j] * (with_bias ? scale : 1));
                    if (mask && !mask[(m.axes == 2 ? image * columns : 0) + j]) weight[j] = -INFINITY, added[j] = 0;
                    largest = fmax(largest, weight[j]);
                }
                for (long j = 0; j < columns; j++) total += weight[j] = exp(weight[j] - largest);
                for (long d = 0; d < depth; d++) {
                    sum_t sum = 0;
                    for (long j = 0; j < columns; j++)
                        sum += (sum_t)(weight[j] / total + (late ? added[j] : 0)) * values[(of + j) * depth + d];
                    y[at * depth + d] = (float)sum;
                }
            }
    free(weight), free(added);
    return y;
}

int main(int count, char **words) {
    if (count != 4) fail("usage: kernels", "depthwise_conv2d|relative_attention INPUT OUTPUT");
    long shape[MOST_AXES];
    read_file(words[2]);
    float *y = NULL;
    if (!strcmp(words[1], "depthwise_conv2d")) y = depthwise_conv2d(shape);
    if (!strcmp(words[1], "relative_attention")) y = relative_attention(shape);
    if (!y) fail("no such primitive:", words[1]);
    write_file(words[3], y, shape);
    return 0;
}
