# The warnings of STYLE.md. -Wconversion brings -Wsign-conversion with it in C, hence the off-switch.
# Those of C are for C alone: .cu files are C++ that includes C headers.
function(add_c_options)
  add_compile_options("$<$<COMPILE_LANGUAGE:C>:${ARGN}>")
endfunction()
add_c_options(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion
  -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla -Wformat=2
  -Wcast-qual -Wwrite-strings -fvisibility=hidden -fno-math-errno -fno-trapping-math
  -ffp-contract=fast)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
  add_c_options(-Wno-format-truncation) # our texts are bounded on purpose
  add_c_options(-Wdouble-promotion) # clang counts every NAN and INFINITY, which are float in C
else()
  add_c_options(-Wno-string-conversion) # CHECK(!"sentence")
endif()
if(WERROR)
  add_c_options(-Werror)
endif()
if(SANITIZE)
  add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all>")
  add_link_options(-fsanitize=${SANITIZE})
endif()
if(FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
add_compile_definitions(_GNU_SOURCE)
set(CMAKE_C_FLAGS_RELEASE "-O3 -g")
set(CMAKE_C_FLAGS_DEBUG "-O1 -g -DDEBUG=1")
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g")
set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g -DDEBUG=1")
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
set(CMAKE_CUDA_FLAGS_DEBUG "-O3 -DDEBUG=1")
