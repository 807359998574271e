/* report: a plan as one page that a browser shows and a printer prints.
 *
 * What it is.   One HTML file without scripts and without anything that is fetched: headline,
 *               assumptions, the step's timeline, breakdown, memory, the search's front, goodput,
 *               money; pictures are SVG inside it.
 * Depends on.   base, run, cluster, fleet, planner, outlook
 * Owns.         Nothing: all is borrowed, the text is the caller's.
 * Invariants.   The page is well-formed XML but for its doctype, and shows every figure of the
 *               plan's JSON. Texts from outside are escaped. The same input gives the same page.
 * Use:
 *     ReportInput in = {.outlook = &o, .timeline = &t, .version = "0.1"};
 *     report_page(&in, &out);
 *     TRY(file_write_atomic("plan.html", out.at, out.n));
 */
#ifndef REPORT_REPORT_H
#define REPORT_REPORT_H

#include "outlook/outlook.h"

typedef struct ReportInput {
    const Outlook *outlook;
    const Timeline *timeline;
    const SearchResult *found; /* NULL: the layout was not searched for */
    const Scaling *scaling;    /* NULL: not made */
    const Contender *compared; /* [n_compared], the outlook among them; 0: nothing is compared */
    int n_compared;
    const char *version; /* of the program */
    const char *json;    /* of all figures, as --json prints them */
} ReportInput;

void report_page(const ReportInput *in, Str *out);

#endif
