# Usage: sh bits.sh <unit> <program of the library> <header-only program of the unit>. Forces the unit; both programs
# must print the same. Exit code 77 if the processor does not have the unit.
set -eu
if ! library=$(ALIBI_ISA=$1 "$2" 2>&1); then
  echo "$library"
  case $library in
    *"this processor does not have"*) exit 77 ;;
  esac
  exit 1
fi
header_only=$("$3")
echo "library: $library; header-only: $header_only"
[ "${library%% *}" = "$1" ]
[ "$library" = "$header_only" ]
