/* Means and ratios with their standard errors. */
#include "eval/eval_internal.h"

#include <math.h>

void mean_add(Mean *m, double value)
{
    m->n++;
    m->sum += value;
    m->squares += value * value;
}

double mean_value(const Mean *m) { return m->sum / (double)m->n; }

double mean_error(const Mean *m)
{
    if (m->n < 2) return NAN;
    double n = (double)m->n, variance = (m->squares - m->sum * m->sum / n) / (n - 1);
    return sqrt(fmax(variance, 0) / n);
}

void ratio_add(Ratio *r, double a, double b)
{
    r->n++;
    r->a += a;
    r->b += b;
    r->aa += a * a;
    r->ab += a * b;
    r->bb += b * b;
}

double ratio_value(const Ratio *r) { return r->a / r->b; }

/* Linearised: the deviation of a - q b over items, with q the ratio, over the sum of b (Cochran,
 * Sampling Techniques, chapter 6). */
double ratio_error(const Ratio *r)
{
    if (r->n < 2) return NAN;
    double q = ratio_value(r), n = (double)r->n;
    double squares = r->aa - 2 * q * r->ab + q * q * r->bb;
    return sqrt(fmax(squares, 0) * n / (n - 1)) / r->b;
}
