/* What the stand-in for TensorRT runs "on the GPU": jobs that it queues on a stream of the stand-in for libcuda. They run
 * when the stream does, in whatever thread waits for it, and must not call back: neither CUDA nor Python. */
#include <stdint.h>
#include <string.h>

enum { COPY, SWAP, ADD, SUB, SPREAD, PUT };

typedef struct {
    int op, dtype; /* dtype: 0 float, 1 int32, 2 int64, of ADD, SUB */
    size_t n;      /* bytes of COPY and PUT; elements of ADD, SUB and SPREAD; matrices of SWAP */
    size_t item, rows, columns;
    const char *a, *b;
    char *out;
    int64_t values[16]; /* of PUT: what is written */
} job;

#define ELEMENTS(type)                                                                                                 \
    do {                                                                                                               \
        const type *x = (const type *)j->a, *y = (const type *)j->b;                                                   \
        type *z = (type *)j->out;                                                                                      \
        for (size_t i = 0; i < j->n; i++) z[i] = j->op == ADD ? x[i] + y[i] : x[i] - y[i];                             \
    } while (0)

__attribute__((visibility("default"))) void run_job(void *given) {
    const job *j = given;
    size_t m, r, c, size = j->item * j->rows * j->columns;
    switch (j->op) {
    case COPY: memmove(j->out, j->a, j->n); break;
    case PUT: memcpy(j->out, j->values, j->n); break;
    case SWAP:
        for (m = 0; m < j->n; m++)
            for (r = 0; r < j->rows; r++)
                for (c = 0; c < j->columns; c++)
                    memcpy(j->out + m * size + (c * j->rows + r) * j->item,
                           j->a + m * size + (r * j->columns + c) * j->item, j->item);
        break;
    case SPREAD:
        for (m = 0; m < j->n; m++) memcpy(j->out + m * j->item, j->a, j->item);
        break;
    default:
        if (j->dtype == 0) ELEMENTS(float);
        else if (j->dtype == 1) ELEMENTS(int32_t);
        else ELEMENTS(int64_t);
    }
}
