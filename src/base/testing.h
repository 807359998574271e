/* For test programs: cmocka with what it needs, and base.h's fail back in its place. */
#ifndef BASE_TESTING_H
#define BASE_TESTING_H

#include "base/base.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#undef fail /* cmocka's macro of the same name */
#undef fail_msg
#define fail_msg(...)                                                                              \
    do {                                                                                           \
        print_error("ERROR: " __VA_ARGS__);                                                        \
        print_error("\n");                                                                         \
        _fail(__FILE__, __LINE__);                                                                 \
    } while (0)
/* The test fails with the sentence when status is not OK. */
#define assert_ok(status_)                                                                         \
    do {                                                                                           \
        if ((status_) != OK) fail_msg("%s", status_message());                                     \
    } while (0)
/* To a share of the wanted value; NAN is near nothing. */
#define assert_near(got_, want_, share_)                                                           \
    do {                                                                                           \
        double near_got_ = (got_), near_want_ = (want_);                                           \
        if (!(fabs(near_got_ - near_want_) <= (share_)*fabs(near_want_)))                          \
            fail_msg("%s is %.9g, not %.9g", #got_, near_got_, near_want_);                        \
    } while (0)

#endif
