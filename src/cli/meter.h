/* How far a long command is, on stderr: a line that redraws itself on a terminal, else one every
 * ten seconds. */
#ifndef CLI_METER_H
#define CLI_METER_H

#include "base/base.h"

typedef struct Meter {
    bool terminal, shown;
    double start_s, next_s;
} Meter;

void meter_begin(Meter *meter);
/* Whether it is time for another line. */
bool meter_due(const Meter *meter);
void meter_show(Meter *meter, const char *format, ...) PRINTF_LIKE(2, 3);
void meter_end(Meter *meter); /* the line goes away */

#endif
