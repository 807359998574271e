/* Rates that tell the times of an op, and an exchange's latency and bandwidth. */
#include "calibrate/calibrate_internal.h"

#include <math.h>
#include <stdlib.h>

enum { TERMS = 3, REWEIGHTED = 25 };

/* Solves the n equations of a symmetric positive system by elimination; false when it is singular.
 */
static bool solve(double a[TERMS][TERMS], double b[TERMS], int n, double x[TERMS])
{
    for (int i = 0; i < n; i++) {
        if (!(fabs(a[i][i]) > 1e-12)) return false;
        for (int j = i + 1; j < n; j++) {
            double factor = a[j][i] / a[i][i];
            for (int k = i; k < n; k++) a[j][k] -= factor * a[i][k];
            b[j] -= factor * b[i];
        }
    }
    for (int i = n - 1; i >= 0; i--) {
        x[i] = b[i];
        for (int k = i + 1; k < n; k++) x[i] -= a[i][k] * x[k];
        x[i] /= a[i][i];
    }
    return true;
}

/* Samples, and their terms scaled to about one, so that elimination sees no powers of ten. */
typedef struct Terms {
    double scale[TERMS];
    const OpSample *sample;
    int n;
} Terms;

static double term(const Terms *t, const OpSample *s, int i)
{
    double raw = i == 0 ? 1 : i == 1 ? s->flop : s->bytes;
    return t->scale[i] > 0 ? raw / t->scale[i] : 0;
}

static double predict(const Terms *t, const OpSample *s, const double x[TERMS])
{
    double sum = 0;
    for (int i = 0; i < TERMS; i++) sum += x[i] * term(t, s, i);
    return sum;
}

/* Sum of (predicted - measured)^2 / predicted. */
static double misfit(const Terms *t, const double x[TERMS])
{
    double sum = 0;
    for (int i = 0; i < t->n; i++) {
        double p = predict(t, &t->sample[i], x), d = p - t->sample[i].seconds;
        sum += d * d / fmax(p, 1e-12);
    }
    return sum;
}

/* Least squares with the weights 1 / expected[i]. */
static bool solve_weighted(const Terms *t, const int *index, int m, const double *expected,
                           double part[TERMS])
{
    const OpSample *s = t->sample;
    double a[TERMS][TERMS] = {{0}}, b[TERMS] = {0};
    for (int p = 0; p < t->n; p++)
        for (int i = 0; i < m; i++) {
            double u = term(t, &s[p], index[i]) / fmax(expected[p], 1e-12);
            b[i] += u * s[p].seconds;
            for (int j = 0; j < m; j++) a[i][j] += u * term(t, &s[p], index[j]);
        }
    return solve(a, b, m, part);
}

/* The terms of the set `use` (bits) only; false when they cannot be told apart or one comes out
 * negative. Weights are those of what the fit itself expects: then predicted and measured times
 * have the same sum (Poisson regression). */
static bool fit_subset(const Terms *t, unsigned use, double x[TERMS])
{
    const OpSample *s = t->sample;
    int n = t->n;
    double part[TERMS] = {0}, *expected = xcalloc((size_t)n, sizeof *expected);
    int index[TERMS], m = 0;
    bool good = true;
    for (int i = 0; i < TERMS; i++)
        if (use >> i & 1) index[m++] = i;
    for (int p = 0; p < n; p++) expected[p] = s[p].seconds;
    for (int round = 0; round < REWEIGHTED && good; round++) {
        good = solve_weighted(t, index, m, expected, part);
        for (int p = 0; p < n; p++) {
            expected[p] = 0;
            for (int i = 0; i < m; i++) expected[p] += part[i] * term(t, &s[p], index[i]);
        }
    }
    free(expected);
    if (!good) return false;
    for (int i = 0; i < TERMS; i++) x[i] = 0;
    for (int i = 0; i < m; i++) {
        if (!(part[i] >= 0)) return false;
        x[index[i]] = part[i];
    }
    return true;
}

/* Bit 0: what is fixed; 1: flop; 2: bytes. Those in front stand unless a later one tells the times
 * noticeably better: samples of one shape say nothing of others but that more work takes longer. */
static const unsigned subsets[] = {2, 4, 6, 1, 3, 5, 7};
static const double earned = 0.95;

OpFit calibrate_fit_op(const OpSample *sample, int n)
{
    OpFit fit = {.rate = {.op = sample[0].op}, .n = n};
    Terms t = {{1, 0, 0}, sample, n};
    double best[TERMS] = {0}, least = (double)INFINITY, sum = 0;
    for (int i = 0; i < n; i++) {
        fit.total_s += sample[i].seconds;
        t.scale[1] = fmax(t.scale[1], sample[i].flop);
        t.scale[2] = fmax(t.scale[2], sample[i].bytes);
    }
    t.scale[0] = 1 / (fit.total_s / n); /* a constant of the order of the times */
    for (int i = 0; i < COUNT_OF(subsets); i++) {
        double x[TERMS];
        if (!fit_subset(&t, subsets[i], x) || misfit(&t, x) >= earned * least) continue;
        least = misfit(&t, x);
        for (int k = 0; k < TERMS; k++) best[k] = x[k];
    }
    for (int i = 0; i < n; i++) sum += predict(&t, &sample[i], best);
    fit.rate.fixed_s = best[0] / t.scale[0];
    fit.rate.flop_per_s = best[1] > 0 ? t.scale[1] / best[1] : 0;
    fit.rate.bytes_per_s = best[2] > 0 ? t.scale[2] / best[2] : 0;
    fit.error = sqrt(least / fit.total_s);
    fit.bias = sum / fit.total_s - 1;
    return fit;
}

/* What it would take on one core is the one term beside a fixed part. */
void calibrate_fit_team(const OpSample *sample, int n, OpRate *rate)
{
    OpSample *s = xcalloc((size_t)n + 1, sizeof *s);
    double alone_s = 0, team_s = 0;
    for (int i = 0; i < n; i++) {
        double one_s = (rate->flop_per_s > 0 ? sample[i].flop / rate->flop_per_s : 0) +
                       (rate->bytes_per_s > 0 ? sample[i].bytes / rate->bytes_per_s : 0);
        s[i] = (OpSample){.flop = one_s, .seconds = sample[i].seconds};
        alone_s += one_s;
        team_s += sample[i].seconds;
    }
    OpFit fit = n ? calibrate_fit_op(s, n) : (OpFit){0};
    free(s);
    if (n == 0 || team_s <= 0) return;
    rate->team_s = fit.rate.fixed_s;
    rate->team_speed = fit.rate.flop_per_s;
    if (alone_s > 0 && rate->team_speed <= 0) { /* the fixed part told more: no speed is no term */
        rate->team_s = 0;
        rate->team_speed = alone_s / team_s;
    }
    if (rate->team_speed <= 0) rate->team_speed = 1; /* of nothing */
}

/* ---- exchanges -------------------------------------------------------------------------- */

/* The same law as an op's. Its fixed part is split evenly between the base and the hops of a ring,
 * which one number of ranks cannot tell apart. */
void calibrate_fit_exchange(const ExchangeSample *sample, int n, int ranks, double *base_s,
                            double *hop_s, double *bytes_per_s)
{
    double hops = 2.0 * (ranks - 1);
    OpSample *s = xcalloc((size_t)n, sizeof *s);
    for (int i = 0; i < n; i++)
        s[i] = (OpSample){.bytes = hops / ranks * sample[i].bytes, .seconds = sample[i].seconds};
    OpFit fit = calibrate_fit_op(s, n);
    free(s);
    *base_s = fit.rate.fixed_s / 2;
    *hop_s = fit.rate.fixed_s / 2 / hops;
    *bytes_per_s = fit.rate.bytes_per_s;
}
