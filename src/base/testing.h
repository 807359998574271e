/* For test programs: cmocka with what it needs, and base.h's fail back in its place. */
#ifndef BASE_TESTING_H
#define BASE_TESTING_H

#include "base/base.h"

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

#endif
