# Compiles SOURCE with COMPILER and the folders INCLUDE, and holds the outcome against the `expect` line of each of the
# files CASES. Their `flags` lines apply.
cmake_minimum_required(VERSION 3.22)

list(TRANSFORM INCLUDE PREPEND -I)
set(flags)
foreach(case IN LISTS CASES)
  file(STRINGS "${case}" line REGEX "^// flags: " LIMIT_COUNT 1)
  string(REGEX REPLACE "^// flags: " "" line "${line}")
  separate_arguments(line UNIX_COMMAND "${line}")
  list(APPEND flags ${line})
endforeach()
# What is refused for its flags is refused by the first error, before most headers are read.
if(flags)
  list(APPEND flags -Wfatal-errors)
endif()

# As with the compiled library: what is refused is refused above the waist, and half as much is parsed.
execute_process(
  COMMAND "${COMPILER}" -std=c++20 -DALIBI_COMPILED -fsyntax-only ${INCLUDE} ${flags} "${SOURCE}"
  RESULT_VARIABLE result
  OUTPUT_VARIABLE message
  ERROR_VARIABLE message
)

foreach(case IN LISTS CASES)
  cmake_path(GET case FILENAME name)
  file(STRINGS "${case}" expect REGEX "^// expect: " LIMIT_COUNT 1)
  string(REGEX REPLACE "^// expect: " "" expect "${expect}")
  if(expect STREQUAL "")
    message(FATAL_ERROR "${name} has no `// expect: ` line")
  elseif(expect STREQUAL "success")
    if(NOT result EQUAL 0)
      message(FATAL_ERROR "${name} must compile, and did not:\n${message}")
    endif()
  elseif(result EQUAL 0)
    message(FATAL_ERROR "${name} must not compile, and did; expected a message with: ${expect}")
  elseif(NOT message MATCHES "error: [^\n]*${expect}")
    message(FATAL_ERROR "${name}: expected an error with: ${expect}\nThe compiler said:\n${message}")
  endif()
endforeach()
