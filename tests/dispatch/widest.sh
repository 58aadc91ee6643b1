# Usage: sh widest.sh <program> <unit>... Without ALIBI_ISA the program must use the last of the units, which are listed
# from narrow to wide, that the processor has.
set -eu
program=$1
shift
unset ALIBI_ISA
chosen=$("$program")
for unit in "$@"; do
  if forced=$(ALIBI_ISA=$unit "$program" 2>/dev/null); then
    widest=$forced
  fi
done
echo "chosen: $chosen; widest: $widest"
[ "$chosen" = "$widest" ]
