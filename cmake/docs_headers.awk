# Doxygen's view of a header (docs.cmake): its comments as they stand, for a reader of plain text.
#
#   - The // block at the head of a file becomes the text of the file's page, and `#pragma once` below it the mark that
#     says so.
#   - Indented lines of a comment, as formulas, shapes and calls are, stay as they are written. Continued items of a
#     list are not among them.
#   - Characters that Doxygen or Markdown would interpret are escaped, except between backticks.
#   - Namespaces of the instruction set disappear: users never name them.
#
# Comments become /** */, since Doxygen shows the slashes of indented lines. Lines keep their numbers, so that warnings
# point at the header; only a paragraph right behind a list gets a blank line before it.

# Text with what would be interpreted escaped.
function escaped(text,    parts, n, i, result) {
  n = split(text, parts, "`")
  for (i = 1; i <= n; i++) {
    if (i % 2 == 1 || i == n) gsub(/[\\@#$%&<>*|]/, "\\\\&", parts[i])
    result = result (i > 1 ? "`" : "") parts[i]
  }
  return result
}

# A line of a comment, without its slashes. It is held back until the next one says what ends with it.
function comment(text) {
  if (!in_comment) {
    held = "/**"
    if (text !~ /^   /) {
      held = held escaped(text)
      in_comment = 1
      in_list = text ~ /^ - /
      return
    }
  } else if (in_block && text !~ /^   / && text !~ /^ *$/) {
    end_block()
  }
  in_comment = 1
  if (!in_block && !in_list && text ~ /^   /) {
    held = held " \\verbatim"
    in_block = 1
  }
  print held
  if (in_block) {
    held = substr(text, 4)
    return
  }
  if (text ~ /^ - /) {
    in_list = 1
  } else if (text !~ /^   /) {
    if (in_list && text !~ /^ *$/) print ""
    in_list = 0
  }
  held = escaped(substr(text, 2))
}

function end_block() {
  held = held " \\endverbatim"
  in_block = 0
}

# Behind the last line of a comment; `last` is a command that belongs to it.
function end_comment(last) {
  if (!in_comment) return
  if (in_block) end_block()
  print held last " */"
  in_comment = in_list = 0
}

# The file's own comment, up to the first line that is none.
!head_done && /^\/\// {
  comment(substr($0, 3))
  next
}
!head_done && /^#pragma once$/ {
  if (in_block) end_block()
  print held
  held = ""
  end_comment("\\file")
  head_done = 1
  next
}

/^ *\/\/\/( |$)/ {
  sub(/^ *\/\/\//, "")
  comment($0)
  next
}
{ end_comment("") }

# Behind a member.
/\/\/\/< / {
  at = index($0, "///< ")
  print substr($0, 1, at + 4) escaped(substr($0, at + 5))
  next
}

/^namespace alibi::inline ALIBI_ABI/ { sub(/::inline ALIBI_ABI/, "") }
/^(inline namespace ALIBI_ABI \{|\}  \/\/ namespace ALIBI_ABI)$/ { $0 = "" }
{ print }
END { end_comment("") }
