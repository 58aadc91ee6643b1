# Compiles SOURCE with COMPILER and the folders INCLUDE, and holds the outcome against the file's `expect` line.
cmake_minimum_required(VERSION 3.22)

file(STRINGS "${SOURCE}" expect REGEX "^// expect: " LIMIT_COUNT 1)
string(REGEX REPLACE "^// expect: " "" expect "${expect}")
if(expect STREQUAL "")
  message(FATAL_ERROR "${SOURCE} has no `// expect: ` line")
endif()

file(STRINGS "${SOURCE}" flags REGEX "^// flags: " LIMIT_COUNT 1)
string(REGEX REPLACE "^// flags: " "" flags "${flags}")
separate_arguments(flags UNIX_COMMAND "${flags}")
list(TRANSFORM INCLUDE PREPEND -I)
# As with the compiled library: what is refused is refused above the waist, and half as much is parsed.
set(flags -DALIBI_COMPILED ${flags})

execute_process(
  COMMAND "${COMPILER}" -std=c++20 -fsyntax-only ${INCLUDE} ${flags} "${SOURCE}"
  RESULT_VARIABLE result
  OUTPUT_VARIABLE message
  ERROR_VARIABLE message
)

if(expect STREQUAL "success")
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "must compile, and did not:\n${message}")
  endif()
elseif(result EQUAL 0)
  message(FATAL_ERROR "must not compile, and did; expected a message with: ${expect}")
elseif(NOT message MATCHES "error: [^\n]*${expect}")
  message(FATAL_ERROR "expected an error with: ${expect}\nThe compiler said:\n${message}")
endif()
