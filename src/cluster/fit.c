/* Curves through measured points, by least squares of logarithms: a search over a grid that
 * narrows. */
#include "cluster/cluster.h"

#include <math.h>

enum { GRID = 24, ROUNDS = 8, FIT_MAX = 3 };

/* Parameters lie between low and high; `error` is what the search makes small. */
typedef struct Fit {
    double low[FIT_MAX], high[FIT_MAX];
    int n;
    double (*error)(const struct Fit *fit, const double *parameter);
    const DeviceSheet *device;
    const void *points;
    int n_points;
    MathKind math;
    double element_bytes;
} Fit;

/* One point of the grid over a box, by its number. */
static void grid_point(const Fit *fit, const double *low, const double *high, int64_t index,
                       double *parameter)
{
    for (int i = 0; i < FIT_MAX && i < fit->n; i++, index /= GRID + 1)
        parameter[i] = low[i] + (high[i] - low[i]) * (double)(index % (GRID + 1)) / GRID;
}

/* Each round the box shrinks around the best point: an eighth of its sides to either hand. */
static double fit_run(const Fit *fit, double *best)
{
    double low[FIT_MAX], high[FIT_MAX], least = INFINITY;
    int64_t n = 1;
    CHECK(fit->n <= FIT_MAX);
    for (int i = 0; i < fit->n; i++) {
        low[i] = fit->low[i];
        high[i] = fit->high[i];
        n *= GRID + 1;
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int64_t index = 0; index < n; index++) {
            double parameter[FIT_MAX], error;
            grid_point(fit, low, high, index, parameter);
            error = fit->error(fit, parameter);
            if (error >= least) continue;
            least = error;
            for (int i = 0; i < fit->n; i++) best[i] = parameter[i];
        }
        for (int i = 0; i < fit->n; i++) {
            double reach = (high[i] - low[i]) / 8;
            low[i] = fmax(fit->low[i], best[i] - reach);
            high[i] = fmin(fit->high[i], best[i] + reach);
        }
    }
    return sqrt(least / fit->n_points);
}

static double square(double x) { return x * x; }

/* ---- products --------------------------------------------------------------------------- */

static double matrix_error(const Fit *fit, const double *parameter)
{
    DeviceSheet device = *fit->device;
    const MatrixPoint *point = fit->points;
    double sum = 0;
    device.matrix[fit->math].eta_inf = parameter[0];
    device.matrix[fit->math].k_half = parameter[1];
    for (int i = 0; i < fit->n_points; i++) {
        double rate = cluster_matrix_flop_per_s(&device, fit->math, fit->element_bytes, point[i].m,
                                                point[i].n, point[i].k);
        sum += square(log(rate / point[i].flop_per_s));
    }
    return sum;
}

double cluster_fit_matrix(const DeviceSheet *device, MathKind math, double element_bytes,
                          const MatrixPoint *point, int n, MatrixCurve *curve)
{
    Fit fit = {.low = {0.05, 0},
               .high = {1, 3000},
               .n = 2,
               .error = matrix_error,
               .device = device,
               .points = point,
               .n_points = n,
               .math = math,
               .element_bytes = element_bytes};
    double best[FIT_MAX] = {0}, residual = fit_run(&fit, best);
    *curve = (MatrixCurve){device->matrix[math].peak_flop_per_s, best[0], best[1]};
    return residual;
}

/* ---- attention -------------------------------------------------------------------------- */

static double attention_error(const Fit *fit, const double *parameter)
{
    DeviceSheet device = *fit->device;
    const AttentionPoint *point = fit->points;
    double sum = 0, peak = device.matrix[MATH_BF16].peak_flop_per_s;
    device.attention = (AttentionCurve){parameter[0], parameter[1], parameter[2], 1};
    for (int i = 0; i < fit->n_points; i++) {
        double rate = peak * cluster_attention_efficiency(&device, point[i].head_dim, point[i].keys,
                                                          false);
        sum += square(log(rate / point[i].flop_per_s));
    }
    return sum;
}

double cluster_fit_attention(const DeviceSheet *device, const AttentionPoint *point, int n,
                             AttentionCurve *curve)
{
    Fit fit = {.low = {0.1, 0, 0},
               .high = {1.5, 150, 1000},
               .n = 3,
               .error = attention_error,
               .device = device,
               .points = point,
               .n_points = n};
    double best[FIT_MAX] = {0}, residual = fit_run(&fit, best);
    *curve = (AttentionCurve){best[0], best[1], best[2], device->attention.backward};
    return residual;
}
