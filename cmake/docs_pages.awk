# Doxygen's view of a Markdown page (docs.cmake): links to what has no page there become their text.
#
#   - A link to a heading of another page becomes a link to that page; one to a heading of the same page, text.
#   - A link to a source file or a folder becomes text.
#   - Links to pages, pictures and web addresses stay.
#   - In a table, code with the escaped bar \| is marked by <code>: between backticks the backslash would show.

/^```/ { in_code = !in_code }
in_code {
  print
  next
}
/^\|.*\\\|/ {
  n = split($0, parts, "`")
  $0 = parts[1]
  for (i = 2; i <= n; i++) {
    if (i % 2 == 1) {
      $0 = $0 parts[i]
    } else if (parts[i] ~ /\\\|/) {
      gsub(/[<>]/, "\\\\&", parts[i])
      $0 = $0 "<code>" parts[i] "</code>"
    } else {
      $0 = $0 "`" parts[i] "`"
    }
  }
}
{
  line = ""
  rest = $0
  while (match(rest, /\[[^][]+\]\([^()]+\)/)) {
    link = substr(rest, RSTART, RLENGTH)
    middle = index(link, "](")
    text = substr(link, 2, middle - 2)
    target = substr(link, middle + 2, length(link) - middle - 2)
    if (target ~ /\.md#/) sub(/#.*/, "", target)
    if (target ~ /^https?:|\.md$|\.png$/) link = "[" text "](" target ")"
    else link = text
    line = line substr(rest, 1, RSTART - 1) link
    rest = substr(rest, RSTART + RLENGTH)
  }
  print line rest
}
