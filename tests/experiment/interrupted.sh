#!/usr/bin/env bash
# Tests that a run which is interrupted many times ends with the same bits as an uninterrupted run. Also tests that
# invalid input gives an error that names it, and overwrites nothing. Usage: interrupted.sh <program> <work directory>
#
# Interruptions are SIGKILL, SIGINT and a full disk (a limit on the size of files), at times drawn from a fixed seed.
set -euo pipefail

program=$(realpath "${1:?expected: interrupted.sh <program> <work directory>}")
work=${2:?expected: interrupted.sh <program> <work directory>}
wanted=20
RANDOM=1

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

rm -rf "$work"
mkdir -p "$work"
cd "$work"

# 160 kB of words in an order with a long period.
awk 'BEGIN {
  n = split("attention with linear biases enables input length extrapolation ; { } ( ) return = + template", word, " ")
  for (x = 1; bytes < 160000; x = (x * 16807) % 2147483647) {
    w = word[x % n + 1] (x % 7 ? " " : "\n"); bytes += length(w); printf "%s", w
  }
}' >text

run=("$program" --text text --methods "alibi,t5,rotary-yarn,learned" --length 32 --steps 200 --batch 8 --dim 16 --layers 2 --heads 2
  --evaluate 8192 --checkpoint-every 7 --no-picture)

# Compares results.csv without its last column, which is a speed.
same_results() {
  cmp "$1/training.csv" "$2/training.csv" && cmp <(cut -d, -f1-8 "$1/results.csv") <(cut -d, -f1-8 "$2/results.csv")
}
# For each trained method, the exact last loss and the hash of all parameters.
ends_of() { awk '$1 == "training" { found = 1 } found && NF == 6 { print $1, $5, $6 }' "$1"; }

echo "==> uninterrupted, on two threads and on three"
began=$(date +%s%N)
"${run[@]}" --out whole --threads 2 >whole.log || fail "the uninterrupted run"
took=$((($(date +%s%N) - began) / 1000000))
"${run[@]}" --out threads --threads 3 >threads.log || fail "the run on three threads"
same_results whole threads || fail "the results depend on the number of threads"
[ "$(ends_of whole.log | wc -l)" -eq 4 ] || fail "the uninterrupted run printed no exact losses"
[ "$(ends_of whole.log)" = "$(ends_of threads.log)" ] || fail "the parameters depend on the number of threads"

checkpoints() { { cat parts/*.checkpoint 2>/dev/null || true; } | cksum; }

# Starts a run that is interrupted after $1 milliseconds by $2, or by a limit of $1 KiB on files if $2 is DISK. Sets
# status.
interrupted_run() {
  status=0
  if [ "$2" = DISK ]; then
    (ulimit -f "$1" && exec "${run[@]}" --out parts --resume) >parts.log 2>parts.err || status=$?
    return
  fi
  "${run[@]}" --out parts --resume >parts.log 2>parts.err &
  local child=$!
  sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"
  kill -s "$2" "$child" 2>/dev/null || true
  wait "$child" 2>/dev/null || status=$?
}

echo "==> interrupted, $wanted times or more; the whole takes $took ms"
hits=0 killed=0 stopped=0 full=0 tries=0
rm -rf parts
while [ "$hits" -lt "$wanted" ] || [ "$killed" -lt 5 ] || [ "$stopped" -lt 5 ] || [ "$full" -lt 3 ]; do
  tries=$((tries + 1))
  [ "$tries" -le 200 ] || fail "only $hits of $tries interruptions came before the end"
  case $((tries % 5)) in
    0)
      before=$(checkpoints)
      interrupted_run $((RANDOM % 20 + 1)) DISK
      [ "$status" -eq 0 ] || [ "$status" -eq 1 ] || fail "a full disk ended the program with status $status"
      if [ "$status" -eq 1 ]; then
        grep -q "cannot write parts/.*: File too large" parts.err || fail "a full disk: $(cat parts.err)"
        [ "$before" = "$(checkpoints)" ] || fail "a full disk changed a checkpoint"
        full=$((full + 1)) hits=$((hits + 1))
      fi
      ;;
    1 | 3)
      interrupted_run $((RANDOM % (took / 2) + 1)) KILL
      if [ "$status" -eq 137 ]; then killed=$((killed + 1)) hits=$((hits + 1)); fi
      ;;
    *)
      interrupted_run $((RANDOM % (took / 2) + 1)) INT
      if [ "$status" -eq 130 ]; then stopped=$((stopped + 1)) hits=$((hits + 1)); fi
      ;;
  esac
  case $status in
    0)  # the run finished before the interruption, so start a new one
      same_results whole parts || fail "a run that was interrupted differs"
      rm -rf parts
      ;;
    1 | 130 | 137) ;;
    *) fail "status $status: $(cat parts.err)" ;;
  esac
done
"${run[@]}" --out parts --resume >parts.log || fail "the last of the resumed runs"
same_results whole parts || fail "the interrupted run differs from the uninterrupted one"
[ "$(ends_of whole.log)" = "$(ends_of parts.log)" ] || fail "the interrupted run ends with other parameters"
echo "    $hits interruptions: $killed killed, $stopped stopped, $full with a full disk; the same bits in the end:"
ends_of parts.log | sed 's/^/    /'

# The checksum of all files below a directory.
contents() { find "$1" -type f | sort | xargs cat | cksum; }

# refused <text in the error> <arguments>...: expects an error, and that the finished run is unchanged.
finished=$(contents whole)
refused() {
  local names=$1 status=0
  shift
  "${run[@]}" "$@" >refused.log 2>refused.err || status=$?
  [ "$status" -eq 1 ] || fail "status $status, not 1, for $*"
  grep -qF -e "$names" refused.err || fail "the error for '$*' does not name '$names': $(cat refused.err)"
  [ "$finished" = "$(contents whole)" ] || fail "the finished run was changed by $*"
  [ ! -e new ] || fail "something was written for $*"
  echo "    $(cat refused.err)"
}

echo "==> refused"
: >empty
head -c 100 text >short
mkdir -p hollow && ln -sfn nowhere dangling
refused "the text empty is empty" --out new --text empty
refused "the text hollow is empty" --out new --text hollow
refused "the text short has" --out new --text short
refused "cannot read missing" --out new --text missing
refused "cannot read dangling" --out new --text dangling
for option in length steps batch dim layers heads threads checkpoint-every evaluate learning-rate; do
  for value in 0 -1 x ""; do
    refused "--$option is '$value'; expected" --out new "--$option" "$value"
  done
done
refused "--length is '30'; expected" --out new --length 30
refused "--methods is 'rope'; expected" --out new --methods alibi,rope
refused "--attention is 'other'" --out new --attention other
refused "--frobnicate" --out new --frobnicate 3
refused "whole/" --out whole
refused "its length is 32; expected 16" --out whole --resume --length 16
refused "its dim is 16; expected 32" --out whole --resume --dim 32
refused "its steps is 200; expected 61" --out whole --resume --steps 61

# A checkpoint with one changed byte, a truncated one, and a file that is no checkpoint.
for damage in changed cut foreign; do
  rm -rf "$damage" && cp -r whole "$damage"
  case $damage in
    changed) printf '\x55' | dd of=changed/t5.checkpoint bs=1 seek=5000 conv=notrunc status=none ;;
    cut) truncate -s -3 cut/t5.checkpoint ;;
    foreign) cp text foreign/t5.checkpoint ;;
  esac
  sum=$(contents "$damage")
  refused "the checkpoint $damage/t5.checkpoint is " --out "$damage" --resume
  [ "$sum" = "$(contents "$damage")" ] || fail "a damaged checkpoint was overwritten"
done
echo "passed"
