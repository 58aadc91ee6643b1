# shellcheck shell=bash
# Functions that install what a fresh Debian machine needs, configure and build. Sourced by examples/run.sh,
# tests/run.sh, bench/run.sh, bench/peers/run.sh, tests/fuzz/run.sh, tests/compile_time.sh and .ci/run. The first four
# share one build directory, and each adds its own part to it.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$root/build/release
jobs=$(nproc)

# run_step <name>[: <details>] <command>...: prints one line, writes the output of the command to build/log/<name>.log,
# and prints the end of that log if the step fails.
run_step() {
  local name=${1%%:*} log
  log=$root/build/log/${name// /-}.log
  echo "==> $1"
  shift
  mkdir -p "$root/build/log"
  if ! "$@" >"$log" 2>&1 </dev/null; then
    tail -n 60 "$log" >&2
    echo "Failed: $name. The whole log: $log" >&2
    exit 1
  fi
}

# run_build <name> <target>: builds a target. Prints the progress every 15 seconds, and the time at the end.
run_build() {
  local name=$1 target=$2 log start=$SECONDS worker status=0 progress times
  log=$root/build/log/${name// /-}.log
  times=$root/build/log/${name// /-}.time
  echo "==> $name"
  mkdir -p "$root/build/log"
  (TIMEFORMAT='%U %S' && time cmake --build "$build" --target "$target" --parallel "$jobs" >"$log" 2>&1 </dev/null) \
    2>"$times" &
  worker=$!
  while sleep 1 && kill -0 "$worker" 2>/dev/null; do
    (((SECONDS - start) % 15 == 0)) || continue
    progress=$(grep -o '^\[[0-9]*/[0-9]*\]' "$log" | tail -n 1 || true)
    echo "    ${progress:-[starting]} files, $((SECONDS - start)) s"
  done
  wait "$worker" || status=$?
  if [ "$status" -ne 0 ]; then
    tail -n 60 "$log" >&2
    echo "Failed: $name. The whole log: $log" >&2
    exit 1
  fi
  awk -v wall=$((SECONDS - start)) 'END { printf "    %d s, %.0f s of processor time\n", wall, $1 + $2 }' "$times"
}

is_installed() {
  case $1 in
    g++) command -v "${CXX:-c++}" ;;
    ninja-build) command -v ninja ;;
    gnuplot-nox) command -v gnuplot ;;
    openmpi-bin) command -v mpirun ;;
    python3-venv) python3 -c 'import ensurepip, venv' ;;
    python3-dev) test -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ;;
    # On other systems than Debian, CMake says which library is missing.
    lib* | nlohmann-json3-dev)
      ! command -v dpkg-query || dpkg-query --show --showformat '${db:Status-Status}' "$1" | grep -qx installed
      ;;
    *) command -v "$1" ;;
  esac >/dev/null 2>&1
}

# require <package>...: installs the missing ones of these Debian packages and of those that every build needs.
require() {
  local package missing=()
  for package in g++ cmake ninja-build libeigen3-dev "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0

  local as_root=(env DEBIAN_FRONTEND=noninteractive)
  if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n "${as_root[@]}")
  fi
  if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
    echo "Missing: ${missing[*]}. On Debian, this installs them; then run this script again:" >&2
    echo "    sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  local apt=("${as_root[@]}" apt-get -o DPkg::Lock::Timeout=300)
  run_step "update package lists" "${apt[@]}" update
  run_step "install: ${missing[*]}" "${apt[@]}" install --yes --no-install-recommends "${missing[@]}"
}

# configure_part <part>: adds TESTS, BENCHMARKS or EXAMPLES to the parts that the build directory is configured with, so
# that nothing is built twice.
configure_part() {
  local parts=()
  if [ ! -e "$build/CMakeCache.txt" ]; then
    parts=(-DALIBI_BUILD_TESTS=OFF -DALIBI_BUILD_BENCHMARKS=OFF -DALIBI_BUILD_EXAMPLES=OFF)
  fi
  run_step "configure ${1,,}" cmake -S "$root" --preset release "${parts[@]}" "-DALIBI_BUILD_$1=ON" \
    "-DALIBI_WERROR=${ALIBI_WERROR:-OFF}"
}
# build_part <part>: configures a part and builds it.
build_part() {
  configure_part "$1"
  run_build "build ${1,,}" "alibi_${1,,}"
}
