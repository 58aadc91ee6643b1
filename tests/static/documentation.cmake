# The code of every Markdown file. A ```cpp block with a `main` is a program, built and run; any other block is the body
# of a function after documentation_prelude.hpp, and only compiled. Compiler messages give file and line of the Markdown.
# The first block of README.md is examples/quickstart.cpp without its heading comment, and its output is what that
# program prints.
file(GLOB guides CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/examples/guides/*.md")
if(NOT TARGET alibi::mpi)
  list(FILTER guides EXCLUDE REGEX "/context_parallel\\.md$")
endif()
set(documents
    "${PROJECT_SOURCE_DIR}/README.md" "${PROJECT_SOURCE_DIR}/include/alibi/README.md"
    "${PROJECT_SOURCE_DIR}/bench/README.md" ${guides}
)
set(quickstart "${PROJECT_SOURCE_DIR}/examples/quickstart.cpp")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${documents} "${quickstart}")
set(fragments)

# next_block(<language>): cuts the next block of that language off `text`; `code` is empty if there is none.
macro(next_block language)
  set(code)
  string(FIND "${text}" "\n```${language}\n" begin)
  if(NOT begin EQUAL -1)
    string(LENGTH "\n```${language}\n" length)
    math(EXPR begin "${begin} + ${length}")
    string(SUBSTRING "${text}" 0 ${begin} skipped)
    string(SUBSTRING "${text}" ${begin} -1 text)
    string(FIND "${text}" "```" end)
    string(SUBSTRING "${text}" 0 ${end} code)
    string(REGEX REPLACE "[^\n]" "" newlines "${skipped}")
    string(LENGTH "${newlines}" newlines)
    math(EXPR line "${line} + ${newlines}")
  endif()
endmacro()

set(block 0)
foreach(document IN LISTS documents)
  file(READ "${document}" text)
  set(line 1)
  next_block(cpp)
  while(code)
    math(EXPR block "${block} + 1")
    set(located "#line ${line} \"${document}\"\n${code}")
    if(code MATCHES "int main\\(")
      set(source "${CMAKE_CURRENT_BINARY_DIR}/documentation/block_${block}.cpp")
      file(CONFIGURE OUTPUT "${source}" CONTENT "${located}" @ONLY)
      add_executable(test_documentation_${block} "${source}")
      target_link_libraries(test_documentation_${block} PRIVATE alibi_developer alibi_test_options_O0)
      add_test(NAME documentation_${block} COMMAND test_documentation_${block})
      add_dependencies(alibi_tests test_documentation_${block})
    else()
      string(APPEND fragments "void block_${block}() {\n${located}}\n")
    endif()
    next_block(cpp)
  endwhile()
endforeach()

file(CONFIGURE OUTPUT documentation/fragments.cpp CONTENT "#include \"documentation_prelude.hpp\"\n${fragments}" @ONLY)
add_library(test_documentation OBJECT "${CMAKE_CURRENT_BINARY_DIR}/documentation/fragments.cpp")
target_include_directories(test_documentation PRIVATE "${CMAKE_CURRENT_LIST_DIR}")
target_link_libraries(test_documentation PRIVATE alibi::compiled alibi_test_options_O0)
if(TARGET alibi::mpi)
  target_link_libraries(test_documentation PRIVATE alibi::mpi)
endif()
add_dependencies(alibi_tests test_documentation)

# README.md's program, which is block 1, and its output.
file(READ "${PROJECT_SOURCE_DIR}/README.md" text)
set(line 1)
next_block(cpp)
set(first_block "${code}")
next_block(text)
set(output "${code}")
file(READ "${quickstart}" program)
string(REGEX REPLACE "^(//[^\n]*\n)+" "" program "${program}")
set(folder "${CMAKE_CURRENT_BINARY_DIR}/documentation")
file(CONFIGURE OUTPUT "${folder}/first_block.txt" CONTENT "${first_block}" @ONLY)
file(CONFIGURE OUTPUT "${folder}/quickstart.txt" CONTENT "${program}" @ONLY)
file(CONFIGURE OUTPUT "${folder}/output.txt" CONTENT "${output}" @ONLY)
add_test(
  NAME documentation_quickstart
  COMMAND "${CMAKE_COMMAND}" -E compare_files "${folder}/first_block.txt" "${folder}/quickstart.txt"
)
set_tests_properties(documentation_quickstart PROPERTIES LABELS static)
add_test(
  NAME documentation_output
  COMMAND sh -c "\"$<TARGET_FILE:test_documentation_1>\" | diff \"${folder}/output.txt\" -"
)
