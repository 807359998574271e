/* Shared by the files of validate/. */
#ifndef VALIDATE_VALIDATE_INTERNAL_H
#define VALIDATE_VALIDATE_INTERNAL_H

#include "validate/validate.h"

/* result->bar, of its rows, groups and grids. */
void validate_find_bars(ValidateResult *result);

#endif
