# Usage: sh symbols.sh <library> <work folder> <unit>... Checks a compiled library that has these units, with $AR, $NM and
# $OBJDUMP.
#
# A linker keeps one of all functions of one name. No function that is compiled for a wide vector unit may therefore have
# a name that another file can have: the only symbol of a unit that the linker sees is its table. Everything else in the
# library must run on every processor.
set -eu
library=$1 work=$2
shift 2
mkdir -p "$work"
failures=0
fail() {
  echo "$*"
  failures=$((failures + 1))
}

code=$work/code
for member in $("$AR" t "$library"); do
  object=$work/$member
  "$AR" p "$library" "$member" >"$object"
  "$OBJDUMP" -d --no-show-raw-insn "$object" >"$code"
  unit=
  for name in "$@"; do
    case $member in
      *_"$name".o) unit=$name ;;
    esac
  done

  # Instructions: registers of 256 and 512 bits, and the encoding of AVX, whose mnemonics begin with v.
  ymm=$(grep -c '%ymm' "$code" || true)
  zmm=$(grep -c '%zmm' "$code" || true)
  avx=$(grep -c '[[:space:]]v[a-z0-9]* .*%xmm' "$code" || true)
  echo "$member: unit '$unit', instructions with ymm $ymm, zmm $zmm, xmm of AVX $avx"
  case $unit in
    '' | baseline) [ $((ymm + zmm + avx)) -eq 0 ] || fail "$member has instructions of AVX" ;;
    avx2) [ "$ymm" -gt 0 ] && [ "$zmm" -eq 0 ] || fail "$member: expected ymm and no zmm" ;;
    *) [ "$zmm" -gt 0 ] || fail "$member: expected zmm" ;;
  esac
  [ -n "$unit" ] || continue

  # Symbols.
  seen=$("$NM" --defined-only --extern-only --format=posix "$object" | cut -d ' ' -f 1)
  [ "$seen" = "alibi_unit_$unit" ] || fail "$member: expected the symbol alibi_unit_$unit only, found: $seen"
  needed=$("$NM" --undefined-only --format=posix "$object" | cut -d ' ' -f 1 | grep -e 5alibi -e 5Eigen || true)
  [ -z "$needed" ] || fail "$member uses functions of other files: $needed"
  # Initialisers would run on every processor; groups are merged by their names.
  ! "$OBJDUMP" -h "$object" | grep -e '\.init_array' -e '\.ctors' || fail "$member has initialisers"
  ! "$OBJDUMP" -h "$object" | grep -e '\.group' -e 'LINK_ONCE' || fail "$member has sections that the linker merges"
done
for name in "$@"; do
  [ -e "$(find "$work" -name "*_$name.o" | head -n 1)" ] || fail "the library has no unit $name"
done
exit $((failures > 0))
