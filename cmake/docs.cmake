# The target docs: Doxygen's pages of the public headers, the guides and the results, in docs/html of the build
# directory, with README.md as the first page. A warning is an error.
find_package(Doxygen QUIET)
if(NOT DOXYGEN_FOUND)
  message(STATUS "Doxygen is not installed: there is no target docs")
  return()
endif()

file(
  GLOB docs_inputs CONFIGURE_DEPENDS
  "${PROJECT_SOURCE_DIR}/include/alibi/*.hpp" "${PROJECT_SOURCE_DIR}/include/alibi/position/*.hpp"
  "${PROJECT_SOURCE_DIR}/README.md" "${PROJECT_SOURCE_DIR}/examples/guides/*.md" "${PROJECT_SOURCE_DIR}/bench/README.md"
  "${PROJECT_SOURCE_DIR}/include/alibi/README.md" "${PROJECT_SOURCE_DIR}/.github/CONTRIBUTING.md"
)

set(DOXYGEN_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/docs")
set(DOXYGEN_USE_MDFILE_AS_MAINPAGE "${PROJECT_SOURCE_DIR}/README.md")
set(DOXYGEN_STRIP_FROM_PATH "${PROJECT_SOURCE_DIR}/include" "${PROJECT_SOURCE_DIR}")
set(DOXYGEN_STRIP_FROM_INC_PATH "${PROJECT_SOURCE_DIR}/include")
set(DOXYGEN_IMAGE_PATH "${PROJECT_SOURCE_DIR}/bench" "${PROJECT_SOURCE_DIR}/examples/train_short_test_long")

# Namespaces are opened in many files, so that none of them can hold the comment. No picture is wider than the page.
file(
  WRITE "${PROJECT_BINARY_DIR}/docs/namespaces.dox"
  "/** \\namespace alibi\nAttention with linear biases. */\n"
  "/** \\namespace alibi::reference\nThe definition of attention and of its gradients, naive, in double. */\n"
)
file(WRITE "${PROJECT_BINARY_DIR}/docs/docs.css" ".contents img { max-width: 100%; }\n")
set(DOXYGEN_HTML_EXTRA_STYLESHEET "${PROJECT_BINARY_DIR}/docs/docs.css")

# Comments are plain text, and that at the head of a file is the text of its page; pages link to pages.
set(headers_filter "*.hpp=awk -f \\\"${CMAKE_CURRENT_LIST_DIR}/docs_headers.awk\\\"")
set(pages_filter "*.md=awk -f \\\"${CMAKE_CURRENT_LIST_DIR}/docs_pages.awk\\\"")
set(DOXYGEN_FILTER_PATTERNS "\"${headers_filter}\" \"${pages_filter}\"")
set(DOXYGEN_VERBATIM_VARS DOXYGEN_FILTER_PATTERNS)

# A public name without a comment is a warning.
set(DOXYGEN_EXTRACT_ALL NO)
set(DOXYGEN_WARN_AS_ERROR FAIL_ON_WARNINGS)
set(DOXYGEN_JAVADOC_AUTOBRIEF YES)
set(DOXYGEN_EXCLUDE_SYMBOLS "*detail*" "*kernel*")
set(DOXYGEN_MACRO_EXPANSION YES)
set(DOXYGEN_EXPAND_ONLY_PREDEF YES)
set(DOXYGEN_PREDEFINED "EIGEN_ALWAYS_INLINE=inline" "__cpp_exceptions=1")

set(DOXYGEN_HAVE_DOT NO)
set(DOXYGEN_GENERATE_LATEX NO)
set(DOXYGEN_GENERATE_TREEVIEW YES)
set(DOXYGEN_SORT_MEMBER_DOCS NO)
set(DOXYGEN_VERBATIM_HEADERS NO)
set(DOXYGEN_QUIET YES)

doxygen_add_docs(
  docs ${docs_inputs} "${PROJECT_BINARY_DIR}/docs/namespaces.dox"
  COMMENT "API pages: docs/html/index.html"
)
